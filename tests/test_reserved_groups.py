"""What Ray Train reserved for workers, and did not free since its controller was lost."""

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from workflows.cluster.train import reserved_groups

pytestmark = pytest.mark.ray


def test_groups_that_an_actor_of_this_job_made_are_listed_until_they_are_removed(cluster):
    @ray.remote(num_cpus=0)
    class Controller:
        def reserve(self, cpus):
            group = placement_group([{"CPU": cpus}], lifetime="detached")
            return group.id.hex()

    before = reserved_groups()
    controller = Controller.remote()
    fits, waits = ray.get([controller.reserve.remote(0.1), controller.reserve.remote(1000)])
    ray.kill(controller)
    assert reserved_groups() - before == {fits, waits}
    for group in (fits, waits):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
    assert reserved_groups() == before
