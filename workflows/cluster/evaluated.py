"""Scorers that are evaluated: any WHERE, opened in the driver, and asked for the texts of pairs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from panoply.config import Rendering
from panoply.config.evaluate import CrossEvalConfig, EvaluateConfig
from panoply.config.merge import MergeConfig
from panoply.config.serve import ServedModelConfig
from panoply.data.ingest import Ingested, IngestLimits, Refusal, ingest_pairs
from panoply.data.read import named_inputs
from panoply.data.schema import Prompt, digest, text_id
from panoply.data.summary import summary_lines
from panoply.data.tables import PairTable, load_pairs
from panoply.hub.artefact.manifest import Manifest, ScalarManifest, read_manifest
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.checkpoint import read_fields
from panoply.hub.door.fetch import check_holds_model, fetch
from panoply.hub.published.layouts import is_pairwise, scores_steps
from panoply.hub.published.loading import load_chat_tokenizer
from panoply.report.progress import RunLogger
from panoply.scorers.composite.opening import read_composite
from panoply.scorers.where import CombinedScorers, LocalModel, open_scorer, parse_where
from panoply.types import Bools, Strings
from panoply.wire.request import Chat, Score
from workflows.cluster.embed import TextFiles, open_workers
from workflows.cluster.resolve_model import model_in_process, resolve_model
from workflows.cluster.score import Shards, TextScores, is_seen, score_texts

PROMPTS_AT_ONCE = 64
"""Prompts whose responses are sent to a scorer in one call."""


@dataclass(frozen=True, slots=True)
class EvaluatedScorer:
    """A scorer that is evaluated, and what is known of its training."""

    where: str
    """As it was named."""
    folder: Path | None
    """Folder of a reward model; None of any other scorer."""
    manifest: Manifest | ScalarManifest | None
    """The record of a model of ours; None of any other scorer, which has none."""
    has_steps: bool = False
    """True of a process reward model, whose scores are no log odds."""

    @property
    def model(self) -> str:
        """Folder of a reward model as it is loaded, with the rule of its steps."""
        place = parse_where(self.where)
        assert isinstance(place, LocalModel)
        return place.at(str(self.folder))

    @property
    def seed(self) -> int:
        """Seed of the split into parts that it was trained with; 0 where it is not known."""
        return self.manifest.seed if self.manifest else 0

    @property
    def temperature(self) -> float:
        """Score differences divided by it are log odds; NaN where they carry no probability.

        Published reward models are trained with Bradley-Terry's loss, whose temperature is 1.
        """
        if self.manifest:
            return self.manifest.temperature
        place = parse_where(self.where)
        if isinstance(place, CombinedScorers):
            fitted = read_composite(Path(place.file).expanduser()).fitted
            return fitted.temperature or float("nan") if fitted else float("nan")
        return 1.0 if self.folder and not self.has_steps else float("nan")

    @property
    def scale(self) -> float:
        """Factor of score differences to log odds, 1 over the temperature; 0: there is none."""
        return 1 / self.temperature if np.isfinite(self.temperature) else 0.0

    def is_seen(self, keys: Strings) -> Bools:
        """Returns which split keys it was trained or chosen on, as far as that is known."""
        if self.folder is None or self.manifest is None:
            return np.zeros(len(keys), dtype=np.bool_)
        return is_seen(keys, self.folder)


def open_evaluated(where: str) -> EvaluatedScorer:
    """Returns a scorer by its WHERE, after looking at it; no model is loaded.

    Raises:
        ValueError, OSError: there is no such scorer, or it has no score of a single response.
    """
    resolved = resolve_model(ServedModelConfig(name="scorer", where=where)).where
    model = parse_where(resolved)
    if not isinstance(model, LocalModel):
        return EvaluatedScorer(where, None, None)
    folder = fetch(model.path)
    check_holds_model(folder)
    if (folder / "panoply.json").is_file():
        return EvaluatedScorer(where, folder, read_manifest(folder))
    has_steps = False
    if not (folder / "adapter_config.json").is_file():
        fields = read_fields(folder / "config.json")
        has_steps = scores_steps(fields)
        if is_pairwise(folder, fields):
            raise ValueError(
                f"{where!r} is a pairwise model, which has no score of a single response: name a "
                "reward model with a head, or rank by a tournament (jobs.serve)"
            )
        load_chat_tokenizer(folder)
    return EvaluatedScorer(where, folder, None, has_steps=has_steps)


def refusal_of(scorers: Sequence[EvaluatedScorer]) -> Refusal | None:
    """Returns why any of the reward models cannot read a prompt; None where there is none.

    Such a prompt would have no score by that model, and all are compared on the same pairs. Of
    adapters nothing is told, whose template may be that of their base.
    """
    renderers: dict[str, Renderer] = {}
    for scorer in scorers:
        if scorer.folder is None or (scorer.folder / "adapter_config.json").is_file():
            continue
        rendering = scorer.manifest.rendering if scorer.manifest else Rendering()
        renderers[scorer.where] = Renderer(load_chat_tokenizer(scorer.folder), rendering)
    if not renderers:
        return None

    def refusal(prompt: Prompt) -> str:
        for where, renderer in renderers.items():
            if reason := renderer.refusal(prompt):
                return f"{where}: {reason}"
        return ""

    return refusal


def ingest_evaluated(
    config: EvaluateConfig | CrossEvalConfig | MergeConfig,
    scorers: Sequence[EvaluatedScorer],
    folder: Path,
    logger: RunLogger,
) -> Ingested:
    """Reads the pairs that scorers are evaluated on, and tells what was read.

    Raises:
        FileNotFoundError, ValueError: see `panoply.data.ingest.ingest_pairs`.
    """
    limits = IngestLimits(
        max_rows_per_source=config.max_pairs_per_source or None,
        max_quarantine_share=config.max_quarantine_share,
    )
    inputs = named_inputs(config.pairs, config)
    ingested = ingest_pairs(inputs, folder, limits, refusal_of(scorers))
    for line in summary_lines(ingested):
        logger.info(line)
    return ingested


def without_train(path: Path, seed: int) -> Path:
    """Returns a file of the pairs outside *train*: what is not looked at is not asked about."""
    part_P = load_pairs(path, seed=seed, num_folds=2).split.part_N
    kept = path.with_name("pairs-without-train.parquet")
    pq.write_table(pq.read_table(path).filter(part_P != "train"), kept)
    return kept


def scorer_labels(scorers: Sequence[EvaluatedScorer]) -> list[str]:
    """Returns a short name of each scorer: its folder's, or its run's for `RUN/model`."""
    names: list[str] = []
    for scorer in scorers:
        folder = scorer.folder
        is_local = Path(scorer.where).expanduser().is_dir()
        if folder is None or not is_local:  # one of the hub or the registry has no speaking name
            names.append(scorer.where)
        else:
            names.append(folder.parent.name if folder.name == "model" else folder.name)
    return names if len(set(names)) == len(names) else [scorer.where for scorer in scorers]


def score_all(
    scorers: Sequence[EvaluatedScorer],
    pairs: Path,
    num_workers: int,
    logger: RunLogger,
    prompts: frozenset[str] | None = None,
) -> list[TextScores]:
    """Returns the scores of all texts of a file by each scorer.

    Reward models score on the cluster or in local processes; functions and other servers are asked
    by the driver.

    Args:
        scorers: whose scores are wanted.
        pairs: canonical file.
        num_workers: most processes or actors.
        logger: of the run.
        prompts: ids of the prompts whose responses reward models score; None: all.
    """
    results: list[TextScores] = []
    with ExitStack() as stack:
        workers = shards = None
        if any(scorer.folder for scorer in scorers):
            workers = stack.enter_context(open_workers(num_workers, logger))
            shards = Shards.of(TextFiles(pairs=(str(pairs),)), workers, prompts)
        for scorer in scorers:
            logger.info(f"scoring with {scorer.where}")
            if scorer.folder and workers and shards:
                results.append(score_texts(shards, scorer.model, workers, logger))
            else:
                results.append(score_by_driver(scorer.where, pairs, logger))
    return results


def score_by_driver(where: str, pairs: Path, logger: RunLogger) -> TextScores:
    """Scores the texts of pairs by a scorer that is no local model; what failed is NaN.

    Args:
        where: function, endpoint or recorded scores.
        pairs: canonical file.
        logger: of the run.

    Raises:
        ValueError: no text has a score.
    """
    items, ids = prompt_items(pairs)
    scores = asyncio.run(_ask(where, items, logger))
    value_N = np.array([np.nan if score.score is None else score.score for score in scores])
    failed = [score.error for score in scores if score.score is None]
    reason = str(failed[0]).partition(": ")[0] if failed else ""  # what follows may quote a text
    if len(failed) == len(scores):
        raise ValueError(f"{where!r} gave no score to any of {len(ids):,} texts: {reason}")
    if failed:
        logger.info(f"{where}: {len(failed):,} of {len(ids):,} texts have no score ({reason})")
    return TextScores(
        row={name: i for i, name in enumerate(ids)},
        scores={"score": value_N},
        per_source={},
        weights_NO=None,
        num_cut_N=None,
    )


def truncation_of(scored: TextScores) -> Mapping[str, int] | None:
    """Returns how many texts and tokens a model's limits cut; None of a scorer that has none."""
    if scored.num_cut_N is None:
        return None
    return {"texts": int((scored.num_cut_N > 0).sum()), "tokens": int(scored.num_cut_N.sum())}


