"""Score a board: `python -m jobs.board NAME --files FILE... --scorers NAME=WHERE... --out DIR`."""

from __future__ import annotations

from typing import Any

from jobs._main import parse_settings, run_workflow
from panoply.config.board import BoardConfig
from panoply.config.files import names_of_columns
from panoply.report.progress import RunLogger, Terminal


def main() -> None:
    """Parses the settings, scores the board, and prints its numbers."""
    config = parse_settings("board", BoardConfig)
    metrics = run_workflow(run, config)
    from panoply.report.report import print_summary

    console = Terminal()
    print_summary(metrics, console)
    console.print(f"results: {config.out}, and as a page in {config.out}/report.html")
    console.print(f"scores: replay:{config.out}/scores.parquet", soft_wrap=True)


def run(config: BoardConfig, logger: RunLogger) -> dict[str, Any]:
    """Scores. Ray and torch load only now, after the inputs were looked at."""
    from panoply.boards import load_board
    from panoply.boards.items import open_board
    from panoply.data.contamination import open_training
    from panoply.data.read import Input

    columns = names_of_columns(config.columns)
    open_board(load_board(config.board), [Input(file, columns=columns) for file in config.files])
    open_training(config.training)
    from workflows.board import run_board

    return run_board(config, logger)


if __name__ == "__main__":
    main()
