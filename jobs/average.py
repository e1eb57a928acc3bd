"""Average scalar reward models: `python -m jobs.average MODEL... --out DIR`."""

from __future__ import annotations

from typing import Any

from jobs._main import metrics_of, parse_settings, print_results
from panoply.config.average import AverageConfig
from panoply.report.progress import RunLogger


def main() -> None:
    """Parses the settings, averages the models, and prints the results."""
    config = parse_settings("average", AverageConfig)
    print_results(metrics_of(run, config), config.out)


def run(config: AverageConfig, logger: RunLogger) -> dict[str, Any]:
    """Averages. Torch loads only now, after the inputs were looked at."""
    from panoply.hub.backbone.pretrained import silence_libraries
    from workflows.average import run_average

    silence_libraries()
    return run_average(config, logger)


if __name__ == "__main__":
    main()
