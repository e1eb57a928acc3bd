"""A planted preference world: ratings, pairs and scorers in natural language, with their truth.

Every response is put together from wordings (`panoply.synthetic.phrases`) of attribute levels that
are drawn first, so the attributes a(x, y) in [0, 1]^A are known by construction and, being words,
can be read by a linear probe on mean-pooled features. A prompt belongs to one of D domains, and the
reward is r(x, y) = w_d(x) · a(x, y) with planted weights w_d on the simplex. Domains want opposite
things (refusing or complying, hedged or assured), so no fixed weights serve all of them and a gate
that knows the prompt does.

Texts and ratings hang on the seed and the sizes alone: worlds that differ only in `homogeneous` or
`conflict` share them, hence their features too, and differ in labels.

Legend: N responses, P pairs, A attributes, D domains, K annotator pools.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.optimize import root_scalar
from scipy.special import expit

from panoply.data.schema import PROMPT, text_id
from panoply.synthetic.phrases import AXES, DOMAINS, respond
from panoply.synthetic.raters import RATING_SOURCES, rate, rated_objectives
from panoply.types import Array

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

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
"""The annotator pools, which are the sources of pairs, and the domains that each mostly sees."""
MAIN_AFFINITY = 6.0
"""How much likelier a prompt goes to a pool that mostly sees its domain than to another."""


@dataclass(frozen=True)
class Truth:
    """What generated a world.

    Attributes:
        attributes: names of the A attributes.
        domains: names of the D domains; a row's domain is its `subset`.
        weights: `[D, A]`, planted weights, rows on the simplex.
        pools: names of the K annotator pools; a pair's pool is its `source`.
        pool_weights: `[K, D, A]`, weights each pool labels with: `weights` where `conflict` is 0.
        responses: one row per response: text_id, domain, one column per attribute, and `reward`
            under `weights`.
        agreement: share of labels that agree with the sign of their pool's true margin; pairs
            with a margin of zero, which have no sign, are left out.
        temperature: t in P(i beats j) = sigma(t (r_i - r_j)).
        objectives: rated objective -> the attribute it rates.
        scorer_domains: domains in which each scorer is reliable.
    """

    attributes: tuple[str, ...]
    domains: tuple[str, ...]
    weights: Array
    pools: tuple[str, ...]
    pool_weights: Array
    responses: pa.Table
    agreement: float
    temperature: float
    objectives: dict[str, str]
    scorer_domains: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PlantedWorld:
    """A planted world.

    Attributes:
        ratings: prompt, response, source, subset, and one nullable float32 column per objective
            `<source>-<attribute>` in that source's raw scale. One row per (response, source).
        pairs: prompt, chosen, rejected, source (annotator pool), subset (domain), margin (null).
        truth: what generated them.
        scorers: text_id and one float64 column per scorer, each on a scale of its own.
        scales: objective -> (lowest, highest) raw rating.
    """

    ratings: pa.Table
    pairs: pa.Table
    truth: Truth
    scorers: pa.Table
    scales: dict[str, tuple[float, float]]


class _Texts(NamedTuple):
    """The prompts, the N responses, and of each response its prompt, domain and attributes."""

    prompts: list[list[dict[str, str]]]
    responses: list[str]
    prompt: Indices
    domain: Indices
    attributes: Array

    def asked(self, rows: Indices) -> pa.Array:
        """Returns the prompts that these responses answer."""
        return pa.array([self.prompts[self.prompt[i]] for i in rows], PROMPT)

    def said(self, rows: Indices) -> list[str]:
        """Returns the texts of these responses."""
        return [self.responses[i] for i in rows]


class _Pairs(NamedTuple):
    """Response numbers and pool `[P]`, and the margin `[P]` that the pool sees."""

    first: Indices
    second: Indices
    pool: Indices
    margin: Array


def make_world(
    seed: int,
    *,
    num_prompts: int = 600,
    num_responses: int = 4,
    homogeneous: bool = False,
    conflict: float = 0.0,
    num_scorers: int = 4,
) -> PlantedWorld:
    """Generates a world in which what is preferred is known.

    Args:
        seed: same seed and sizes, same world.
        num_prompts: distinct prompts, spread evenly over the domains.
        num_responses: distinct responses per prompt; all their combinations become pairs.
        homogeneous: every domain gets the same weights, the mean over domains. Texts and ratings
            stay the same.
        conflict: c in [0, 1]; pool k labels with (1 - c) w_d + c u_k, u_k a simplex draw of its
            own. Texts and ratings stay the same.
        num_scorers: specialized noisy scorers of every response.

    Raises:
        ValueError: a number is out of its range; the message says which range.
    """
    _check(num_prompts, num_responses, conflict, num_scorers)
    # One stream per part of the world, so that a flag that changes one part leaves the others.
    text_rng, rating_rng, weight_rng, label_rng, scorer_rng = (
        np.random.default_rng([seed, stream]) for stream in range(5)
    )
    texts = _draw_texts(text_rng, num_prompts, num_responses)
    weights, pool_weights = _draw_weights(weight_rng, homogeneous, conflict)
    reward = np.einsum("na,na->n", texts.attributes, weights[texts.domain])
    pairs = _draw_pairs(label_rng, texts, pool_weights)
    temperature = _solve_temperature(pairs.margin)
    first_wins = _draw_labels(label_rng, pairs.margin, temperature)
    scorers, scorer_domains = _score(scorer_rng, reward, texts.domain, num_scorers)
    ids = [text_id(texts.prompts[q], y) for q, y in zip(texts.prompt, texts.responses, strict=True)]
    names = np.array(list(DOMAINS))[texts.domain]
    columns = dict(zip(ATTRIBUTES, texts.attributes.T, strict=True))
    truth = Truth(
        attributes=ATTRIBUTES,
        domains=tuple(DOMAINS),
        weights=weights,
        pools=tuple(POOLS),
        pool_weights=pool_weights,
        responses=pa.table({"text_id": ids, "domain": names, **columns, "reward": reward}),
        agreement=float(np.mean((first_wins == (pairs.margin > 0))[pairs.margin != 0])),
        temperature=temperature,
        objectives={name: attribute for name, _, attribute in rated_objectives()},
        scorer_domains=scorer_domains,
    )
    return PlantedWorld(
        ratings=_ratings_table(rating_rng, texts),
        pairs=_pairs_table(texts, pairs, first_wins),
        truth=truth,
        scorers=pa.table({"text_id": ids, **scorers}),
        scales={name: (source.low, source.high) for name, source, _ in rated_objectives()},
    )


def _check(num_prompts: int, num_responses: int, conflict: float, num_scorers: int) -> None:
    most = len(DOMAINS) * min(len(d.templates) * len(d.subjects) for d in DOMAINS.values())
    if not len(DOMAINS) <= num_prompts <= most:
        raise ValueError(
            f"num_prompts must be in [{len(DOMAINS)}, {most}] (at least one per domain, at most "
            f"the distinct prompts there are), got {num_prompts!r}"
        )
    if not 2 <= num_responses <= 64:
        raise ValueError(f"num_responses must be in [2, 64], got {num_responses!r}")
    if not 0.0 <= conflict <= 1.0:
        raise ValueError(f"conflict must be in [0, 1], got {conflict!r}")
    if num_scorers < 1:
        raise ValueError(f"num_scorers must be at least 1, got {num_scorers!r}")


def _draw_texts(rng: np.random.Generator, num_prompts: int, num_responses: int) -> _Texts:
    domain = rng.permutation(np.arange(num_prompts) % len(DOMAINS))
    # The cells (template, subject) of a domain, each to be asked at most once.
    cells = [rng.permutation(len(d.templates) * len(d.subjects)).tolist() for d in DOMAINS.values()]
    prompts: list[list[dict[str, str]]] = []
    responses: list[str] = []
    levels: list[tuple[int, ...]] = []
    for words, left in ((list(DOMAINS.values())[d], cells[d]) for d in domain):
        template, number = divmod(left.pop(), len(words.subjects))
        subject = words.subjects[number]
        content = words.templates[template].format(subject=subject)
        prompts.append([{"role": "user", "content": content}])
        drawn = _draw_levels(rng, num_responses)
        responses += [respond(rng, row, subject) for row in drawn]
        levels += drawn
    columns: list[Array] = []
    for axis, level in zip(AXES, np.array(levels).T / 2.0, strict=True):
        columns += [level] if len(axis.attributes) == 1 else [level, 1.0 - level]
    prompt = np.repeat(np.arange(num_prompts), num_responses)
    return _Texts(prompts, responses, prompt, domain[prompt], np.stack(columns, axis=1))


def _draw_levels(rng: np.random.Generator, num_responses: int) -> list[tuple[int, ...]]:
    """Returns the levels 0, 1, 2 on every axis of the responses to one prompt, all different."""
    bounds = np.cumsum([axis.shares for axis in AXES], axis=1)[:, :2]
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < num_responses:
        row = (rng.random((len(AXES), 1)) > bounds).sum(axis=1)
        drawn[tuple(row.tolist())] = None
    return list(drawn)


def _draw_weights(
    rng: np.random.Generator, homogeneous: bool, conflict: float
) -> tuple[Array, Array]:
    """Returns the weights `[D, A]` of the domains and `[K, D, A]` of the pools in them."""
    likes = np.array([[d.likes.get(name, 0.0) for name in ATTRIBUTES] for d in DOMAINS.values()])
    weights = 0.9 * likes + 0.1 * rng.dirichlet(np.ones(len(ATTRIBUTES)), size=len(DOMAINS))
    # A small concentration: a pool cares about few attributes.
    own = rng.dirichlet(np.full(len(ATTRIBUTES), 0.3), size=len(POOLS))
    if homogeneous:
        weights = np.tile(weights.mean(axis=0), (len(DOMAINS), 1))
    return weights, (1.0 - conflict) * weights + conflict * own[:, None, :]


def _draw_pairs(rng: np.random.Generator, texts: _Texts, pool_weights: Array) -> _Pairs:
    """Returns all pairs within prompts; the pairs of a prompt go to one pool."""
    num_prompts = len(texts.prompts)
    num_responses = len(texts.responses) // num_prompts
    affinity = np.array(
        [[MAIN_AFFINITY if d in main else 1.0 for main in POOLS.values()] for d in DOMAINS]
    )
    bounds = np.cumsum(affinity / affinity.sum(axis=1, keepdims=True), axis=1)[:, :-1]
    domain = texts.domain[::num_responses]
    pool_of = (rng.random((num_prompts, 1)) > bounds[domain]).sum(axis=1)
    inside = np.array(list(combinations(range(num_responses), 2)))
    numbers = (num_responses * np.arange(num_prompts)[:, None, None] + inside).reshape(-1, 2)
    first, second = numbers.T
    pool = pool_of[texts.prompt[first]]
    difference = texts.attributes[first] - texts.attributes[second]
    margin = np.einsum("pa,pa->p", difference, pool_weights[pool, texts.domain[first]])
    # Equal rewards may differ in the last bit, which is no sign to agree with.
    return _Pairs(first, second, pool, np.where(np.abs(margin) < 1e-12, 0.0, margin))


def _solve_temperature(margin: Array) -> float:
    """Returns t with mean sigma(t |margin|) = AGREEMENT over the pairs with a margin."""
    size = np.abs(margin[margin != 0])

    def excess(temperature: float) -> float:
        return float(np.mean(expit(temperature * size))) - AGREEMENT

    return float(root_scalar(excess, bracket=(0.0, 1e6)).root)


def _draw_labels(rng: np.random.Generator, margin: Array, temperature: float) -> Flags:
    """Returns `[P]` whether the first wins: Bernoulli(sigma(t margin)), sampled systematically.

    Each label is Bernoulli; over a random order the disagreements are spread so evenly that their
    number misses its expectation by less than one, so AGREEMENT is met also in a small world.
    """
    order = rng.permutation(len(margin))
    steps = np.cumsum(expit(-temperature * np.abs(margin))[order]) + rng.random()
    flips = np.zeros(len(margin), dtype=np.bool_)
    flips[order] = np.diff(np.floor(steps), prepend=0.0) > 0
    return (margin > 0) ^ flips


def _score(
    rng: np.random.Generator, reward: Array, domain: Indices, num_scorers: int
) -> tuple[dict[str, Array], tuple[tuple[str, ...], ...]]:
    """Returns scores `[N]` by scorer, on scales of their own, and each scorer's domains."""
    names = tuple(DOMAINS)
    scores: dict[str, Array] = {}
    own: list[tuple[str, ...]] = []
    standard = (reward - reward.mean()) / reward.std()
    for k in range(num_scorers):
        mine = [d for d in range(len(names)) if d % num_scorers == k or d == k % len(names)]
        own.append(tuple(names[d] for d in mine))
        noise = np.where(np.isin(domain, mine), 0.3, 2.0) * rng.standard_normal(len(reward))
        scale, offset = 10 ** rng.uniform(-1, 1.5), rng.normal(scale=10)
        scores[f"scorer_{k}"] = offset + scale * (standard + noise)
    return scores, tuple(own)


