"""Score pairs with reward models: `python -m jobs.evaluate MODEL... --pairs FILE... --out DIR`."""

from __future__ import annotations

from typing import Annotated

import tyro

from panoply.config.evaluate import Board, CrossEvalConfig, EvaluateConfig
from panoply.report.progress import RunLogger, Terminal, exit_if_unusable


def main(
    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")],
    /,
    pairs: tuple[str, ...],
    out: str = "runs/evaluate",
    max_pairs_per_source: int = 0,
    num_workers: int = 2,
    board: Board = "none",
    matrix: bool = False,
) -> None:
    """Scores preference pairs with a finished reward model and the scorers it was compared with.

    Args:
        models: folder of the reward model, as a run leaves it in OUT/model; several with --matrix.
        pairs: preference pair files: Parquet, JSONL, or hub names.
        out: folder of the results.
        max_pairs_per_source: most pairs taken of one source, chosen by hash; 0 takes all.
        num_workers: scoring actors.
        board: public board that the files are of. rmbench: hard, normal and easy by domain.
        matrix: every model on every source, on prompts that none of them was trained on.
    """
    console = Terminal()
    with exit_if_unusable(console):
        if matrix:
            if board != "none":
                raise ValueError(f"`--board {board}` is for one model; leave out `--matrix`")
            _print_matrix(
                CrossEvalConfig(
                    models=models,
                    pairs=pairs,
                    out=out,
                    max_pairs_per_source=max_pairs_per_source,
                    num_workers=num_workers,
                ),
                console,
            )
            return
        if len(models) != 1:
            raise ValueError(f"name one model, or add `--matrix`; got {models!r}")
        config = EvaluateConfig(
            model=models[0],
            pairs=pairs,
            out=out,
            max_pairs_per_source=max_pairs_per_source,
            num_workers=num_workers,
            board=board,
        )
        # Ray and torch load only now, after the arguments are known to be right.
        from panoply.report.report import print_summary
        from workflows.evaluate import run_evaluate

        metrics = run_evaluate(config, RunLogger(console))
    print_summary(metrics, console)
    console.print(f"results: {out}, and as a page in {out}/report.html")


def _print_matrix(config: CrossEvalConfig, console: Terminal) -> None:
    from panoply.report.tables import matrix_table
    from workflows.cross_eval import run_matrix

    console.print(matrix_table(run_matrix(config, RunLogger(console))))
    console.print(f"results: {config.out}/matrix.json, drawn in {config.out}/matrix.png")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m jobs.evaluate")
