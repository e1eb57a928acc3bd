"""The files that start clusters: valid by Ray's and KubeRay's rules, one story, no secret."""

import copy
import json
import re
import shlex
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from ray._common.utils import import_attr
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr as autoscaling_of_kuberay,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.builders.pods import KUBERAY as KUBERAY_FILES
from tests.builders.pods import pods_of, read_manifests
from tests.builders.ray_head import ROOT
from workflows import ALONE

AWS = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAYJOB = yaml.safe_load((ROOT / "deploy/kuberay/rayjob.yaml").read_text())
RAYSERVICE = yaml.safe_load((ROOT / "deploy/kuberay/rayservice.yaml").read_text())
KUBERAY = json.loads((ROOT / "tests/schemas/kuberay.json").read_text())
RAYJOB_RULES = Draft202012Validator(KUBERAY | {"$ref": "#/$defs/rayJob"})
RAYSERVICE_RULES = Draft202012Validator(KUBERAY | {"$ref": "#/$defs/rayService"})
PODS = pods_of(RAYJOB) | pods_of(RAYSERVICE)
POLICIES = {
    (manifest["kind"], manifest["metadata"]["name"]): manifest
    for manifest in read_manifests(KUBERAY_FILES / "policies.yaml")
}
REDIS = {manifest["kind"]: manifest for manifest in read_manifests(KUBERAY_FILES / "redis.yaml")}


class CloudFormation(yaml.SafeLoader):
    """Reads `!Ref X` and its like as the text behind them."""


CloudFormation.add_multi_constructor("!", lambda loader, tag, node: node.value)
STACK = yaml.load((ROOT / "deploy/aws/stack.yaml").read_text(), CloudFormation)["Resources"]
FILES = (
    "cluster.yaml",
    "deploy/aws/stack.yaml",
    "deploy/kuberay/policies.yaml",
    "deploy/kuberay/rayjob.yaml",
    "deploy/kuberay/rayservice.yaml",
    "deploy/kuberay/redis.yaml",
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


def holds(whole, part):
    """Whether a tree has all fields of another one with the same values."""
    if not isinstance(part, dict):
        return whole == part
    return all(name in whole and holds(whole[name], value) for name, value in part.items())


def test_the_aws_file_passes_rays_own_schema_and_ray_keeps_all_of_it():
    read = prepare_config(copy.deepcopy(AWS))
    validate_config(read)
    assert holds(read, AWS)
    assert not holds(read, with_field(AWS, ("docker", "image"), "another"))
    assert set(read) > set(AWS)  # what Ray fills in is no setting of ours under another name


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
        shared in line and "mount -t efs -o tls,iam" in line
        for line in AWS["initialization_commands"]
    )


NAMES_OF_SECRETS = (
    "/home/ray/.ray/auth_token: ~/.ray/auth_token",
    "--from-literal=password=$(openssl rand -hex 32)",
    "secretKeyRef: {name: panoply-redis, key: password}",
    "secret: {secretName: panoply-redis, defaultMode: 288}",
    "secret: {secretName: panoply-keys, defaultMode: 288}",
    "name: password, mountPath: /secret",
    "cat /secret/password",
    "redisPassword:",
)
"""Where a secret is called by its name, or made on the spot: none of these is one."""


def without_names(line):
    """Returns a line of a file without the names that secrets are called by."""
    for name in NAMES_OF_SECRETS:
        line = line.replace(name, "")
    return line


