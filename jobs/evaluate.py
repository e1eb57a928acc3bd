"""Score pairs with a reward model: `python -m jobs.evaluate MODEL --pairs FILE... --out DIR`."""

from __future__ import annotations

from typing import Annotated

import tyro
from rich.console import Console

from panoply.config import Board, EvaluateConfig
from workflows.progress import Watch, exit_if_unusable


def main(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    pairs: tuple[str, ...],
    out: str = "runs/evaluate",
    max_pairs_per_source: int = 0,
    num_workers: int = 2,
    board: Board = "none",
) -> None:
    """Scores preference pairs with a finished reward model and the scorers it was compared with.

    Args:
        model: folder of the reward model, as a run leaves it in OUT/model.
        pairs: preference pair files: Parquet, JSONL, or hub names.
        out: folder of the results.
        max_pairs_per_source: most pairs taken of one source, chosen by hash; 0 takes all.
        num_workers: scoring actors.
        board: public board that the files are of. rmbench: hard, normal and easy by domain.
    """
    console = Console(log_path=False)
    with exit_if_unusable(console):
        config = EvaluateConfig(
            model=model,
            pairs=pairs,
            out=out,
            max_pairs_per_source=max_pairs_per_source,
            num_workers=num_workers,
            board=board,
        )
        # Ray and torch load only now, after the arguments are known to be right.
        from workflows.evaluate import run_evaluate
        from workflows.report import print_summary

        metrics = run_evaluate(config, Watch(console))
    print_summary(metrics, console)
    console.print(f"results: {out}, and as a page in {out}/report.html")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m jobs.evaluate")
