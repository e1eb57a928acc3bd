"""Nodes come when a run asks for them and go when it ends: cluster.yaml on a fake provider."""

import json
import subprocess
import sys

import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.builders.ports import free_ports
from tests.builders.ray_head import ROOT, eventually, ray_head

pytestmark = pytest.mark.ray

COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
IDLE_MINUTES = 0.15


def on_fake_nodes(aws, address):
    """Returns the file for a provider whose nodes are processes of this machine."""
    types = {
        "ray.head.default" if name == aws["head_node_type"] else name: {
            "resources": kind["resources"],
            "min_workers": kind.get("min_workers", 0),
            "max_workers": kind.get("max_workers", 0),
            "node_config": {},
        }
        for name, kind in aws["available_node_types"].items()
    }
    return {
        "cluster_name": aws["cluster_name"],
        "max_workers": aws["max_workers"],
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": types,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "upscaling_speed": 1.0,
        **{name: [] for name in COMMANDS},
    }


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    [port] = free_ports(1)
    file = tmp_path_factory.mktemp("scaling") / "cluster.yaml"
    address = f"{ray.util.get_node_ip_address()}:{port}"
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    file.write_text(json.dumps(on_fake_nodes(aws, address)))
    settings = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    flags = ("--num-cpus=0", "--num-gpus=0", f"--autoscaling-config={file}")
    with ray_head(*flags, port=port, **settings) as started:
        yield started


def test_a_run_brings_two_gpu_nodes_up_and_they_go_when_it_is_over(
    head, tiny_model_folder, tmp_path
):
    def num_workers():
        alive = [node for node in head.listed("nodes") if node["state"] == "ALIVE"]
        return sum(not node["is_head_node"] for node in alive)

    assert num_workers() == 0
    command = [sys.executable, "-m", "jobs.armorm", "embedded", "--out", str(tmp_path / "run")]
    command += ["--backbone.model", str(tiny_model_folder), "--backbone.dtype", "float32"]
    command += ["--backbone.depths", "0.5", "--backbone.poolings", "last"]
    command += ["--planted.num-prompts", "150", "--planted.num-responses", "3"]
    command += ["--objectives.num-folds", "3", "--gate.hidden-size", "16", "--gate.num-steps", "40"]
    command += ["--no-leave-one-out", "--num-workers", "2", "--backbone.gpus", "1"]
    env = head.env | {"RAY_ADDRESS": head.address, "PANOPLY_STORE": str(tmp_path / "store")}
    with (tmp_path / "log").open("w") as told:
        run = subprocess.Popen(command, cwd=ROOT, env=env, stdout=told, stderr=told)
    try:
        eventually(lambda: num_workers() == 2, 120, "two nodes are up")
        assert run.wait(300) == 0, (tmp_path / "log").read_text()
    finally:
        run.kill()
    eventually(lambda: num_workers() == 0, 120, "no node is left")
