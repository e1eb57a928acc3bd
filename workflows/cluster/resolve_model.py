"""Resolves the place of a scorer, once in the driver, so that all replicas load the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from actors.bandit_contexts import num_features
from panoply.config.serve import ServedModelConfig
from panoply.config.yaml_lines import with_line
from panoply.hub.door.fetch import is_hub_name
from panoply.hub.in_process import InProcessModel
from panoply.scorers.bandit.opening import log_uri, open_arms, read_bandit
from panoply.scorers.where import (
    BanditFile,
    CombinedScorers,
    LocalModel,
    Scorer,
    open_scorer,
    parse_where,
)

REGISTRY = "models:/"


def resolve_model(config: ServedModelConfig, *, is_served: bool = False) -> ServedModelConfig:
    """Returns a scorer's settings with its WHERE checked, and fixed where it may move.

    A folder becomes absolute, and a name of MLflow's registry the folder that it stands for now.

    Args:
        config: the settings.
        is_served: whether a server asks for it, which alone has a bandit.

    Raises:
        ValueError, OSError: there is no such model, function, table or dialect.
    """
    where = parse_where(config.where)
    if isinstance(where, CombinedScorers):
        config = replace(config, where=f"combine:{Path(where.file).expanduser().absolute()}")
    if isinstance(where, BanditFile) and is_served:
        file = Path(where.file).expanduser().absolute()
        _check_bandit(config, file)
        return replace(config, where=f"bandit:{file}")
    if not isinstance(where, LocalModel):
        open_scorer(config, on_node=False, open_model=model_in_process)
        return config
    if where.path.startswith(REGISTRY):
        from workflows.cluster.registered import registered_folder  # loads MLflow

        return replace(config, where=where.at(registered_folder(where.path)))
    folder = Path(where.path).expanduser()
    if folder.is_dir():
        return replace(config, where=where.at(str(folder.absolute())))
    if not is_hub_name(where.path):
        raise FileNotFoundError(
            f"model {config.name!r}: {where.path!r} is no folder in {str(Path.cwd())!r}, and no "
            "hub name 'owner/name'. A run leaves its model in OUT/model; `make demo` makes "
            "runs/embedded/model"
        )
    return config


def _check_bandit(config: ServedModelConfig, file: Path) -> None:
    """Checks the file of a bandit, its arms, and the model of its context.

    Raises:
        ValueError, OSError: "FILE:LINE: " and what is wrong.
    """
    settings = read_bandit(file)

    def open_arm(name: str, where: str) -> Scorer:
        arm = replace(config, name=name, where=where)
        return open_scorer(arm, on_node=False, open_model=model_in_process)

    open_arms(file, settings, open_arm)
    with with_line(file):
        try:
            num_features(settings.context)
        except OSError as error:
            raise ValueError(f"`context.model`: {error}") from error


def check_logs(models: Sequence[ServedModelConfig]) -> None:
    """Checks that no two bandits of a server write one log.

    Args:
        models: resolved.

    Raises:
        ValueError: two do.
    """
    names: dict[str, str] = {}
    for model in models:
        where = parse_where(model.where)
        if isinstance(where, BanditFile):
            file = Path(where.file)
            log = log_uri(file, read_bandit(file))
            if log in names:
                raise ValueError(
                    f"{names[log]!r} and {model.name!r} would write one log, {log!r}: serve one of "
                    "them, or give them a file and a `log` each"
                )
            names[log] = model.name


def model_in_process(config: ServedModelConfig) -> InProcessModel:
    """Returns a reward model as a scorer of this process, which loads it when it is asked.

    Raises:
        ValueError, OSError: as `resolve_model`.
    """
    return InProcessModel(resolve_model(config))
