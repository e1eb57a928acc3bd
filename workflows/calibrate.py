"""Fitting a composite: pairs -> scores of every part -> statistics, weights, threshold -> its file.

    select (and train, where no part was trained on it)   means, deviations, weights, thresholds
    calibrate                                             temperature of the composite
    test                                                  what each part adds, only reported

Beside the composite stand its plain rivals: the part that is best on the fitted pairs, the mean and
the median of the parts, the composite without each part; of an escalation random calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from panoply.config import as_dict, require
from panoply.config.calibrate import CalibrateConfig
from panoply.config.composite import (
    CompositeConfig,
    Escalation,
    Hierarchy,
    Mean,
    Median,
    PooledRule,
)
from panoply.config.composite_fit import CompositeFit
from panoply.config.serve import ServedModelConfig
from panoply.data.ingest import IngestLimits, ingest_pairs
from panoply.data.read import named_inputs
from panoply.data.schema import digest
from panoply.data.summary import summary_lines
from panoply.data.tables import PairTable, load_pairs
from panoply.files import write_json
from panoply.measure.calibration import fit_scale
from panoply.measure.pair_report import compare
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.scorers.composite.calibration import (
    ScoredPairs,
    accuracy,
    composite_values,
    fit_parts,
    fit_threshold,
    with_fit,
    with_parts,
)
from panoply.scorers.composite.escalation import (
    fit_escalation,
    fused_log_odds,
    group_unit,
    pooled_spread,
)
from panoply.scorers.composite.fitted_file import write_fit
from panoply.scorers.composite.opening import part_places, read_composite
from panoply.scorers.where import open_scorer
from panoply.types import Array, Ints
from panoply.wire.request import Chat
from workflows.cluster.evaluated import (
    EvaluatedScorer,
    data_entry,
    open_evaluated,
    prompt_items,
    refusal_of,
    score_all,
    without_train,
)
from workflows.cluster.resolve_model import model_in_process
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers

PAIRS_AT_ONCE = 64
"""Pairs about which a part is asked in one call."""


@one_writer
def run_calibrate(config: CalibrateConfig, logger: RunLogger) -> dict[str, Any]:
    """Fits a composite, writes its file, and returns the metrics that it leaves in `OUT`.

    Raises:
        FileNotFoundError, ValueError: no such file or part, unusable pairs, or none to fit on.
    """
    out, file = run_folder(config.out), Path(config.composite).expanduser()
    target = Path(config.write).expanduser() if config.write else file
    beside = target.absolute().parent == file.absolute().parent
    allowed = "a file in the folder of the composite's, from which its parts' paths are looked up"
    require(beside, "write", config.write, allowed)
    composite = read_composite(file, is_fitted=False)
    places = part_places(file, composite)
    scorers = {name: open_evaluated(where) for name, where in places.items()}
    trackers = open_trackers(config, out)
    check_folder(out, config)
    path, pairs = _read_pairs(config, out, list(scorers.values()), logger)
    claim(out, config, {"pairs": digest(*pairs.chosen_P, *pairs.rejected_P)})
    rows = np.flatnonzero(np.isin(pairs.split.part_N, ["train", "select"]))
    test = pairs.split.of("test")
    if not (len(rows) and len(test)):
        raise ValueError(
            f"{len(rows)} pairs to fit on and {len(test)} to report: give more `--pairs`, or fit "
            "on *train* too with `--fit-on-train` where no part was trained on them"
        )
    tags = {"method": "calibrate", "composite": str(file), "rule": composite.rule.kind}
    with trackers.run(as_dict(config), tags, logger, data=data_entry(pairs, config.pairs)):
        scored = _scored(path, pairs, composite, scorers, config.num_workers, logger)
        composite, margins, findings = _fit(config, composite, places, scored, pairs, rows, logger)
        assert composite.fitted is not None
        write_fit(file, target, composite.fitted)
        calibrated = {
            "rows": _report(margins, pairs, test),
            "findings": findings,
            "num_pairs": {"fitted": len(rows), "test": len(test)},
            "temperature": composite.fitted.temperature,
            "written": str(target),
        }
        metrics = {"calibrated": calibrated, "git_commit": git_commit()}
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return metrics


def _fit(
    config: CalibrateConfig,
    composite: CompositeConfig,
    places: Mapping[str, str],
    scored: ScoredPairs,
    pairs: PairTable,
    rows: Ints,
    logger: RunLogger,
) -> tuple[CompositeConfig, dict[str, Array], list[str]]:
    """Returns the fitted composite, the margins of it and its rivals, and what is to be said."""
    rule = composite.rule
    parts = {} if isinstance(rule, Escalation) else fit_parts(composite, scored, rows)
    base = CompositeFit(pairs=config.pairs, num_pairs=len(rows), parts=parts)
    composite = replace(composite, fitted=base)
    if isinstance(rule, Hierarchy):
        composite = with_fit(composite, threshold=fit_threshold(composite, scored, rows))
    if isinstance(rule, Escalation):
        verdict_P = _verdicts(rule, places[rule.second], scored, logger)
        composite, margins, findings = _escalation(composite, rule, scored, verdict_P, pairs, rows)
    else:
        margins, findings = _pooled_rows(composite, scored, rows)
    scale = fit_scale(margins["composite"][pairs.split.of("calibrate")])
    return with_fit(composite, temperature=1 / scale if scale else None), margins, findings


def _read_pairs(
    config: CalibrateConfig, out: Path, scorers: Sequence[EvaluatedScorer], logger: RunLogger
) -> tuple[Path, PairTable]:
    """Returns the canonical file of the pairs that are scored, and its table."""
    limits = IngestLimits(
        max_rows_per_source=config.max_pairs_per_source or None,
        max_quarantine_share=config.max_quarantine_share,
    )
    inputs = named_inputs(config.pairs, config)
    ingested = ingest_pairs(inputs, out / "data", limits, refusal_of(scorers))
    for line in summary_lines(ingested):
        logger.info(line)
    seed = next((scorer.seed for scorer in scorers if scorer.manifest), 0)
    path = ingested.path if config.fit_on_train else without_train(ingested.path, seed)
    return path, load_pairs(path, seed=seed, num_folds=2)


def _scored(
    path: Path,
    pairs: PairTable,
    composite: CompositeConfig,
    scorers: Mapping[str, EvaluatedScorer],
    num_workers: int,
    logger: RunLogger,
) -> ScoredPairs:
    """Returns the pairs with the scores of all parts; of a part that compares pairs, none yet."""
    items, ids = prompt_items(path)
    rule = composite.rule
    compares = isinstance(rule, Escalation) and rule.asks == "pairs"
    second = rule.second if isinstance(rule, Escalation) and compares else ""
    rating = {name: scorer for name, scorer in scorers.items() if name != second}
    results = score_all(list(rating.values()), path, num_workers, logger)
    values = {
        name: next(iter(result.scores.values()))[[result.row[key] for key in ids]]
        for name, result in zip(rating, results, strict=True)
    }
    place = {key: number for number, key in enumerate(ids)}
    chosen_P = np.array([place[key] for key in pairs.chosen_P], np.int64)
    rejected_P = np.array([place[key] for key in pairs.rejected_P], np.int64)
    return ScoredPairs(items, values, chosen_P, rejected_P)


def _verdicts(rule: Escalation, where: str, scored: ScoredPairs, logger: RunLogger) -> Array:
    """Returns the second part's margins `[P]`, NaN where it gave none.

    A part that compares sees the two responses in the order of the texts, which does not depend on
    the label.
    """
    if rule.asks == "responses":
        return scored.margins(scored.values[rule.second])
    texts = scored.texts()
    questions: list[Chat] = []
    signs: list[float] = []
    for chosen, rejected in zip(scored.chosen_P.tolist(), scored.rejected_P.tolist(), strict=True):
        a, b = sorted((chosen, rejected))
        questions.append(Chat(texts[a][0], (texts[a][1], texts[b][1])))
        signs.append(1.0 if a == chosen else -1.0)
    margins = asyncio.run(_ask_pairs(rule.second, where, questions, logger))
    return np.array(signs) * np.array(margins)


async def _ask_pairs(
    name: str, where: str, items: Sequence[Chat], logger: RunLogger
) -> list[float]:
    scorer = open_scorer(ServedModelConfig(name=name, where=where), open_model=model_in_process)
    margins: list[float] = []
    with logger.bar("asking about pairs", len(items)) as advance:
        for start in range(0, len(items), PAIRS_AT_ONCE):
            for a, b in await scorer.score(items[start : start + PAIRS_AT_ONCE]):
                if a.score is None or b.score is None:
                    margins.append(np.nan)
                else:
                    margins.append(a.score - b.score)
                advance(1)
    return margins


def _escalation(
    composite: CompositeConfig,
    rule: Escalation,
    scored: ScoredPairs,
    verdict_P: Array,
    pairs: PairTable,
    rows: Ints,
) -> tuple[CompositeConfig, dict[str, Array], list[str]]:
    """Returns the fitted composite, the margins of it and its rivals, and what is to be said."""
    groups = scored.groups(scored.values[rule.first])
    fitted_N = np.where(scored.texts_of(rows), scored.values[rule.first], np.nan)
    spread = pooled_spread(scored.groups(fitted_N))
    unit_N = np.concatenate([np.full(len(g), group_unit(g, spread)) for g in groups])
    z_P = scored.margins(scored.values[rule.first]) / unit_N[scored.chosen_P]
    key_P = pairs.split.key_N
    fit = fit_escalation(z_P[rows], verdict_P[rows], key_P[rows], spread, rule.share)
    log_odds_P = fit.slope * z_P
    fused_P = fused_log_odds(z_P, verdict_P, fit.fused_slope, fit.verdict)
    asked_P = np.abs(log_odds_P) <= fit.ask_below
    random_P = np.random.default_rng(0).random(len(z_P)) < rule.share
    margins = {
        "composite": np.where(asked_P, fused_P, log_odds_P),
        rule.first: log_odds_P,
        f"{rule.second} about every pair": verdict_P,
        "both about every pair": fused_P,
        "random calls, as many": np.where(random_P, fused_P, log_odds_P),
    }
    ends = f"[{fit.area_low:.4f}, {fit.area_high:.4f}]"
    calls = f"{asked_P[pairs.split.of('test')].mean():.0%} of the test pairs are asked about"
    findings = [
        f"Asking by margin lies above random calls by an area of {fit.area:.4f} {ends}: {calls}, "
        f"and asking about every fitted pair adds {fit.gain_of_all:+.3f} to the accuracy."
    ]
    alone = {rule.first: accuracy(log_odds_P[rows]), rule.second: accuracy(verdict_P[rows])}
    better = max(alone, key=alone.__getitem__)
    if not fit.is_informative:
        findings = [
            f"The margins of {rule.first!r} do not tell where {rule.second!r} helps: the area "
            f"above random calls is {fit.area:.4f} {ends}. The composite is refused: name "
            f"{better!r} alone, which is right on {alone[better]:.3f} of the fitted pairs."
        ]
    return with_fit(composite, escalation=fit), margins, findings


def _pooled_rows(
    composite: CompositeConfig, scored: ScoredPairs, rows: Ints
) -> tuple[dict[str, Array], list[str]]:
    """Returns the margins of the composite and its plain rivals, and what is to be said."""
    margins = {"composite": scored.margins(composite_values(composite, scored))}
    alone = {name: scored.margins(values) for name, values in scored.values.items()}
    accuracies = {name: accuracy(margin_P[rows]) for name, margin_P in alone.items()}
    best = max(accuracies, key=accuracies.__getitem__)
    margins[f"best single part: {best}"] = alone.pop(best)
    margins |= alone
    if isinstance(composite.rule, PooledRule):
        for label, rule in (("mean", Mean()), ("median", Median())):
            if type(rule) is not type(composite.rule):
                plain = replace(composite, rule=rule)
                margins[label] = scored.margins(composite_values(plain, scored))
        if len(composite.parts) > 2:
            for name in composite.parts:
                fewer = with_parts(composite, [n for n in composite.parts if n != name])
                margins[f"without {name}"] = scored.margins(composite_values(fewer, scored))
    elif isinstance(composite.rule, Hierarchy):
        for label, threshold in (("first part only", np.inf), ("weighted sum", -np.inf)):
            plain = replace(composite, rule=replace(composite.rule, threshold=threshold))
            margins[label] = scored.margins(composite_values(plain, scored))
    gain = accuracy(margins["composite"][rows]) - accuracies[best]
    verb = "orders more pairs right than" if gain > 0 else "is no better than"
    finding = f"On the fitted pairs the composite {verb} {best!r} alone ({gain:+.3f})."
    return margins, [finding]


def _report(margins: Mapping[str, Array], pairs: PairTable, rows: Ints) -> dict[str, Any]:
    """Returns accuracy on some rows, and the composite's distance from each rival."""
    rivals = [("composite", name) for name in margins if name != "composite"]
    distances = compare(margins, pairs, rows, rivals)
    report: dict[str, Any] = {}
    for name, margin_P in margins.items():
        report[name] = {"accuracy": accuracy(margin_P[rows])}
        if distance := distances.get(f"composite - {name}"):
            report[name]["composite_minus"] = distance
    return report
