"""Show what is read of data files: `python -m jobs.inspect FILE...`."""

from __future__ import annotations

from jobs._main import parse_settings
from panoply.cli import inspect
from panoply.config.inspect import InspectConfig
from panoply.report.progress import Terminal, exit_if_unusable


def main() -> None:
    """Parses the settings, reads the files and prints what they hold."""
    config = parse_settings("inspect", InspectConfig)
    with exit_if_unusable(Terminal()):
        inspect(config)


if __name__ == "__main__":
    main()
