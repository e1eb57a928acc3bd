"""One process at a time in a run's folder, on all machines that share it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from panoply.lease import holding
from workflows.cluster.run_folder import run_folder


class WithFolder(Protocol):
    """The configuration of a run that writes a folder."""

    @property
    def out(self) -> str:
        """The folder."""
        ...


Config = TypeVar("Config", bound=WithFolder)
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


def one_writer(
    run: Callable[Concatenate[Config, Rest], Result],
) -> Callable[Concatenate[Config, Rest], Result]:
    """Lets a run hold the folder of its configuration while it works (`panoply.lease`).

    The same command, started twice, is refused with who holds the folder since when. What was
    killed frees it: on this machine at once, elsewhere after `panoply.lease.EXPIRY_SECONDS`.
    """

    @wraps(run)
    def alone(config: Config, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        with holding(run_folder(config.out)):
            return run(config, *args, **kwargs)

    return alone
