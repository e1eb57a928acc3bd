"""A planted preference world: ratings and pairs in natural language, with their truth.

Every response is composed of wordings (`panoply.synthetic.phrases`) of attribute levels that are
drawn first, so the attributes a(x, y) in [0, 1]^A are known by construction and, being words, can
be read by a linear probe on mean-pooled features. A prompt belongs to one of D domains, and the
reward is r(x, y) = w_d(x) · a(x, y) with planted weights w_d on the simplex. Domains prefer
opposite attributes (refusing or complying, hedged or assured), so no fixed weights serve all of
them, while a gate on the prompt can.

Texts and ratings depend on the seed and the sizes alone: worlds that differ only in `homogeneous`
share them, hence their features too, and differ in labels.

Legend: N responses, P pairs, A attributes, D domains, K annotator pools.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy.optimize import root_scalar
from scipy.special import expit

from panoply.data.schema import PROMPT, text_id
from panoply.synthetic.phrases import AXES, DOMAINS, respond
from panoply.synthetic.raters import RATING_SOURCES, rate, rated_objectives
from panoply.types import Array, Bools, Ints

ATTRIBUTES: tuple[str, ...] = tuple(name for axis in AXES for name in axis.attributes)
AGREEMENT = 0.80
"""Mean probability that a label agrees with the sign of the true margin."""
RATERS_PER_RESPONSE = 2

POOLS: dict[str, tuple[str, ...]] = {
    "north": ("danger", "howto"),
    "south": ("facts", "worries"),
    "east": ("support", "chat"),
    "west": ("howto", "worries"),
}
"""Annotator pools, which are the sources of pairs, and the domains that each mostly sees."""
MAIN_AFFINITY = 6.0
"""Odds that a prompt goes to a pool that mostly sees its domain rather than to another."""


@dataclass(frozen=True)
class Truth:
    """Parameters and hidden values that generated a world.

    Attributes:
        attributes: names of the A attributes.
        domains: names of the D domains; a row's domain is its `subset`.
        weights: `[D, A]`, planted weights, rows on the simplex.
        pools: names of the K annotator pools; a pair's pool is its `source`.
        responses: one row per response: text_id, domain, one column per attribute, and `reward`
            under `weights`.
        agreement: share of labels that agree with the sign of the true margin; pairs with a margin
            of zero, which have no sign, are left out.
        scale: t in P(i beats j) = sigma(t (r_i - r_j)).
        objectives: rated objective -> the attribute it rates.
    """

    attributes: tuple[str, ...]
    domains: tuple[str, ...]
    weights: Array
    pools: tuple[str, ...]
    responses: pa.Table
    agreement: float
    scale: float
    objectives: dict[str, str]


@dataclass(frozen=True)
class PlantedWorld:
    """Ratings and pairs of a planted world, with their truth.

    Attributes:
        ratings: prompt, response, source, subset, and one nullable float32 column per objective
            `<source>-<attribute>` in that source's raw scale. One row per (response, source).
        pairs: prompt, chosen, rejected, source (annotator pool), subset (domain), margin (null).
        truth: parameters and hidden values behind them.
        scales: objective -> (lowest, highest) raw rating.
    """

    ratings: pa.Table
    pairs: pa.Table
    truth: Truth
    scales: dict[str, tuple[float, float]]


class _Texts(NamedTuple):
    """The prompts, the N responses, and the prompt, domain and attributes of each response."""

    prompts: list[list[dict[str, str]]]
    responses: list[str]
    prompt_N: Ints
    domain_N: Ints
    attributes_NA: Array

    def prompts_of(self, rows: Ints) -> pa.Array:
        """Returns the prompts of some responses."""
        return pa.array([self.prompts[self.prompt_N[i]] for i in rows], PROMPT)

    def texts_of(self, rows: Ints) -> list[str]:
        """Returns the texts of some responses."""
        return [self.responses[i] for i in rows]


class _Pairs(NamedTuple):
    """Numbers of both responses, the pool, and the true margin."""

    first_P: Ints
    second_P: Ints
    pool_P: Ints
    margin_P: Array


def make_world(
    seed: int,
    *,
    num_prompts: int = 600,
    num_responses: int = 4,
    homogeneous: bool = False,
) -> PlantedWorld:
    """Generates a world in which what is preferred is known.

    Args:
        seed: same seed and sizes, same world.
        num_prompts: distinct prompts, spread evenly over the domains.
        num_responses: distinct responses per prompt; all their combinations become pairs.
        homogeneous: every domain gets the same weights, the mean over domains. Texts and ratings
            stay the same.

    Raises:
        ValueError: a number is out of its range; the message says which range.
    """
    _check(num_prompts, num_responses)
    # One stream per part of the world, so that a flag that changes one part leaves the others.
    streams = [np.random.default_rng([seed, stream]) for stream in range(4)]
    text_rng, rating_rng, weight_rng, label_rng = streams

    texts = _draw_texts(text_rng, num_prompts, num_responses)
    weights = _draw_weights(weight_rng, homogeneous)
    reward_N = np.einsum("na,na->n", texts.attributes_NA, weights[texts.domain_N])

    pairs = _draw_pairs(label_rng, texts, weights)
    scale = _solve_scale(pairs.margin_P)
    first_wins_P = _draw_labels(label_rng, pairs.margin_P, scale)
    has_sign_P = pairs.margin_P != 0
    agrees_P = first_wins_P == (pairs.margin_P > 0)

    ids = [
        text_id(texts.prompts[prompt], response)
        for prompt, response in zip(texts.prompt_N, texts.responses, strict=True)
    ]
    domains = np.array(list(DOMAINS))[texts.domain_N]
    columns = dict(zip(ATTRIBUTES, texts.attributes_NA.T, strict=True))
    truth = Truth(
        attributes=ATTRIBUTES,
        domains=tuple(DOMAINS),
        weights=weights,
        pools=tuple(POOLS),
        responses=pa.table({"text_id": ids, "domain": domains, **columns, "reward": reward_N}),
        agreement=float(agrees_P[has_sign_P].mean()),
        scale=scale,
        objectives={name: attribute for name, _, attribute in rated_objectives()},
    )
    return PlantedWorld(
        ratings=_ratings_table(rating_rng, texts),
        pairs=_pairs_table(texts, pairs, first_wins_P),
        truth=truth,
        scales={name: (source.low, source.high) for name, source, _ in rated_objectives()},
    )


def _check(num_prompts: int, num_responses: int) -> None:
    most = len(DOMAINS) * min(len(d.templates) * len(d.subjects) for d in DOMAINS.values())
    if not len(DOMAINS) <= num_prompts <= most:
        raise ValueError(
            f"num_prompts must be in [{len(DOMAINS)}, {most}] (at least one per domain, at most "
            f"the distinct prompts there are), got {num_prompts!r}"
        )
    if not 2 <= num_responses <= 64:
        raise ValueError(f"num_responses must be in [2, 64], got {num_responses!r}")


def _draw_texts(rng: np.random.Generator, num_prompts: int, num_responses: int) -> _Texts:
    kinds = list(DOMAINS.values())
    domain_of_prompt = rng.permutation(np.arange(num_prompts) % len(kinds))
    # The cells (template, subject) of a domain, each of which becomes at most one prompt.
    cells = [rng.permutation(len(kind.templates) * len(kind.subjects)).tolist() for kind in kinds]
    prompts: list[list[dict[str, str]]] = []
    responses: list[str] = []
    levels: list[tuple[int, ...]] = []
    for d in domain_of_prompt:
        template, number = divmod(cells[d].pop(), len(kinds[d].subjects))
        subject = kinds[d].subjects[number]
        content = kinds[d].templates[template].format(subject=subject)
        prompts.append([{"role": "user", "content": content}])
        drawn = _draw_levels(rng, num_responses)
        responses += [respond(rng, row, subject) for row in drawn]
        levels += drawn
    columns: list[Array] = []
    for axis, level_N in zip(AXES, np.array(levels).T / 2.0, strict=True):
        columns.append(level_N)
        if len(axis.attributes) == 2:
            columns.append(1.0 - level_N)
    prompt_N = np.repeat(np.arange(num_prompts), num_responses)
    domain_N = domain_of_prompt[prompt_N]
    return _Texts(prompts, responses, prompt_N, domain_N, np.stack(columns, axis=1))


def _draw_levels(rng: np.random.Generator, num_responses: int) -> list[tuple[int, ...]]:
    """Returns the levels 0, 1, 2 on every axis of the responses to one prompt, all different."""
    bounds = np.cumsum([axis.shares for axis in AXES], axis=1)[:, :2]
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < num_responses:
        row = (rng.random((len(AXES), 1)) > bounds).sum(axis=1)
        drawn[tuple(row.tolist())] = None
    return list(drawn)


def _draw_weights(rng: np.random.Generator, homogeneous: bool) -> Array:
    """Returns the weights `[D, A]` of the domains."""
    likes = np.zeros((len(DOMAINS), len(ATTRIBUTES)))
    for d, domain in enumerate(DOMAINS.values()):
        for name, weight in domain.likes.items():
            likes[d, ATTRIBUTES.index(name)] = weight
    weights = 0.9 * likes + 0.1 * rng.dirichlet(np.ones(len(ATTRIBUTES)), size=len(DOMAINS))
    return np.tile(weights.mean(axis=0), (len(DOMAINS), 1)) if homogeneous else weights


def _draw_pairs(rng: np.random.Generator, texts: _Texts, weights: Array) -> _Pairs:
    """Returns all pairs within prompts; the pairs of a prompt go to one pool."""
    num_prompts = len(texts.prompts)
    num_responses = len(texts.responses) // num_prompts
    affinity_DK = np.ones((len(DOMAINS), len(POOLS)))
    for k, main_domains in enumerate(POOLS.values()):
        affinity_DK[np.isin(list(DOMAINS), main_domains), k] = MAIN_AFFINITY
    bounds = np.cumsum(affinity_DK / affinity_DK.sum(axis=1, keepdims=True), axis=1)[:, :-1]
    domain_of_prompt = texts.domain_N[::num_responses]
    pool_of_prompt = (rng.random((num_prompts, 1)) > bounds[domain_of_prompt]).sum(axis=1)

    inside = np.array(list(combinations(range(num_responses), 2)))
    numbers = (num_responses * np.arange(num_prompts)[:, None, None] + inside).reshape(-1, 2)
    first_P, second_P = numbers.T
    pool_P = pool_of_prompt[texts.prompt_N[first_P]]
    difference_PA = texts.attributes_NA[first_P] - texts.attributes_NA[second_P]
    margin_P = np.einsum("pa,pa->p", difference_PA, weights[texts.domain_N[first_P]])
    # Equal rewards may differ in the last bit, which is no sign to agree with.
    return _Pairs(first_P, second_P, pool_P, np.where(np.abs(margin_P) < 1e-12, 0.0, margin_P))


def _solve_scale(margin_P: Array) -> float:
    """Returns t with mean sigma(t |margin|) = AGREEMENT over the pairs with a margin."""
    size = np.abs(margin_P[margin_P != 0])

    def excess(scale: float) -> float:
        return float(np.mean(expit(scale * size))) - AGREEMENT

    return float(root_scalar(excess, bracket=(0.0, 1e6)).root)


def _draw_labels(rng: np.random.Generator, margin_P: Array, scale: float) -> Bools:
    """Returns `[P]` whether the first wins: Bernoulli(sigma(t margin)), sampled systematically.

    Each label is Bernoulli; over a random order the disagreements are spread so evenly that their
    number misses its expectation by less than one, so AGREEMENT is met also in a small world.
    """
    order = rng.permutation(len(margin_P))
    steps = np.cumsum(expit(-scale * np.abs(margin_P))[order]) + rng.random()
    flips_P = np.zeros(len(margin_P), dtype=np.bool_)
    flips_P[order] = np.diff(np.floor(steps), prepend=0.0) > 0
    return (margin_P > 0) ^ flips_P


def _ratings_table(rng: np.random.Generator, texts: _Texts) -> pa.Table:
    """Returns one row per response and source that rates it, `RATERS_PER_RESPONSE` sources each."""
    shape = (len(texts.responses), len(RATING_SOURCES))
    raters = np.argsort(rng.random(shape), axis=1)[:, :RATERS_PER_RESPONSE]
    rater = np.sort(raters, axis=1).ravel()
    response = np.repeat(np.arange(shape[0]), RATERS_PER_RESPONSE)
    scores = {name: np.full(len(rater), np.nan) for name, _, _ in rated_objectives()}
    for k, (name, source) in enumerate(RATING_SOURCES.items()):
        rows = np.flatnonzero(rater == k)
        rated = [ATTRIBUTES.index(attribute) for attribute in source.attributes]
        values = rate(rng, source, texts.attributes_NA[response[rows]][:, rated])
        for attribute, column in zip(source.attributes, values.T, strict=True):
            scores[f"{name}-{attribute}"][rows] = column
    return pa.table(
        {
            "prompt": texts.prompts_of(response),
            "response": texts.texts_of(response),
            "source": np.array(list(RATING_SOURCES))[rater],
            "subset": np.array(list(DOMAINS))[texts.domain_N[response]],
            **{name: pa.array(s, pa.float32(), from_pandas=True) for name, s in scores.items()},
        }
    )


def _pairs_table(texts: _Texts, pairs: _Pairs, first_wins_P: Bools) -> pa.Table:
    chosen_P = np.where(first_wins_P, pairs.first_P, pairs.second_P)
    rejected_P = np.where(first_wins_P, pairs.second_P, pairs.first_P)
    return pa.table(
        {
            "prompt": texts.prompts_of(pairs.first_P),
            "chosen": texts.texts_of(chosen_P),
            "rejected": texts.texts_of(rejected_P),
            "source": np.array(list(POOLS))[pairs.pool_P],
            "subset": np.array(list(DOMAINS))[texts.domain_N[pairs.first_P]],
            "margin": pa.nulls(len(pairs.first_P), pa.float32()),
        }
    )
