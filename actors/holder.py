"""An actor that reserves a name on the cluster."""

from __future__ import annotations

from typing import Any

import ray


class Holder:
    """Reserves its name until it is killed, or the driver that made it ends.

    Args:
        description: of what runs under the name, for others on the cluster.
    """

    def __init__(self, description: Any = None) -> None:
        self._description = description

    @ray.method
    def description(self) -> Any:
        """Returns what the name stands for."""
        return self._description
