"""Pairs of a preference run: files -> canonical rows -> token trees, checked before training.

Legend: `P` pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from actors.reward_trainer import PairRows
from panoply.config.preference import Mixed, PairTrainingConfig
from panoply.data.ingest import IngestLimits, ingest_pairs
from panoply.data.parquet import row_batches
from panoply.data.read import Input, named_inputs
from panoply.data.schema import digest, uniform
from panoply.data.split import check_parts
from panoply.data.summary import summary_lines
from panoply.data.tables import PairTable, load_pairs
from panoply.data.tokens import TokenPairs, write_tokens
from panoply.hub.backbone.pretrained import load_renderer, resolve
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.loading import load_config
from panoply.hub.policy.first_head import describe_first_head
from panoply.model.tree import TokenTree
from panoply.preference.batch_sampler import BatchSampler
from panoply.report.progress import Advance, RunLogger
from panoply.synthetic.planted import make_world
from panoply.types import Array, Bools, Ints


@dataclass(frozen=True, slots=True)
class Preferences:
    """Pairs of a run in all parts, without their texts, which stay in the file."""

    path: Path
    table: PairTable
    names: tuple[str, ...]
    """Id of each pair's texts."""
    margin_P: Array
    weight_P: Array
    flipped_P: Bools
    """Whether the label was flipped on purpose; never in *test*."""
    summary: Mapping[str, Any]

    @property
    def signs_P(self) -> Ints:
        """Sign of each label: -1 where it was flipped, else 1."""
        return np.where(self.flipped_P, -1, 1)


def read_pairs(
    config: PairTrainingConfig, folder: Path, logger: RunLogger | None = None
) -> Preferences:
    """Reads, checks and splits the pairs of a run, and tells what was read.

    Pairs whose prompt the backbone's chat template refuses go to quarantine.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: an input that cannot be used; the message says why and what to do.
    """
    inputs = named_inputs(config.pairs, config)
    if (planted := config.planted) is not None:
        world = make_world(
            config.seed,
            num_prompts=planted.num_prompts,
            num_responses=planted.num_responses,
            homogeneous=planted.homogeneous,
        )
        inputs = [Input(world.pairs)]
    limits = IngestLimits(
        max_rows_per_source=config.max_pairs_per_source or None,
        max_quarantine_share=config.max_quarantine_share,
    )
    renderer = load_renderer(config.backbone.model, config.backbone.rendering)
    ingested = ingest_pairs(inputs, folder, limits, renderer.refusal)
    if logger:
        for line in summary_lines(ingested):
            logger.info(line)
    parts = check_parts(ingested.path, config.seed)
    table = load_pairs(ingested.path, seed=config.seed, num_folds=2)
    columns = pq.read_table(ingested.path, columns=["row_id", "margin", "weight"])
    rows = columns["row_id"].to_pylist()
    flipped = [uniform(config.seed, "flip", row) < config.flipped for row in rows]
    margin_P = columns["margin"].to_numpy(zero_copy_only=False).astype(np.float64)
    weight_P = columns["weight"].to_numpy(zero_copy_only=False).astype(np.float64)
    if config.loss.use_margin and np.isnan(margin_P).all():
        raise ValueError(
            "`loss.use_margin` is set, but no pair has a `margin`: add the column, or leave it out"
        )
    weight_P = np.nan_to_num(weight_P, nan=1.0)
    if not (np.isfinite(weight_P).all() and (weight_P >= 0).all()):
        raise ValueError(f"`weight` of pairs must be >= 0 and finite, got {weight_P.min():g}")
    return Preferences(
        path=ingested.path,
        table=table,
        names=tuple(digest(a, b) for a, b in zip(table.chosen_P, table.rejected_P, strict=True)),
        margin_P=np.nan_to_num(margin_P),
        weight_P=weight_P,
        flipped_P=np.array(flipped, dtype=np.bool_) & (table.split.part_N != "test"),
        summary={
            "id": digest(*sorted(rows)),
            "rows": len(rows),
            "parts": parts,
            "by_source": dict(ingested.num_rows),
            "quarantined": dict(ingested.num_quarantined),
            "flipped": int(np.sum(flipped)),
        },
    )


