"""Optional libraries, and the command that installs them."""

from __future__ import annotations

from importlib.util import find_spec

DISTRIBUTION = "panoply-rewards"
"""Name under which this package is installed."""


def install_command(*extras: str) -> str:
    """Returns the command that installs this package with some extras, from a clone of it."""
    return f"pip install '.[{','.join(extras)}]'"


def check_installed(package: str, libraries: tuple[str, ...], *extras: str) -> None:
    """Checks that the libraries of a package are there, without importing them.

    Args:
        package: that needs them, for the message.
        libraries: names of modules.
        extras: that bring them.

    Raises:
        ModuleNotFoundError: one is not, with the command that installs it.
    """
    for library in libraries:
        if find_spec(library) is None:
            raise ModuleNotFoundError(
                f"{package} needs {library!r}, which is not installed: run "
                f"`{install_command(*extras)}` in a clone of Panoply",
                name=library,
            )
