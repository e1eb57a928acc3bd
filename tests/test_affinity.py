"""Calls of one bucket go to one replica, as long as it keeps up."""

from collections import Counter

from actors.affinity import FAR_BEHIND, preference
from panoply.serve.calls import NUM_BUCKETS

NAMES = ["a7", "b1", "c9", "d4"]
IDLE = [0, 0, 0, 0]


def first(names, in_hand, bucket):
    return names[preference(names, in_hand, bucket)[0]]


def test_a_bucket_has_its_replica_whatever_the_order_they_are_listed_in():
    for bucket in range(NUM_BUCKETS):
        assert first(NAMES, IDLE, bucket) == first(NAMES[::-1], IDLE, bucket)


def test_buckets_are_spread_over_the_replicas():
    counts = Counter(first(NAMES, IDLE, bucket) for bucket in range(NUM_BUCKETS))
    assert set(counts) == set(NAMES)
    assert max(counts.values()) < NUM_BUCKETS / 2


def test_a_replica_that_goes_moves_its_own_buckets_only():
    left = NAMES[:1] + NAMES[2:]
    for bucket in range(NUM_BUCKETS):
        before = first(NAMES, IDLE, bucket)
        if before != NAMES[1]:
            assert first(left, IDLE[:3], bucket) == before


def test_a_replica_far_behind_is_passed_over_for_the_idlest():
    place = preference(NAMES, IDLE, 5)[0]
    in_hand = [9, 9, 9, 9]
    in_hand[(place + 1) % 4] = 3
    in_hand[place] = 3 + FAR_BEHIND
    assert preference(NAMES, in_hand, 5)[0] == place
    in_hand[place] += 1
    order = preference(NAMES, in_hand, 5)
    assert order[0] == (place + 1) % 4
    assert sorted(order) == [0, 1, 2, 3]
