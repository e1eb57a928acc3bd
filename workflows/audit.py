"""Auditing preference pairs: wrong labels and faulty rows, with evidence and a proposal for each.

    pairs (some labels swapped on purpose, where that is asked for)      trusted pairs
    -> structure: repeats, contradictions, copies, refusals, lengths
    -> votes: margins of scorers, and of heads that have not seen the prompt
    -> statistic of each label -> expected share of right labels below it, from the trusted pairs
    -> findings -> proposals -> a cleaned file, a page for a person, a report
    -> effect: fresh heads on raw, cleaned and randomly thinned labels, judged on trusted pairs

A scorer has no vote on prompts that it was trained on, a head none on pairs that it learned, and no
voter is judged on labels that it helped to set. Only proposals are written; the audited files stay.

Legend: `N` audited pairs and behind them trusted ones, `P` audited pairs, `D` features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from panoply.armorm.feature_selection import FeatureSpec
from panoply.armorm.label_effect import TrustedPairs, cleaning_effect
from panoply.armorm.label_heads import (
    Labels,
    fitted_margins,
    held_out_margins,
    plain_labels,
)
from panoply.config import as_dict
from panoply.config.audit import HEAD, AuditConfig
from panoply.data.audit import (
    ACTIONS,
    AuditFinding,
    counts_by_check,
    proposed,
    structure_findings,
)
from panoply.data.audit_files import (
    examples_of,
    pair_rows,
    write_cleaned,
    write_findings,
    write_reviewed,
)
from panoply.data.audit_verdicts import Opinion, read_verdicts
from panoply.data.schema import digest
from panoply.data.score_file import ScoreFolder
from panoply.files import write_json
from panoply.hub.backbone.pretrained import resolve
from panoply.measure.audit_report import (
    Electorate,
    planted_report,
    vote_findings,
    voter_report,
)
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.report.review import write_review
from panoply.secret import Keys
from panoply.types import Array, Floats
from workflows.cluster.audit_margins import scorer_margins, seen_pairs
from workflows.cluster.audited import AuditedPairs, read_audited
from workflows.cluster.embed import EmbeddingJob, embed, open_workers
from workflows.cluster.kept_scores import SCORERS_FILE, open_rescored, pin_scorers
from workflows.cluster.keys import endpoint_variables
from workflows.cluster.ray_cluster import store_root
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers


@one_writer
def run_audit(config: AuditConfig, logger: RunLogger) -> dict[str, Any]:
    """Audits pairs and returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        FileNotFoundError, ValueError: no such scorer or file, unusable pairs or verdicts, or a
            folder of another run.
    """
    out = run_folder(config.out)
    scorers = [open_rescored(scorer, config.num_workers) for scorer in config.named_scorers()]
    Keys.read(endpoint_variables(scorers))
    if config.head != "none":
        resolve(config.backbone.model)
    trackers = open_trackers(config, out)
    check_folder(out, config)
    pairs = read_audited(config, scorers, out / "data", logger)
    seen = seen_pairs(scorers, pairs)
    opinions = read_verdicts(config.verdicts, pairs.sides)
    claim(out, config, {"pairs": digest(*pairs.row_ids), "gold_pairs": digest(*pairs.gold_ids)})
    pin_scorers(out / SCORERS_FILE, scorers)
    sources = {"pairs": config.pairs, "gold_pairs": config.gold_pairs}
    data = {name: pairs.summary(name, files) for name, files in sources.items() if files}
    with trackers.run(as_dict(config), {"method": "audit"}, logger, data=data):
        scores = ScoreFolder(out)
        margins, costs = scorer_margins(config, scorers, pairs, seen, scores, logger)
        difference_ND = None
        if config.head != "none":
            difference_ND = embed_differences(config, pairs, logger)
        electorate = electorate_of(config, pairs, margins, difference_ND)
        findings = find(config, pairs, electorate)
        labels = labels_of(config, pairs, findings, opinions)
        metrics = {
            "audit": {
                **report(pairs, findings, opinions, electorate, costs),
                **evidence(config, pairs, electorate, labels, difference_ND),
            },
            "git_commit": git_commit(),
        }
        write_results(pairs, findings, labels, opinions)
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return metrics


def embed_differences(config: AuditConfig, pairs: AuditedPairs, logger: RunLogger) -> Floats:
    """Returns features of the chosen minus those of the rejected response, `[N, D]`."""
    root, plans = store_root(config.store), pairs.out / "embedding"
    gpus, minutes = config.backbone.gpus, config.wait_minutes
    with open_workers(config.num_workers, logger, gpus, minutes) as workers:
        job = EmbeddingJob.open(config.backbone, root, workers, pairs.texts, plans)
        spec = FeatureSpec(job.profile.depths[0], config.backbone.poolings[0])
        store, _ = embed(pairs.texts, job, (spec.depth,), logger)
    chosen = store.features("texts", pairs.chosen_N, spec.columns).read()
    return chosen - store.features("texts", pairs.rejected_N, spec.columns).read()


def electorate_of(
    config: AuditConfig,
    pairs: AuditedPairs,
    margins: Mapping[str, Array],
    difference_ND: Floats | None,
) -> Electorate:
    """Returns the voters: scorers by their margins `[N]`, and a head where there are features."""
    margins = dict(margins)
    if difference_ND is not None:
        plain = plain_labels(len(pairs.gap_N))
        margins[HEAD] = held_out_margins(difference_ND, plain, pairs.roles)
    return Electorate(
        margins=margins,
        num_audited=len(pairs.row_ids),
        trusted=pairs.trusted,
        fold_N=pairs.fold_N,
        max_false=config.max_false,
        flip_below=config.flip_below,
    )


def find(config: AuditConfig, pairs: AuditedPairs, electorate: Electorate) -> list[AuditFinding]:
    """Returns the findings of the structural checks and of the votes."""
    findings = structure_findings(pair_rows(pairs.path))
    if electorate.margins:
        findings += vote_findings(electorate, pairs.row_ids, config.unsure_within)
    return findings


def labels_of(
    config: AuditConfig,
    pairs: AuditedPairs,
    findings: Sequence[AuditFinding],
    opinions: Mapping[str, Opinion],
) -> Labels:
    """Returns the labels `[P]` that are proposed; a person's verdict stands above all findings."""
    actions = proposed(findings)
    labels = plain_labels(len(pairs.row_ids))
    for row, row_id in enumerate(pairs.row_ids):
        match opinions.get(row_id, actions.get(row_id)):
            case "flip" | "rejected":
                labels.sign_P[row] = -1
            case "drop" | "neither":
                labels.weight_P[row] = 0
            case "soften":
                labels.weight_P[row] = config.soft_weight
            case _:
                pass
    return labels


