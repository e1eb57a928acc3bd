"""Prints what commands there are: `python -m jobs`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from jobs._main import answer_version
from panoply.report.progress import exit_if_unread


@exit_if_unread()
def main() -> None:
    """Prints one line for each command, from the first line of its module."""
    answer_version("python -m jobs", sys.argv[1:])
    print("usage: python -m jobs.COMMAND --help\n")
    for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        if file.stem != "recipes":
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            print(f"  {file.stem:<12} {text.partition(': `')[0].splitlines()[0]}")


if __name__ == "__main__":
    main()
