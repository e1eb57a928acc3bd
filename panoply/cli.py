"""The console command `panoply`: what runs in one process, without a cluster.

This is the only file of the library that parses a command line. Models, pages and tables load when
a command needs them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp
from typing import Annotated, Any

from panoply.config.inspect import InspectConfig
from panoply.extras import DISTRIBUTION

try:
    import tyro

    from panoply.report.progress import RunLogger, Terminal, exit_if_unusable
except ModuleNotFoundError as error:
    sys.exit(
        f"error: the command `panoply` needs the package {error.name!r}: run "
        "`pip install '.[cli]'` in a clone of Panoply"
    )

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Looked = Annotated[InspectConfig, tyro.conf.arg(name=""), tyro.conf.PositionalRequiredArgs]


def score(
    model: Model, /, file: str = "", prompt: str = "", responses: tuple[str, ...] = ()
) -> None:
    """Prints the scores of responses, one JSON object a line.

    Args:
        model: a folder, or a hub name 'owner/name'.
        file: JSON lines with `prompt`, a text or turns, and `responses`, a list of texts.
        prompt: the user's text, where no file is named.
        responses: responses to it.
    """
    from panoply.hub.artefact.load import load_reward_model

    if bool(file) == bool(prompt and responses):
        raise ValueError("name `--file FILE`, or `--prompt TEXT --responses TEXT...`")
    items = [{"prompt": prompt, "responses": list(responses)}]
    if file:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
        items = [_item(line, f"{file}, line {n}") for n, line in enumerate(lines, 1) if line]
    loaded = load_reward_model(model)
    for item in items:
        text_or_turns: Any = item["prompt"]
        turns = text_or_turns
        if isinstance(text_or_turns, str):
            turns = [{"role": "user", "content": text_or_turns}]
        scores = [
            score if math.isfinite(score) else None  # a step that was cut leaves no score
            for score in loaded.score(turns, item["responses"]).tolist()
        ]
        print(json.dumps({"scores": scores}), flush=True)


def _item(line: str, place: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
        if isinstance(item["prompt"], str | list) and isinstance(item["responses"], list):
            return item
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"{place}: give a JSON object with `prompt` and the list `responses`")


def evaluate(model: Model, /, pairs: tuple[str, ...], out: str = "") -> None:
    """Prints how often a model prefers the chosen response, by source.

    Args:
        model: a folder, or a hub name 'owner/name'.
        pairs: pair files: Parquet, JSONL, or hub names.
        out: JSON file for the numbers.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from panoply.data.ingest import ingest_pairs
    from panoply.data.read import Input
    from panoply.data.tables import load_pairs
    from panoply.files import write_json
    from panoply.hub.artefact.load import load_reward_model
    from panoply.measure.pair_report import report_pairs
    from panoply.report.results.pairs import by_source
    from panoply.report.terminal import as_rich

    console = Terminal()
    with TemporaryDirectory() as folder:
        ingested = ingest_pairs([Input(name) for name in pairs], Path(folder))
        table = load_pairs(ingested.path, seed=0, num_folds=2)
        rows = pq.read_table(ingested.path, columns=["prompt", "chosen", "rejected"]).to_pylist()
    loaded = load_reward_model(model)
    loaded.prepack()
    margin_P = np.full(len(rows), np.nan)
    with RunLogger(console).bar("scoring pairs", len(rows)) as advance:
        for number, row in enumerate(rows):
            chosen, rejected = loaded.score(row["prompt"], [row["chosen"], row["rejected"]])
            margin_P[number] = chosen - rejected
            advance(1)
    every = np.arange(len(rows))
    report = report_pairs({"score": margin_P}, table, every, {"score": 1.0})
    console.print(as_rich(by_source(report)))
    if out:
        write_json(Path(out).expanduser(), {"model": model, "pairs": report})


def inspect(config: Looked) -> None:
    """Prints what is read of data files: layout, rows, parts, quarantine, ignored columns."""
    from panoply.data.overview import look
    from panoply.data.read import rating_inputs
    from panoply.report.results.overview import sections
    from panoply.report.terminal import print_sections

    write = None
    if config.model:
        # Only a template needs transformers, which take seconds to load.
        from panoply.hub.backbone.preview import template_writer

        write = template_writer(config.model)
    # The folder stays where an error names a file in it.
    folder = Path(mkdtemp(prefix="panoply-inspect-"))
    inputs = rating_inputs(
        config.files, config, columns=config.rating_columns, scales=config.rating_scales
    )
    kind = None if config.kind == "auto" else config.kind
    overview = look(inputs, kind, folder, num_shown=config.rows, seed=config.seed)
    print_sections(sections(overview, write), Terminal())
    if not overview.quarantined:
        rmtree(folder)


def doctor(model: Model, /) -> None:
    """Checks what a reward model reads and what moves its scores; exit code 1 where one fails.

    Args:
        model: a folder, or a hub name 'owner/name'.
    """
    from panoply.hub.doctor import examine
    from panoply.report.results.models import checks
    from panoply.report.terminal import print_sections

    findings = examine(model)
    print_sections([checks([asdict(finding) for finding in findings])], Terminal())
    if any(each.verdict == "fail" for each in findings):
        sys.exit(1)


def export(model: Model, /, out: str) -> None:
    """Exports a linear Bradley-Terry head for AutoModelForSequenceClassification.

    Args:
        model: folder of the reward model, as a run leaves it in OUT/model.
        out: new folder of the exported model.
    """
    from panoply.hub.artefact.export import export_scalar

    done = export_scalar(Path(model).expanduser(), Path(out).expanduser().absolute())
    Terminal().print(f"exported: {done.folder}", soft_wrap=True)


def push(
    folder: Annotated[str, tyro.conf.Positional],
    name: Annotated[str, tyro.conf.Positional],
    /,
    private: bool = True,
) -> None:
    """Uploads a model and its card to the Hugging Face hub, with the token of `hf auth login`.

    Args:
        folder: the model, as a run leaves it in OUT/model.
        name: 'owner/name' on the hub; it is made where there is none.
        private: whether a new one is shown to its owner alone.
    """
    from panoply.hub.push import push_to_hub

    url = push_to_hub(Path(folder).expanduser(), name, private=private)
    Terminal().print(f"pushed: {url}", soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "score": score,
    "evaluate": evaluate,
    "inspect": inspect,
    "doctor": doctor,
    "export": export,
    "push": push,
}


def main() -> None:
    """Runs a command; an error that its user can mend is one sentence, with exit code 2."""
    if sys.argv[1:] == ["--version"]:
        print(f"panoply {version(DISTRIBUTION)}")
        return
    with exit_if_unusable(Terminal()):
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="panoply",
            description="Look at data; score, evaluate, examine and export models in one process.",
        )
