"""Circuit breaker: a server that fails for a while is left alone, and tried again by single calls.

    closed --- FAILURES in a row, over OUTAGE_SECONDS ---> open --- its pause is over ---> half-open
      ^                                                     ^                                  |
      +--- an answer comes ---------------------------------|--------- one call goes through --+
                                                            +--- it fails: twice the pause ----+

A shorter outage is left to the retries of each request. Open, a call costs nothing and is a passing
fault: whoever asks later may be answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeAlias

FAILURES = 5
"""Failed attempts in a row without which no circuit opens."""
OUTAGE_SECONDS = 30.0
"""Seconds without a success, from the begin of the first failed attempt, that open a circuit."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds that it stays open; each failed probe doubles them."""
CircuitState: TypeAlias = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Counts failures, and says whether a call may go through.

    Args:
        clock: seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.num_failed = 0
        """Failed attempts since the last success."""
        self._since = 0.0
        """Begin of the first of them."""
        self._pause = 0.0
        """Seconds of the latest pause; 0 while the circuit is closed."""
        self._probe_at = 0.0
        self._is_probing = False

    @property
    def state(self) -> CircuitState:
        """State of the circuit."""
        if not self._pause:
            return "closed"
        return "open" if self.clock() < self._probe_at else "half-open"

    @property
    def seconds_left(self) -> float:
        """Seconds until a call may go through."""
        return max(0.0, self._probe_at - self.clock()) if self._pause else 0.0

    def admits(self) -> bool:
        """Returns whether a call may go through; half-open, one at a time."""
        if self.state == "half-open" and not self._is_probing:
            self._is_probing = True
            return True
        return self.state == "closed"

    def succeeded(self) -> None:
        """Closes the circuit."""
        self.num_failed, self._pause, self._is_probing = 0, 0.0, False

    def failed(self, seconds: float = 0.0) -> None:
        """Counts a failed attempt, which may open the circuit or keep it open for longer.

        Args:
            seconds: duration of the attempt.
        """
        now = self.clock()
        if not self.num_failed:
            self._since = now - seconds
        self.num_failed += 1
        is_out = self.num_failed >= FAILURES and now - self._since >= OUTAGE_SECONDS
        if is_out and self.state != "open":
            self._pause = min(2 * self._pause, LONGEST_PAUSE) or FIRST_PAUSE
            self._probe_at = now + self._pause
            self._is_probing = False

    def abandoned(self) -> None:
        """Forgets a call that was given up before it had an end: another may probe."""
        self._is_probing = False
