"""Export a scalar reward model: `python -m jobs.export MODEL --out DIR`."""

from __future__ import annotations

from typing import Annotated

import tyro

from jobs._main import run_function


def main(model: Annotated[str, tyro.conf.Positional], /, out: str) -> None:
    """Exports a run's linear Bradley-Terry head for AutoModelForSequenceClassification.

    The folder holds the cut backbone with the head, a tokenizer with a pad token of its own,
    and a model card. It is loaded again and compared with the run before it appears. Only
    heads on features of the last token can be exported: runs with `--backbone.poolings last`.

    Args:
        model: folder of the reward model, as a run leaves it in OUT/model.
        out: new folder of the exported model.
    """
    # Torch loads only now, after the arguments are known to be right.
    from pathlib import Path

    from panoply.hub.artefact.export import export_scalar
    from panoply.hub.backbone.pretrained import silence_libraries
    from panoply.report.progress import Terminal, exit_if_unusable
    from workflows.cluster.run_folder import run_folder

    console = Terminal()
    silence_libraries()
    with exit_if_unusable(console):
        done = export_scalar(Path(model).expanduser(), run_folder(out))
    console.print(
        f"exported: {done.folder} (pad token {done.pad_token}; {done.num_compared} scores alone "
        f"and in a padded batch drift at most {done.drift:.1e} of their deviation)",
        markup=False,
    )
    console.print(
        f'next: AutoModelForSequenceClassification.from_pretrained("{done.folder}")', markup=False
    )


if __name__ == "__main__":
    run_function("export", main)
