"""Settings of a judge, as the file of a WHERE has them."""

from __future__ import annotations

from pathlib import Path

from panoply.config.judge import JudgeConfig
from panoply.config.yaml_lines import read_settings


def read_judge(file: str) -> tuple[Path, JudgeConfig]:
    """Returns the place of a judge's file, and the settings in it.

    Raises:
        ValueError, OSError: as `read_settings`.
    """
    path = Path(file).expanduser()
    return path, read_settings(path, JudgeConfig)