def _ratings_table(rng: np.random.Generator, texts: _Texts) -> pa.Table:
    shape = (len(texts.responses), len(RATING_SOURCES))
    raters = np.argsort(rng.random(shape), axis=1)[:, :RATERS_PER_RESPONSE]
    rater = np.sort(raters, axis=1).ravel()
    response = np.repeat(np.arange(shape[0]), RATERS_PER_RESPONSE)
    scores = {name: np.full(len(rater), np.nan) for name, _, _ in rated_objectives()}
    for k, (name, source) in enumerate(RATING_SOURCES.items()):
        rows = np.flatnonzero(rater == k)
        rated = [ATTRIBUTES.index(attribute) for attribute in source.attributes]
        values = rate(rng, source, texts.attributes[response[rows]][:, rated])
        for attribute, column in zip(source.attributes, values.T, strict=True):
            scores[f"{name}-{attribute}"][rows] = column
    return pa.table(
        {
            "prompt": texts.asked(response),
            "response": texts.said(response),
            "source": np.array(list(RATING_SOURCES))[rater],
            "subset": np.array(list(DOMAINS))[texts.domain[response]],
            **{name: pa.array(s, pa.float32(), from_pandas=True) for name, s in scores.items()},
        }
    )


def _pairs_table(texts: _Texts, pairs: _Pairs, first_wins: Flags) -> pa.Table:
    return pa.table(
        {
            "prompt": texts.asked(pairs.first),
            "chosen": texts.said(np.where(first_wins, pairs.first, pairs.second)),
            "rejected": texts.said(np.where(first_wins, pairs.second, pairs.first)),
            "source": np.array(list(POOLS))[pairs.pool],
            "subset": np.array(list(DOMAINS))[texts.domain[pairs.first]],
            "margin": pa.nulls(len(pairs.first), pa.float32()),
        }
    )
