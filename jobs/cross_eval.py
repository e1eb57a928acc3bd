"""Compare models by source: `python -m jobs.cross_eval MODEL... --pairs FILE... --out DIR`."""

from __future__ import annotations

import tyro

from panoply.config.evaluate import CrossEvalConfig


def main() -> None:
    """Parses the settings, then evaluates every model on every source."""
    config = tyro.cli(
        CrossEvalConfig,
        prog="python -m jobs.cross_eval",
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    # Ray and torch load only now, after the arguments are known to be right.
    from panoply.report.progress import RunLogger, Terminal, exit_if_unusable
    from panoply.report.results.cross_eval import matrix
    from panoply.report.terminal import print_sections
    from workflows.cross_eval import run_cross_eval

    console = Terminal()
    with exit_if_unusable(console):
        result = run_cross_eval(config, RunLogger(console))
    print_sections([matrix(result)], console)
    console.print(f"results: {config.out}/matrix.json, drawn in {config.out}/matrix.png")


if __name__ == "__main__":
    main()
