"""Routing of requests to replicas by prompt: to the preferred one, if that is not far behind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from panoply.serve.calls import ReplicaRequest

FAR_BEHIND = 32
"""Requests that the preferred replica may have in hand beyond those of the idlest one."""


def preference(replicas: Sequence[str], in_hand: Sequence[int], bucket: int) -> list[int]:
    """Returns the places of replicas in the order that a bucket prefers them.

    Rendezvous hashing: a replica that comes or goes moves only the buckets that it has. Where the
    preferred one has `FAR_BEHIND` more requests in hand than the idlest, that one goes first.
    """

    def weight(place: int) -> bytes:
        return hashlib.blake2b(f"{bucket} {replicas[place]}".encode(), digest_size=8).digest()

    order = sorted(range(len(replicas)), key=weight)
    idlest = min(order, key=lambda place: in_hand[place])
    if in_hand[order[0]] > in_hand[idlest] + FAR_BEHIND:
        order.remove(idlest)
        order.insert(0, idlest)
    return order


class PromptAffinity(FIFOMixin, RequestRouter):
    """Sends requests of one bucket to one replica, where they share their prompt's computation.

    A replica that is full is passed over, and so is one far behind the others: a popular prompt
    may cost a second computation, but nobody waits in a queue while a replica idles.

    `FIFOMixin` hands a replica without a matching request to the one that waits longest. Serve's
    own rule matches by the id of the HTTP request, which all of its shards share: it finds the
    first of them alone, and the others wait for ever.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Returns all replicas, each as a rank of its own, the best first."""
        args = pending_request.args if pending_request else ()
        if not args or not isinstance(args[0], ReplicaRequest):
            return [candidate_replicas]
        ids = [replica.replica_id for replica in candidate_replicas]
        in_hand = [self.replica_queue_len_cache.get(replica_id) or 0 for replica_id in ids]
        order = preference([replica_id.unique_id for replica_id in ids], in_hand, args[0].bucket)
        return [[candidate_replicas[place]] for place in order]

    def _get_pending_request_matching_metadata(
        self, request_metadata: Any = None
    ) -> PendingRequest | None:
        """Returns the very request that a replica was chosen for, while it still waits.

        Each has a metadata object of its own, even where their ids are the same.
        """
        waiting = (
            pending
            for pending in self._pending_requests_to_fulfill
            if pending.metadata is request_metadata and not pending.future.done()
        )
        return next(waiting, None)
