"""Merging: a reward model and others of its base -> one reward model, by a share that is chosen.

    models -> do they fit together, and come from one base?
    for each share lambda: merge shard by shard -> score the pairs -> margins
    select      lambda = argmax of the accuracy, mean over sources; 0, the reward model alone, where
                no other beats it by a standard error
    calibrate   temperature, and the deviations of the heads, on the merged model's own scores
    test        the merged model less the reward model alone, by source, only reported

DogeRM (arXiv 2407.01470) merges a policy of a domain into a reward model:

    theta = (1 - lambda) theta_r + lambda theta_s,   the head is the reward model's

Where this differs from the paper: lambda is chosen on *select* and not on the test set; tokens are
matched by their text and not by their number; a token that the reward model alone knows keeps its
row; the models must come from one base. Weight averages (WARM, arXiv 2401.12187) are the same with
reward models as the others, whose heads are merged too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from panoply.config import as_dict
from panoply.config.merge import MergeConfig
from panoply.data.schema import digest
from panoply.files import write_json
from panoply.hub.backbone.pretrained import resolve
from panoply.hub.merge.folder import save_merged
from panoply.hub.merge.merge import Merge, open_merge
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.scorers.content import content_hash
from panoply.seal import SEAL, seal_hash
from workflows.cluster.evaluated import (
    data_entry,
    ingest_evaluated,
    open_evaluated,
    score_all,
    without_train,
)
from workflows.cluster.merged import (
    JudgedPairs,
    ScoredShare,
    best_share,
    described,
    scored_share,
    share_report,
    token_counts,
)
from workflows.cluster.registered import registered_folder
from workflows.cluster.resolve_model import REGISTRY
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers


@one_writer
def run_merge(config: MergeConfig, logger: RunLogger) -> dict[str, Any]:
    """Merges models into `OUT/model`; returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        FileNotFoundError, ValueError: a folder is no model, the models do not fit together or are
            of different bases, the pairs are unusable, or `OUT` holds another run.
    """
    out = run_folder(config.out)
    folders = [_folder(name) for name in config.models]
    trackers = open_trackers(config, out)
    check_folder(out, config)
    shares = config.tried_shares()
    merge = open_merge(
        folders,
        shares[-1],
        base=_folder(config.base) if config.base else None,
        rule=config.rule,
        density=config.density,
        seed=config.seed,
    )
    if not (config.pairs or config.shares or all(merge.are_equals)):
        raise ValueError(
            "`pairs` is empty, and how much of a policy does good is not known without: name pairs "
            "of its domain and of others, or a share, as in `--shares 0.3`"
        )
    pairs = _judged_pairs(config, merge, out, logger) if config.pairs else None
    hashes = [_content(model.folder) for model in (merge.first, *merge.others)]
    table = pairs.table if pairs else None
    pair_ids = {"pairs": digest(*table.chosen_P, *table.rejected_P)} if table else {}
    claim(out, config, {"models": hashes, **pair_ids})

    data = data_entry(table, config.pairs) if table else {}
    tags = {"method": "merge", "rule": config.rule}
    with trackers.run(as_dict(config), tags, logger, data=data, model=config.model_name):
        share, fit, judged = shares[-1], None, dict[str, Any]()
        if pairs:
            scored: dict[float, ScoredShare] = {}
            for number, tried in enumerate(shares, start=1):
                logger.stage(number, len(shares), f"score the pairs with a share of {tried:g}")
                scored[tried] = _scored(config, merge.at(tried), tried, pairs, logger)
            logger.end_stages()
            if len(config.shares) != 1:
                share = best_share(pairs, scored)
            fit, judged = scored[share].fit, share_report(pairs, scored, share)
        merged: dict[str, Any] = {
            "rule": config.rule,
            "share": share,
            "models": described([*config.models, config.base], merge.at(share)),
            "tokens": token_counts(merge),
            **judged,
        }
        if not (out / "model").exists():  # saved by a run that died behind it
            record = {
                "contents": hashes,
                "distances": [round(value, 4) for value in merge.distances],
                "shares tried": judged.get("curve", {}),
            }
            save_merged(merge.at(share), out / "model", fit=fit, method=record)
        metrics = {"merged": merged, "num_models": len(folders), "git_commit": git_commit()}
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return metrics


def _folder(name: str) -> Path:
    """Returns the folder of a model: a local one, or of MLflow's registry or the hub."""
    place = registered_folder(name) if name.startswith(REGISTRY) else resolve(name)
    return Path(place).absolute()


def _content(folder: Path) -> str:
    """Returns a hash of what a folder holds; of files without a seal large ones by their size."""
    return seal_hash(folder) if (folder / SEAL).is_file() else content_hash(str(folder))


def _judged_pairs(config: MergeConfig, merge: Merge, out: Path, logger: RunLogger) -> JudgedPairs:
    """Returns the pairs by their parts, in the split of the reward model.

    Raises:
        ValueError: a part has none.
    """
    chief = open_evaluated(str(merge.first.folder))
    ingested = ingest_evaluated(config, [chief], out / "data", logger)
    path = ingested.path if config.fit_on_train else without_train(ingested.path, chief.seed)
    ours = [open_evaluated(str(model.folder)) for model in merge.models if model.manifest]
    return JudgedPairs.read(path, chief.seed, ours)


def _scored(
    config: MergeConfig, merge: Merge, share: float, pairs: JudgedPairs, logger: RunLogger
) -> ScoredShare:
    """Returns what the merge at a share makes of the pairs; of a killed run that is kept."""
    out = run_folder(config.out)
    file = out / "shares" / f"{share:g}.npz"
    if file.is_file():
        return ScoredShare.read(file)
    folder = merge.first.folder
    if share:
        folder = out / "candidate"
        shutil.rmtree(folder, ignore_errors=True)
        save_merged(merge, folder)
    scorer = open_evaluated(str(folder))
    (result,) = score_all([scorer], pairs.path, config.num_workers, logger)
    scored = scored_share(scorer, result, pairs, is_refit=bool(share))
    if share:
        shutil.rmtree(folder)
    scored.write(file)
    return scored
