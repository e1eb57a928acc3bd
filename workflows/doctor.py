"""The doctor: every check of one scorer, printed or as a run that trackers follow."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, assert_never

from panoply.config import as_dict
from panoply.config.doctor import DoctorConfig
from panoply.config.serve import ServedModelConfig
from panoply.files import write_json
from panoply.hub.doctor import examine
from panoply.measure.conformance import Finding
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.scorers.doctor import examine_scorer, examine_table
from panoply.scorers.recorded import RecordedScorer
from panoply.scorers.where import (
    BanditFile,
    CombinedScorers,
    JudgeFile,
    LocalModel,
    PythonFunction,
    RecordedScores,
    RemoteEndpoint,
    Scorer,
    open_scorer,
    parse_where,
)
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers


def run_doctor(config: DoctorConfig, logger: RunLogger) -> list[dict[str, Any]]:
    """Examines a scorer; returns the fields of each finding, and writes them where settings say.

    Raises:
        FileNotFoundError: there is no such model, or no such file of settings.
        ValueError: the folder holds another run, or a setting of a scorer is wrong.
    """
    findings = track_findings(config, logger) if config.out else find(config)
    if config.json:
        path = Path(config.json).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"model": config.model, "findings": findings})
    return findings


def find(config: DoctorConfig) -> list[dict[str, Any]]:
    """Returns the fields of each finding about a scorer."""
    match where := parse_where(config.model):
        case JudgeFile(file=file):
            # The client of OpenAI takes a second to load.
            from panoply.scorers.judge.doctor import examine_judge

            findings = examine_judge(file)
        case CombinedScorers():
            findings = _composite(config.model)
        case BanditFile(file=file):
            findings = _bandit(config.model, Path(file).expanduser())
        case PythonFunction() | RemoteEndpoint():
            settings = ServedModelConfig(name="scorer", where=config.model)
            findings = examine_scorer(lambda: open_scorer(settings))
        case RecordedScores(file=file, steps=steps):
            findings = examine_table(RecordedScorer(file, rule=steps))
        case LocalModel() as model:
            findings = examine(_folder(model), trust_remote_code=config.trust_remote_code)
        case _:
            assert_never(where)
    return [asdict(finding) for finding in findings]


def _folder(model: LocalModel) -> str:
    """Returns a reward model's WHERE, with the folder of one of MLflow's registry."""
    if not model.path.startswith("models:/"):
        return model.at(model.path)
    from workflows.cluster.registered import registered_folder  # loads MLflow

    return model.at(registered_folder(model.path))


def _composite(where: str) -> list[Finding]:
    """Returns the findings about a composite."""
    from panoply.scorers.composite.doctor import examine_composite
    from workflows.cluster.resolve_model import model_in_process, resolve_model

    config = resolve_model(ServedModelConfig(name="composite", where=where))
    return examine_composite(lambda: open_scorer(config, open_model=model_in_process))


def _bandit(where: str, file: Path) -> list[Finding]:
    """Returns the findings about a bandit."""
    from actors.bandit_contexts import open_contexts
    from panoply.scorers.bandit.doctor import examine_bandit
    from panoply.scorers.bandit.opening import open_arms, read_bandit
    from workflows.cluster.resolve_model import model_in_process, resolve_model

    config = resolve_model(ServedModelConfig(name="bandit", where=where), is_served=True)
    settings = read_bandit(file)

    def open_arm(name: str, place: str) -> Scorer:
        arm = replace(config, name=name, where=place)
        return open_scorer(arm, open_model=model_in_process)

    contexts = open_contexts(settings.context)
    return examine_bandit(file, settings, lambda: open_arms(file, settings, open_arm), contexts)


@one_writer
def track_findings(config: DoctorConfig, logger: RunLogger) -> list[dict[str, Any]]:
    """Returns the findings about a model, which it leaves in the folder of a run."""
    out = run_folder(config.out)
    trackers = open_trackers(config, out)
    check_folder(out, config)
    claim(out, config, {})
    tags = {"method": "doctor", "model": config.model}
    with trackers.run(as_dict(config), tags, logger):
        findings = find(config)
        verdicts = [finding["verdict"] for finding in findings]
        metrics: dict[str, Any] = {
            "model": config.model,
            "findings": findings,
            "num_warnings": verdicts.count("warning"),
            "num_failed": verdicts.count("fail"),
            "checks": {finding["check"]: finding["values"] for finding in findings},
            "git_commit": git_commit(),
        }
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return findings
