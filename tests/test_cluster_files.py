"""The files that start clusters: valid by Ray's and KubeRay's rules, one story, no secret."""

import copy
import json
import re
import shlex
from importlib.metadata import version
from itertools import pairwise

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr as autoscaling_of_kuberay,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.builders.ray_head import ROOT

AWS = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAYJOB = yaml.safe_load((ROOT / "deploy/kuberay/rayjob.yaml").read_text())
RAYSERVICE = yaml.safe_load((ROOT / "deploy/kuberay/rayservice.yaml").read_text())
KUBERAY = json.loads((ROOT / "tests/schemas/kuberay.json").read_text())
RAYJOB_RULES = Draft202012Validator(KUBERAY | {"$ref": "#/$defs/rayJob"})
RAYSERVICE_RULES = Draft202012Validator(KUBERAY | {"$ref": "#/$defs/rayService"})
FILES = (
    "cluster.yaml",
    "deploy/kuberay/rayjob.yaml",
    "deploy/kuberay/rayservice.yaml",
    "Dockerfile",
    ".dockerignore",
)
SECRETS = (
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    r"-----BEGIN",
    r"\b(hf|ghp|github_pat|sk)_[A-Za-z0-9]{20,}",
    r"//[^/\s:@]+:[^/\s@]+@",
    r"(?i)\w*(secret|password|passwd|api_key|access_key|auth_token|hf_token)\w*\s*[=:]\s*\S",
)


def with_field(tree, path, value):
    """Returns a copy in which the field at a path has another value."""
    changed = copy.deepcopy(tree)
    at = changed
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return changed


def test_the_aws_file_passes_rays_own_schema():
    validate_config(prepare_config(copy.deepcopy(AWS)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("idle_timeout",), 5),
        (("head_node_type",), "master"),
        (("available_node_types", "gpu", "resources", "GPU"), 0.5),
        (("available_node_types", "gpu", "min_workers"), 9),
    ],
)
def test_rays_schema_would_have_caught_a_slip(path, value):
    with pytest.raises((ValueError, ValidationError)):
        validate_config(prepare_config(with_field(AWS, path, value)))


def test_on_aws_work_goes_to_spot_gpus_that_come_and_go_and_the_head_takes_none():
    head, gpu = AWS["available_node_types"]["head"], AWS["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in " ".join(AWS["head_start_ray_commands"])
    assert gpu["min_workers"] == 0 < gpu["max_workers"] == AWS["max_workers"]
    assert gpu["resources"]["GPU"] == 1
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_every_node_knows_the_tracker_and_the_store_and_admits_only_by_token():
    options = shlex.split(" ".join(AWS["docker"]["run_options"]))
    env = dict(word.split("=", 1) for flag, word in pairwise(options) if flag == "--env")
    assert {"MLFLOW_TRACKING_URI", "PANOPLY_STORE"} <= set(env)
    assert env["RAY_AUTH_MODE"] == "token"
    for cluster in (RAYJOB["spec"]["rayClusterSpec"], RAYSERVICE["spec"]["rayClusterConfig"]):
        assert cluster["authOptions"] == {"mode": "token"}
    # The store and the results lie on what the nodes share, and the container sees it.
    shared = "/mnt/panoply"
    assert env["PANOPLY_STORE"].startswith(shared)
    assert f"{shared}:{shared}" in options
    assert any(
        shared in line and "mount -t nfs4" in line for line in AWS["initialization_commands"]
    )


@pytest.mark.parametrize("name", FILES)
def test_no_file_holds_a_secret(name):
    for line in (ROOT / name).read_text().splitlines():
        # A path of a token file is none.
        told = line.replace("/home/ray/.ray/auth_token: ~/.ray/auth_token", "")
        assert not [rule for rule in SECRETS if re.search(rule, told)], line


@pytest.mark.parametrize(
    "line",
    [
        "AWS_SECRET_ACCESS_KEY=abc",
        "- --env HF_TOKEN=hf_abc",
        "uri: http://me:mine@mlflow.example.com",
        "key: AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_a_secret_would_be_seen(line):
    assert any(re.search(rule, line) for rule in SECRETS)


def test_the_kuberay_files_pass_a_closed_schema():
    RAYJOB_RULES.validate(RAYJOB)
    RAYSERVICE_RULES.validate(RAYSERVICE)
    with pytest.raises(ValidationError):
        RAYSERVICE_RULES.validate(RAYJOB)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entryPoint"), "python -m jobs.armorm"),
        (("spec", "submissionMode"), "K8sJob"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), "4"),
        (("spec", "rayClusterSpec", "autoscalerOptions", "idleTimeoutMinutes"), 5),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
    ],
)
def test_the_closed_schema_catches_a_slip(path, value):
    with pytest.raises(ValidationError):
        RAYJOB_RULES.validate(with_field(RAYJOB, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "serveConfigV3"), "applications: []"),
        (("spec", "serveConfigV2"), {"applications": []}),
        (("spec", "rayClusterSpec"), {}),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "minReplica"), 0),
    ],
)
def test_the_closed_schema_of_the_service_catches_a_slip(path, value):
    with pytest.raises(ValidationError):
        RAYSERVICE_RULES.validate(with_field(RAYSERVICE, path, value))


@pytest.mark.parametrize(
    ("spec", "cpus"),
    [(RAYJOB["spec"]["rayClusterSpec"], 0), (RAYSERVICE["spec"]["rayClusterConfig"], 1)],
)
def test_kuberay_scales_what_aws_scales(spec, cpus):
    metadata = {"namespace": "default", "name": "armorm"}
    scaled = autoscaling_of_kuberay({"metadata": metadata, "spec": spec})
    types = scaled["available_node_types"]
    gpu, own = AWS["available_node_types"]["gpu"], types["gpu"]
    assert types["headgroup"]["resources"]["CPU"] == cpus  # of the service: functions fit there
    assert {name: own["resources"][name] for name in ("CPU", "GPU")} == gpu["resources"]
    assert (own["min_workers"], own["max_workers"]) == (gpu["min_workers"], gpu["max_workers"])
    assert scaled["idle_timeout_minutes"] == AWS["idle_timeout_minutes"]


def test_the_rayjobs_command_is_one_of_ours_and_writes_to_the_shared_volume(monkeypatch):
    import tyro

    from jobs.recipes import ARMORM

    python, module, job, *words = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert (python, module, job) == ("python", "-m", "jobs.armorm")
    config = tyro.extras.overridable_config_cli(ARMORM, args=words)
    [mount] = RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][
        0
    ]["volumeMounts"]
    assert config.out.startswith(mount["mountPath"])


def test_all_files_name_one_image_and_the_ray_that_is_installed():
    for spec in (RAYJOB["spec"]["rayClusterSpec"], RAYSERVICE["spec"]["rayClusterConfig"]):
        pods = [spec["headGroupSpec"]["template"], spec["workerGroupSpecs"][0]["template"]]
        images = {pod["spec"]["containers"][0]["image"] for pod in pods}
        assert images == {AWS["docker"]["image"]}
        assert spec["rayVersion"] == version("ray")
    assert f"ray=={version('ray')}" in (ROOT / "constraints.txt").read_text()


def test_the_image_copies_what_exists_and_ends_as_a_user_without_rights():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name.split('/')[0]}" in allowed
    assert {"actors", "jobs", "panoply", "workflows"} <= set(copied)
    assert [line for line in lines if line.startswith("USER")] == ["USER ray"]
