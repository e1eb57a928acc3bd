"""Processes that write the same rounds of one log at the same moments, with other outcomes."""

import pyarrow as pa

from panoply.laser.log import REWARDS, Log, LogDiffers

ARMS = ("ann", "bob", "cy")
ROUNDS = {"disk": 50, "bucket": 15}


def rewards_by(writer, round):
    """A segment of one reward, which tells its writer."""
    nothing = {name: [None] for name in REWARDS.names}
    return pa.table(nothing | {"round": [round], "failure": [writer]}, schema=REWARDS)


def contend(places, barrier, writer, results):
    """Writes every round of every log, and puts the rounds that were accepted and then None."""
    for name, uri in places.items():
        log = Log(uri, ARMS)
        for round in range(ROUNDS[name]):
            barrier.wait()
            try:
                log.write("rewards", round, rewards_by(writer, round))
                results.put((name, round, writer))
            except LogDiffers:
                pass
    results.put(None)
