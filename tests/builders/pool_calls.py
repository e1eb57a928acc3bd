"""What tests let processes and actors call; these import it by name."""

import os
import signal
import time


class Counter:
    """Tells which process counts, how many of these were made there, and the count."""

    num_made = 0

    def __init__(self, start):
        type(self).num_made += 1
        self.start = start

    def __call__(self, item):  # noqa: D102
        time.sleep(0.01)  # so that one actor does not take all items
        return os.getpid(), type(self).num_made, self.start + item


class DiesOnce:
    """Kills the process that calls it for the first time, and doubles what it is given."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, item):  # noqa: D102
        first = self.folder / "first"
        if item == 3 and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * item


def dies(_):
    os.kill(os.getpid(), signal.SIGKILL)


def refuses(item):
    raise ValueError(f"not {item}")


def pid(_):
    return os.getpid()