@pytest.mark.parametrize("name", FILES)
def test_no_file_holds_a_secret(name):
    for line in (ROOT / name).read_text().splitlines():
        assert not [rule for rule in SECRETS if re.search(rule, without_names(line))], line


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
    template = RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    [container] = template["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert config.out.startswith(mounts["shared"])


def test_all_files_name_one_image_and_the_ray_that_is_installed():
    for spec in (RAYJOB["spec"]["rayClusterSpec"], RAYSERVICE["spec"]["rayClusterConfig"]):
        pods = [spec["headGroupSpec"]["template"], spec["workerGroupSpecs"][0]["template"]]
        images = {pod["spec"]["containers"][0]["image"] for pod in pods}
        assert images == {AWS["docker"]["image"]}
        assert re.fullmatch(r"[^@]+@sha256:[0-9a-f]{64}", AWS["docker"]["image"])
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


def test_the_image_closes_slow_connections_by_what_it_has_on_its_path():
    text = (ROOT / "Dockerfile").read_text()
    env = dict(re.findall(r"([A-Z][A-Z0-9_]+)=(\S+)", text))
    [callback] = re.findall(r"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=(\S+)", text)
    assert callback == ALONE["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert callable(import_attr(callback))
    assert re.search(r"^WORKDIR (\S+)$", text, re.MULTILINE)[1] == env["PYTHONPATH"]
    assert f"COPY {callback.split('.')[0]} " in text
    assert text.index("COPY actors") < text.index(callback)


@pytest.mark.parametrize("name", [*PODS, "redis"])
def test_no_pod_asks_for_more_rights_than_kubernetes_calls_restricted(name):
    pod = PODS[name]["spec"] if name in PODS else REDIS["StatefulSet"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is rights["privileged"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    namespace = POLICIES["Namespace", "panoply"]["metadata"]
    assert namespace["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert {PODS[name]["metadata"]["namespace"] for name in PODS} == {"panoply"}


def test_only_heads_may_talk_to_kubernetes():
    tokens = {name: pod["spec"]["automountServiceAccountToken"] for name, pod in PODS.items()}
    assert {name for name, mounted in tokens.items() if mounted} == {"armorm-head", "rewards-head"}


def test_pods_are_reached_by_their_own_kind_by_clients_and_by_kuberay_alone():
    policy = POLICIES["NetworkPolicy", "ray-nodes"]["spec"]
    nodes, clients, operators = policy["ingress"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all("from" in rule for rule in policy["ingress"])
    assert "ports" not in nodes
    assert {port["port"] for port in clients["ports"]} == {8000}
    assert {port["port"] for port in operators["ports"]} == {8000, 8265, 52365}
    for name, pod in PODS.items():
        labels = pod["metadata"]["labels"]
        chosen = [
            policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
            for (kind, _), policy in POLICIES.items()
            if kind == "NetworkPolicy"
        ]
        assert sum(chosen) == 1, name


def test_pods_cannot_ask_the_node_for_its_credentials():
    outside = [
        peer["ipBlock"]
        for rule in POLICIES["NetworkPolicy", "ray-nodes"]["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert outside == [{"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}]


def test_every_model_on_kubernetes_asks_for_a_key_that_a_mounted_secret_holds():
    service = yaml.safe_load(RAYSERVICE["spec"]["serveConfigV2"])
    [gateway] = [app["args"] for app in service["applications"] if app["route_prefix"] == "/"]
    assert set(gateway["keys"]) == set(gateway["models"])
    places = {place for places in gateway["keys"].values() for place in places}
    for pod in pods_of(RAYSERVICE).values():  # a gateway's replica may run on any of them
        secrets = {v["name"]: v["secret"] for v in pod["spec"]["volumes"] if "secret" in v}
        [container] = pod["spec"]["containers"]
        folders = [m for m in container["volumeMounts"] if m["name"] in secrets]
        assert all(mount["readOnly"] for mount in folders)
        assert {mount["mountPath"] for mount in folders} == {str(Path(p).parent) for p in places}
        for mount in folders:
            assert secrets[mount["name"]]["defaultMode"] & 0o007 == 0  # no others read it
    header = (KUBERAY_FILES / "rayservice.yaml").read_text()
    for place in places:  # the command at its head makes what it mounts
        assert (
            f"secret generic panoply-keys \\\n#       --from-literal={Path(place).name}=" in header
        )


def test_the_state_of_rays_controller_lies_behind_a_password_that_no_file_holds():
    options = RAYSERVICE["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    secret = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    volumes = REDIS["StatefulSet"]["spec"]["template"]["spec"]["volumes"]
    assert secret["name"] in {
        volume["secret"]["secretName"] for volume in volumes if "secret" in volume
    }
    assert options["redisAddress"].split(":")[0] == REDIS["Service"]["metadata"]["name"]
    ingress = POLICIES["NetworkPolicy", "redis"]["spec"]["ingress"]
    assert ingress[0]["from"] == [
        {"podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}},
    ]


def test_ray_nodes_are_probed_and_evicted_one_at_a_time():
    for name, pod in PODS.items():
        if name.endswith("submitter"):
            continue
        [container] = pod["spec"]["containers"]
        for probe in ("livenessProbe", "readinessProbe"):
            # Paths that a cluster with tokens answers without one.
            assert container[probe]["httpGet"]["path"] in (
                "/api/gcs_healthz",
                "/api/local_raylet_healthz",
            )
    assert POLICIES["PodDisruptionBudget", "ray-nodes"]["spec"]["maxUnavailable"] == 1


def test_on_aws_nodes_have_least_rights_closed_firewalls_and_tls():
    assert AWS["provider"]["use_internal_ips"] is True
    for name, role in (("head", "panoply-head"), ("gpu", "panoply-worker")):
        node = AWS["available_node_types"][name]["node_config"]
        assert node["IamInstanceProfile"] == {"Name": role}
        assert node["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert node["SecurityGroupIds"]
        assert node["SubnetIds"]
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
    assert "Policies" not in STACK["WorkerRole"]["Properties"]
    assert "ManagedPolicyArns" not in STACK["WorkerRole"]["Properties"]
    [policy] = STACK["HeadRole"]["Properties"]["Policies"]
    for statement in policy["PolicyDocument"]["Statement"]:
        actions = statement["Action"]
        actions = [actions] if isinstance(actions, str) else actions
        assert "*" not in "".join(actions)
        reads = all(action.startswith("ec2:Describe") for action in actions)
        assert reads or statement["Resource"] != "*"
    for resource in STACK.values():
        if resource["Type"] == "AWS::EC2::SecurityGroup":
            ranges = [rule.get("CidrIp") for rule in resource["Properties"]["SecurityGroupIngress"]]
            assert "0.0.0.0/0" not in ranges
    assert STACK["Files"]["Properties"]["Encrypted"] is True
    deny = STACK["Files"]["Properties"]["FileSystemPolicy"]["Statement"][0]
    assert deny["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_image_installs_what_its_lock_names_by_hash_and_the_lock_follows_the_constraints():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = dict(
        line.split(" ")[0].split("==") for line in lines if re.match(r"[a-z0-9_.-]+==", line)
    )
    assert sum("--hash=sha256:" in line for line in lines) >= len(locked) > 50
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, pinned = line.lower().replace("_", "-").partition("==")
        if name in locked:
            assert locked[name] == pinned, name
    assert "--require-hashes" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", ["docs/cluster.md", "docs/threat-model.md"])
def test_docs_name_only_files_that_are_there(name):
    for path in re.findall(
        r"`((?:deploy|tests|docs)/[\w./-]+|cluster\.yaml)`", (ROOT / name).read_text()
    ):
        assert (ROOT / path).exists(), path


def test_every_test_that_the_threat_model_names_is_there():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs/threat-model.md").read_text())
    assert len(named) > 40
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), test
