"""Score pairs with any scorer: `python -m jobs.evaluate WHERE --pairs FILE... --out DIR`."""

from __future__ import annotations

import tyro

from jobs._main import run_workflow
from panoply.config.evaluate import EvaluateConfig
from panoply.report.progress import Terminal


def main() -> None:
    """Parses the settings, then evaluates the scorer."""
    config = tyro.cli(
        EvaluateConfig,
        prog="python -m jobs.evaluate",
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    # Ray and torch load only now, after the arguments are known to be right.
    from panoply.report.report import print_summary
    from workflows.evaluate import run_evaluate

    metrics = run_workflow(run_evaluate, config)
    console = Terminal()
    print_summary(metrics, console)
    console.print(f"results: {config.out}, and as a page in {config.out}/report.html")


if __name__ == "__main__":
    main()
