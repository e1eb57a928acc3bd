"""Settings of upgrades of a server that runs: frozen dataclasses of the standard library."""

from __future__ import annotations

from dataclasses import dataclass

from panoply.config import require
from panoply.config.serve import DEFAULT_SERVER, ServeConfig, ServedModelConfig, check_server


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeConfig:
    """New versions of models of a server that runs, and models that come and go."""

    models: tuple[str, ...] = ()
    """`NAME=WHERE` of each model to upgrade: a name that the server has, and the scorer that takes
    its place."""
    add: tuple[str, ...] = ()
    """`NAME=WHERE` of each model to add, with the settings of the server's first one. An adapter on
    a backbone that is loaded is put onto it."""
    remove: tuple[str, ...] = ()
    """Names of models to remove."""
    name: str = DEFAULT_SERVER
    """Name of the server."""
    port: int = 8000
    """Port of the server, by which one that this machine runs by itself is known. With
    `RAY_ADDRESS`, its name is enough."""
    minutes: float = 10.0
    """Longest wait for the new versions to load."""
    trust_remote_code: bool = False
    """Run the Python code that the new models bring."""

    def __post_init__(self) -> None:
        names = [model.partition("=")[0] for model in (*self.models, *self.add)]
        both = sorted(set(names) & set(self.remove))
        require(not both, "remove", both, "names that are not upgraded or added too")
        require(0 < self.port < 65536, "port", self.port, "a port, 1 to 65535")
        require(self.minutes > 0, "minutes", self.minutes, "positive")
        check_server(self.name)

    def check_change(self) -> None:
        """Checks that something is to change.

        Raises:
            ValueError: nothing is.
        """
        is_change = bool(self.models or self.add or self.remove)
        allowed = "one NAME=WHERE or more, or left out beside `--add` or `--remove`"
        require(is_change, "models", self.models, allowed)

    def served_models(self) -> tuple[ServedModelConfig, ...]:
        """Returns the names and places of the new versions.

        Raises:
            ValueError: two of them have one name.
        """
        return ServeConfig(models=self.models).served_models() if self.models else ()

    def added_models(self) -> tuple[ServedModelConfig, ...]:
        """Returns the names and places of the models to add.

        Raises:
            ValueError: two of them have one name.
        """
        return ServeConfig(models=self.add).served_models() if self.add else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackConfig:
    """Way back to the version before the latest upgrade; a second rollback is the way forth."""

    models: tuple[str, ...] = ()
    """Names of the models; empty: all that have another version."""
    name: str = DEFAULT_SERVER
    """Name of the server."""
    port: int = 8000
    """Port of the server, by which one that this machine runs by itself is known. With
    `RAY_ADDRESS`, its name is enough."""

    def __post_init__(self) -> None:
        require(0 < self.port < 65536, "port", self.port, "a port, 1 to 65535")
        check_server(self.name)
