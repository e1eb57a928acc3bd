"""Writes the pods that KubeRay would make as plain pods, which checkers of manifests can read."""

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "deploy/kuberay"


def read_manifests(path: Path) -> list[dict[str, Any]]:
    """Reads all manifests of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the Ray cluster that a RayJob or a RayService describes, None for other kinds."""
    spec = manifest.get("spec", {})
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig")


def pods_of(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the pods of a RayJob or a RayService by name, labelled as KubeRay labels them."""
    cluster = cluster_of(manifest)
    assert cluster is not None
    name = manifest["metadata"]["name"]
    namespace = manifest["metadata"].get("namespace")
    templates = {"head": cluster["headGroupSpec"]["template"]}
    templates |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    pods = {}
    for group, template in templates.items():
        pods[f"{name}-{group}"] = {"ray.io/is-ray-node": "yes"}, template
    if (submitter := manifest["spec"].get("submitterPodTemplate")) is not None:
        pods[f"{name}-submitter"] = {}, submitter
    return {pod: _pod(pod, namespace, labels, template) for pod, (labels, template) in pods.items()}


def write_manifests(out: Path) -> None:
    """Writes each manifest of deploy/kuberay to a folder, clusters as their pods."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(KUBERAY.glob("*.yaml")):
        for manifest in read_manifests(path):
            if cluster_of(manifest) is None:
                name = f"{manifest['kind']}-{manifest['metadata']['name']}"
                (out / f"{name}.yaml").write_text(yaml.safe_dump(manifest))
                continue
            for name, pod in pods_of(manifest).items():
                (out / f"{name}.yaml").write_text(yaml.safe_dump(pod))


def _pod(
    name: str, namespace: str | None, labels: dict[str, str], template: dict[str, Any]
) -> dict[str, Any]:
    written = template.get("metadata", {})
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": labels | written.get("labels", {}),
        "annotations": written.get("annotations", {}),
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


if __name__ == "__main__":
    write_manifests(Path(sys.argv[1]))