def report(
    pairs: AuditedPairs,
    findings: Sequence[AuditFinding],
    opinions: Mapping[str, Opinion],
    electorate: Electorate,
    costs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the numbers of the findings, the voters and the verdicts of persons."""
    actions, answers = list(proposed(findings).values()), list(opinions.values())
    voters: dict[str, Any] = {}
    if electorate.margins:
        voters = dict(voter_report(electorate, pairs.tested))
    result: dict[str, Any] = {
        "num_pairs": len(pairs.row_ids),
        "num_trusted": {"thresholds": len(pairs.trusted), "test": len(pairs.tested)},
        "quarantined": dict(pairs.quarantined),
        "checks": counts_by_check(findings),
        "proposed": {action: actions.count(action) for action in ACTIONS},
        "suspect": int(electorate.found_P.sum()) if electorate.margins else 0,
        "max_false": electorate.max_false if len(pairs.trusted) else None,
        "voters": {name: voters[name] | dict(costs.get(name, {})) for name in voters},
    }
    if opinions:
        counts = {name: answers.count(name) for name in ("chosen", "rejected", "neither")}
        result["reviewed"] = {"rows": len(answers), **counts}
    return result


def evidence(
    config: AuditConfig,
    pairs: AuditedPairs,
    electorate: Electorate,
    labels: Labels,
    difference_ND: Floats | None,
) -> dict[str, Any]:
    """Returns what is found of labels swapped on purpose, and the effect of cleaning, as asked."""
    result: dict[str, Any] = {}
    if config.flipped and electorate.margins:
        fitted_P = None
        if difference_ND is not None:
            plain = plain_labels(len(pairs.gap_N))
            fitted_P = fitted_margins(difference_ND, plain, pairs.roles)[: len(pairs.row_ids)]
        gap_P = pairs.gap_N[: len(pairs.row_ids)]
        result["planted"] = planted_report(
            electorate, pairs.flipped_P, gap_P, fitted_P, config.seed
        )
    if config.train and difference_ND is not None:
        tested = pairs.tested
        test = TrustedPairs(
            difference_ND[tested], pairs.gap_N[tested], pairs.key_N[tested], pairs.source_N[tested]
        )
        roles = pairs.roles_apart_from_test
        result["effect"] = cleaning_effect(difference_ND, labels, roles, test, config.seed)
    return result


def write_results(
    pairs: AuditedPairs,
    findings: Sequence[AuditFinding],
    labels: Labels,
    opinions: Mapping[str, Opinion],
) -> None:
    """Writes findings with examples, the cleaned and the reviewed pairs, and the review page."""
    out = pairs.out
    write_findings(findings, out / "findings.parquet")
    write_cleaned(pairs.path, labels.sign_P, labels.weight_P, out / "clean.parquet")
    write_reviewed(pairs.path, opinions, out / "reviewed.parquet")
    write_review(pair_rows(pairs.path), findings, out / "review.html")
    write_json(out / "examples.json", examples_of(pairs.path, findings))
