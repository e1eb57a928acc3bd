"""Show what is read of data files: `python -m jobs.inspect FILE...`."""

from __future__ import annotations

from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import tyro

from panoply.config.inspect import InspectConfig


def main() -> None:
    """Parses the settings, reads the files and prints what they hold."""
    config = tyro.cli(
        InspectConfig,
        prog="python -m jobs.inspect",
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    from panoply.data.overview import look
    from panoply.data.read import rating_inputs
    from panoply.report.progress import Terminal, exit_if_unusable
    from panoply.report.results.overview import sections
    from panoply.report.terminal import print_sections

    console = Terminal()
    # The folder stays where an error names a file in it.
    folder = Path(mkdtemp(prefix="panoply-inspect-"))
    with exit_if_unusable(console):
        write = None
        if config.model:
            # Only a template needs transformers, which take seconds to load.
            from panoply.hub.backbone.preview import template_writer

            write = template_writer(config.model)
        inputs = rating_inputs(
            config.files, config, columns=config.rating_columns, scales=config.rating_scales
        )
        kind = None if config.kind == "auto" else config.kind
        overview = look(inputs, kind, folder, num_shown=config.rows, seed=config.seed)
    print_sections(sections(overview, write), console)
    if not overview.quarantined:
        rmtree(folder)


if __name__ == "__main__":
    main()
