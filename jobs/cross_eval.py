"""Compare scorers by source: `python -m jobs.cross_eval WHERE... --pairs FILE... --out DIR`."""

from __future__ import annotations

import tyro

from jobs._main import run_workflow
from panoply.config.evaluate import CrossEvalConfig
from panoply.report.progress import Terminal


def main() -> None:
    """Parses the settings, then evaluates every scorer on every source."""
    config = tyro.cli(
        CrossEvalConfig,
        prog="python -m jobs.cross_eval",
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    # Ray and torch load only now, after the arguments are known to be right.
    from panoply.report.results.cross_eval import matrix
    from panoply.report.terminal import print_sections
    from workflows.cross_eval import run_cross_eval

    result = run_workflow(run_cross_eval, config)
    console = Terminal()
    print_sections([matrix(result)], console)
    console.print(f"results: {config.out}/matrix.json, drawn in {config.out}/matrix.png")


if __name__ == "__main__":
    main()