def tokenize(
    config: PairTrainingConfig, preferences: Preferences, path: Path, logger: RunLogger
) -> tuple[TokenPairs, dict[str, int]]:
    """Renders all pairs once; returns the trees, and counts of texts that the token limits cut.

    The limits keep a prompt's last tokens, and a response's first ones with the closing tokens.

    Raises:
        ValueError: a token is not in the model's vocabulary, as happens where tokens were added to
            the tokenizer but not to the model.
    """
    if line := describe_first_head(config.backbone, config.num_heads):
        logger.info(line)
    renderer = load_renderer(config.backbone.model, config.backbone.rendering)
    cut = {"prompts_cut": 0, "responses_cut": 0}
    if not path.exists():
        with logger.bar("rendering pairs", preferences.summary["rows"]) as advance:
            write_tokens(path, _rendered(renderer, preferences.path, cut, advance), cut)
    tokens = TokenPairs.open(path)
    size = int(load_config(Path(resolve(config.backbone.model))).vocab_size)
    largest = int(tokens.column("largest_id").max())
    if largest >= size:
        word = renderer.tokenizer.convert_ids_to_tokens(largest)
        raise ValueError(
            f"token {word!r} has id {largest}, but {config.backbone.model!r} has {size} "
            "embeddings: resize them to the tokenizer's length and save the model again"
        )
    return tokens, dict(tokens.notes)


def _rendered(
    renderer: Renderer, path: Path, cut: dict[str, int], advance: Advance
) -> Iterator[TokenTree]:
    """Yields the trees of a file of pairs; counts in `cut` what the token limits cut."""
    with pq.ParquetFile(path) as file:
        for batch in row_batches(file, 256, ["prompt", "chosen", "rejected"]):
            rows = batch.to_pylist()
            pairs = [(row["prompt"], (row["chosen"], row["rejected"])) for row in rows]
            for rendered in renderer.render_all(pairs):
                cut["prompts_cut"] += rendered.prompt_tokens_cut > 0
                cut["responses_cut"] += rendered.num_responses_cut
                yield rendered.tree
            advance(len(batch))


def training_rows(
    config: PairTrainingConfig, preferences: Preferences, tokens: TokenPairs
) -> tuple[PairRows, tuple[str, ...], dict[str, Any]]:
    """Selects the pairs to train on and numbers the sources; returns both and their statistics.

    Left out of training: pairs whose responses are the same tokens once cut, and pairs of weight 0.
    A source without a pair to train on is named, and evaluated all the same.

    Raises:
        ValueError: nothing is left to train on, or sources cannot share a step.
    """
    table, part_P = preferences.table, preferences.table.split.part_N
    usable_P = ~tokens.alike() & (preferences.weight_P > 0)
    train = np.flatnonzero((part_P == "train") & usable_P)
    if not len(train):
        raise ValueError("no pair is left to train on: all are alike once cut, or have weight 0")
    trained = sorted(set(table.source_P[train]))
    others = sorted(set(table.source_P) - set(trained))
    number = {source: i for i, source in enumerate([*trained, *others])}
    source_P = np.array([number[source] for source in table.source_P], dtype=np.int64)
    balanced = not isinstance(config.weighting, Mixed)
    sampler = BatchSampler(source_P[train], config.schedule.pairs_per_step, config.seed, balanced)
    num_steps = sampler.steps_per_epoch * config.schedule.num_epochs
    epochs = sampler.epochs_per_source(num_steps)
    rows = PairRows(
        source_P=source_P,
        label_P=np.where(preferences.flipped_P, 0.0, 1.0),
        margin_P=preferences.margin_P,
        weight_P=preferences.weight_P,
        train=train,
        select=np.flatnonzero(part_P == "select"),
        scored=np.flatnonzero(part_P != "train"),
    )
    statistics = {
        "alike_when_cut": int(tokens.alike().sum()),
        "without_training_pairs": others,
        "passes": dict(zip(trained, epochs, strict=True)),
        "num_steps": num_steps,
    }
    return rows, tuple(trained), statistics
