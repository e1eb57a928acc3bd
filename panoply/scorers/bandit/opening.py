"""Opening of a bandit's file: its settings, its arms, its log, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from panoply.config.served_bandit import NoContext, ServedBanditConfig
from panoply.config.yaml_lines import read_settings, with_line
from panoply.laser.rounds import initial_state
from panoply.scorers.composite.opening import beside, open_named
from panoply.scorers.where import Scorer

PREFIX = "bandit:"


def read_bandit(file: Path) -> ServedBanditConfig:
    """Returns the settings of a bandit.

    Raises:
        ValueError, OSError: "FILE:LINE: " and what is wrong with it.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(file)!r}, which `bandit:` names")
    config = read_settings(file, ServedBanditConfig)
    with with_line(file):
        for name, arm in config.arms.items():
            if arm.where.startswith(PREFIX):
                raise ValueError(
                    f"`arms.{name}.where`: a bandit is no arm of another, which would learn from "
                    "arms that change: name its arms here"
                )
        num_features = 0 if isinstance(config.context, NoContext) else 1
        initial_state(config.selector, len(config.arms), num_features)
    return config


def arm_places(file: Path, config: ServedBanditConfig) -> dict[str, str]:
    """Returns the WHERE of each arm, with paths looked up from the folder of the file."""
    return {name: beside(file, arm.where) for name, arm in config.arms.items()}


def log_uri(file: Path, config: ServedBanditConfig) -> str:
    """Returns the folder of the log, a path looked up from the folder of the file."""
    if "://" in config.log:
        return config.log
    return str((file.parent / Path(config.log).expanduser()).resolve())


def open_arms(
    file: Path, config: ServedBanditConfig, open_arm: Callable[[str, str], Scorer]
) -> Mapping[str, Scorer]:
    """Returns the arms, opened.

    Args:
        file: of settings.
        config: the settings.
        open_arm: opens an arm, by its name and WHERE.

    Raises:
        ValueError: "FILE:LINE: " and why an arm cannot be opened.
    """
    return open_named(file, "arms", arm_places(file, config), open_arm)