async def _ask(where: str, items: Sequence[Chat], logger: RunLogger) -> list[Score]:
    config = ServedModelConfig(name="scorer", where=where)
    scorer = open_scorer(config, open_model=model_in_process)
    scores: list[Score] = []
    with logger.bar("scoring texts", sum(len(item.responses) for item in items)) as advance:
        for start in range(0, len(items), PROMPTS_AT_ONCE):
            for row in await scorer.score(items[start : start + PROMPTS_AT_ONCE]):
                scores += row
                advance(len(row))
    return scores


def prompt_items(pairs: Path) -> tuple[list[Chat], list[str]]:
    """Returns each prompt with all of its responses once, and the ids of the texts.

    Responses stand in the order of their ids, which are hashes: a scorer that likes the first of
    those that it sees together must not find the better one there.
    """
    prompts: dict[str, list[dict[str, Any]]] = {}
    responses: dict[str, dict[str, None]] = {}
    columns = ["prompt_id", "prompt", "chosen", "rejected"]
    for batch in pq.ParquetFile(pairs).iter_batches(columns=columns):
        for row in batch.to_pylist():
            prompts.setdefault(row["prompt_id"], row["prompt"])
            texts = responses.setdefault(row["prompt_id"], {})
            texts |= {row["chosen"]: None, row["rejected"]: None}
    items, ids = list[Chat](), list[str]()
    for key, prompt in prompts.items():
        turns: Any = [{k: v for k, v in turn.items() if v is not None} for turn in prompt]
        by_id = {text_id(turns, response): response for response in responses[key]}
        order = sorted(by_id)
        items.append(Chat(tuple(turns), tuple(by_id[name] for name in order)))
        ids += order
    return items, ids


def data_entry(pairs: PairTable, files: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns what trackers keep of the pairs that are evaluated."""
    pair_ids = [digest(a, b) for a, b in zip(pairs.chosen_P, pairs.rejected_P, strict=True)]
    return {"pairs": {"id": digest(*sorted(pair_ids)), "rows": len(pair_ids), "files": files}}
