"""Keys of a run: kept from Ray's workers, and handed to those that need them.

A cluster that a command starts for itself inherits the command's environment, and so does every
task. The variables that settings name as keys are left out of that. On a cluster that is joined,
nodes hold the keys themselves.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

from panoply.config.serve import ServedModelConfig
from panoply.scorers.where import key_variables, parse_where
from panoply.secret import Keys
from workflows import starts_cluster

DRIVER_ONLY = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Variables that no worker reads: only the driver talks to MLflow."""


def endpoint_variables(scorers: Sequence[ServedModelConfig]) -> list[str]:
    """Returns the variables that hold the keys of other servers.

    Raises:
        ValueError, OSError: the settings of a judge or a composite cannot be read.
    """
    variables: list[str] = []
    for scorer in scorers:
        variables += key_variables(parse_where(scorer.where))
    return variables


def handed_keys(variables: Iterable[str]) -> Keys:
    """Returns the keys for a process of a cluster that this command starts; else none.

    Args:
        variables: names; empty ones are passed over.

    Raises:
        ValueError: one is not set.
    """
    return Keys.read(filter(None, variables)) if starts_cluster() else Keys()


@contextmanager
def withheld(variables: Iterable[str]) -> Generator[None]:
    """Takes variables out of the environment of processes that are started in the block."""
    names = {*variables, *DRIVER_ONLY} & os.environ.keys()
    values = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(values)
