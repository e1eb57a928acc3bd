"""Merge reward models with policies, or each other: `python -m jobs.merge MODEL... --out DIR`."""

from __future__ import annotations

from typing import Any

from jobs._main import metrics_of, parse_settings, print_results
from panoply.config.merge import MergeConfig
from panoply.report.progress import RunLogger


def main() -> None:
    """Parses the settings, merges the models, and prints the results."""
    config = parse_settings("merge", MergeConfig)
    print_results(metrics_of(run, config), config.out)


def run(config: MergeConfig, logger: RunLogger) -> dict[str, Any]:
    """Merges. Torch and Ray load only now, after the inputs were looked at."""
    from panoply.hub.backbone.pretrained import silence_libraries
    from workflows.merge import run_merge

    silence_libraries()
    return run_merge(config, logger)


if __name__ == "__main__":
    main()
