"""`ray job submit`: what arrives on the cluster, what comes back, what a stopped job leaves."""

import json
import time
import zipfile
from pathlib import Path

import httpx2
import pytest
from mlflow import MlflowClient
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from tests.builders.ports import free_ports
from tests.builders.ray_head import ROOT, eventually, ray_head
from tests.builders.servers import models_at, score, servers

pytestmark = pytest.mark.ray

PACKAGES = ("actors", "jobs", "panoply", "workflows")
RAYS_OWN = {
    "ActorLocationTracker",
    "TrainStateActor",
    "_AutoscalingCoordinatorActor",
    "_StatsActor",
    "_StatsSummaryActor",
    "_UsageCollectionActor",
}
"""Ray Data and Ray Train keep one of each per cluster, without resources."""


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    settings = {"PANOPLY_STORE": str(store), "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    with ray_head("--num-cpus=4", "--num-gpus=0", **settings) as started:
        yield started


def armorm(model, out, *flags):
    """Words of a run that takes seconds."""
    return (
        *("python", "-m", "jobs.armorm", "embedded", "--out", str(out)),
        *("--backbone.model", str(model), "--backbone.dtype", "float32"),
        *("--backbone.depths", "0.5", "--backbone.poolings", "last"),
        *("--planted.num-prompts", "150", "--planted.num-responses", "3"),
        *("--objectives.num-folds", "3", "--gate.hidden-size", "16", "--gate.num-steps", "40"),
        *("--no-leave-one-out", *flags),
    )


def submit(head, name, *words):
    """Submits the repository as README says; returns the finished `ray` command and the job."""
    names = ("--address", head.dashboard, "--submission-id", name)
    wait = () if "--no-wait" not in words else ("--no-wait",)
    rest = [word for word in words if word != "--no-wait"]
    done = head.run("job", "submit", *names, *wait, "--working-dir", ".", "--", *rest)
    return done, lambda: head.get(f"/api/jobs/{name}")


def test_the_package_of_the_working_folder_holds_every_module_and_no_environment(tmp_path):
    # Packaging honors .gitignore: an unanchored `data/` there would drop `panoply/data`.
    # `ray job submit` leaves Ray's default excludes (`.git`, `.venv`) out, and so does this.
    create_package(
        str(ROOT),
        target := tmp_path / "package.zip",
        include_gitignore=True,
        excludes=get_runtime_env_default_excludes(),
    )
    packed = set(zipfile.ZipFile(target).namelist())
    modules = {str(p.relative_to(ROOT)) for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    assert "panoply/synthetic/planted.py" in modules
    assert modules <= packed
    assert not [name for name in packed if name.startswith((".git/", ".venv", "runs", "mlruns"))]
    assert target.stat().st_size < 10 << 20


def test_a_submitted_run_tells_its_progress_and_leaves_its_results(
    head, tiny_model_folder, tmp_path
):
    out = tmp_path / "run"
    done, job = submit(head, "good", *armorm(tiny_model_folder, out))
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("objectives: ", "gate: ", f"results: {out}", "'good' succeeded"):
        assert line in done.stdout
    assert job()["driver_exit_code"] == 0
    assert (out / "metrics.json").exists()
    assert (out / "model" / "model.safetensors").exists()
    # The store of the head's environment is that of the run.
    assert list(Path(head.env["PANOPLY_STORE"]).rglob("texts-*.parquet"))


def test_a_submitted_run_of_the_loop_leaves_its_results_and_registers_its_policy(
    head, tiny_policy_folder, tmp_path
):
    out = tmp_path / "laser"
    words = (
        *("python", "-m", "jobs.laser", "embedded", "--out", str(out)),
        *("--backbone.model", str(tiny_policy_folder), "--backbone.dtype", "float32"),
        *("--backbone.rendering.max-prompt-tokens", "96", "--sampling.max-tokens", "12"),
        *("--prompts.num-made", "12", "--prompts.num-held-out", "3", "--num-samples", "3"),
        *("--num-rounds", "2", "--prompts-per-round", "4"),
    )
    done, job = submit(head, "loop", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("laser: round 1", "tracked: MLflow run", f"results: {out}", "'loop' succeeded"):
        assert line in done.stdout
    assert job()["driver_exit_code"] == 0
    found = json.loads((out / "metrics.json").read_text())["strategies"]["laser"]
    assert found["num_scored"] == 2 * 4 * 3
    assert "What the policies came to" in (out / "report.html").read_text()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'policy'")
    assert version.run_id == (out / "mlflow_run").read_text()


def test_a_relative_folder_is_refused_with_one_sentence(head, tiny_model_folder):
    done, job = submit(head, "relative", *armorm(tiny_model_folder, "runs/mine"))
    assert done.returncode != 0
    assert job()["driver_exit_code"] == 2
    told = " ".join(done.stdout.split())
    assert "error: `out` is 'runs/mine', a relative path" in told
    assert "give an absolute path on storage that all nodes share" in told
    assert "Traceback" not in done.stdout


def test_a_job_stopped_while_it_trains_leaves_nothing_behind(head, tiny_model_folder, tmp_path):
    for_ever = ("--gate.num-steps", "10000000", "--gate.patience", "10000000")
    words = armorm(tiny_model_folder, tmp_path / "run", "--num-workers", "2", *for_ever)
    done, job = submit(head, "long", "--no-wait", *words)
    assert done.returncode == 0, done.stdout + done.stderr

    def training():
        assert job()["status"] in ("PENDING", "RUNNING"), job()
        heads = (tmp_path / "run" / "train").glob("heads-*")
        groups = head.listed("placement_groups")
        return any(heads) and any(g["state"] == "CREATED" for g in groups)

    eventually(training, 180, "the gate trains")
    driver = int(job()["driver_info"]["pid"])
    assert head.run("job", "stop", "--address", head.dashboard, "long").returncode == 0
    assert job()["status"] == "STOPPED"
    assert_nothing_is_left(head, driver)


def assert_nothing_is_left(head, driver):
    """Neither actors nor placement groups nor the driver, soon after a job was stopped."""

    def left():
        alive = {a["class_name"] for a in head.listed("actors") if a["state"] != "DEAD"}
        groups = [g for g in head.listed("placement_groups") if g["state"] != "REMOVED"]
        command = Path(f"/proc/{driver}/cmdline")
        running = [command.read_bytes()] if command.exists() else []
        return [*(alive - RAYS_OWN), *groups, *filter(None, running)]

    end = time.monotonic() + 90
    while left() and time.monotonic() < end:
        time.sleep(0.3)
    assert not left()


def test_a_submitted_server_answers_and_leaves_nothing_when_it_is_stopped(head):
    (port,) = free_ports(1)
    arm = "length=function:panoply.serve.verifiers:length"
    words = ("python", "-m", "jobs.serve", "models", "--models", arm, "--port", str(port))
    done, job = submit(head, "serve", "--no-wait", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    url = f"http://127.0.0.1:{port}"

    def ready():
        assert job()["status"] in ("PENDING", "RUNNING"), job()
        try:
            return httpx2.get(f"{url}/health").json()["models"] == {"length": "ready"}
        except (httpx2.TransportError, ValueError, KeyError):
            return False

    eventually(ready, 180, "the server answers")
    told = httpx2.post(f"{url}/get_reward", json={"query": ["pq", "pqr"], "prompts": ["p", "p"]})
    assert told.json()["rewards"] == [1.0, 2.0]
    assert httpx2.get(f"{url}/").status_code == 200  # the page came with the package
    driver = int(job()["driver_info"]["pid"])
    assert head.run("job", "stop", "--address", head.dashboard, "serve").returncode == 0
    assert job()["status"] == "STOPPED"
    assert_nothing_is_left(head, driver)
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{url}/health")


def test_servers_on_one_cluster_outlive_each_other_in_any_order(head, tmp_path):
    # The last test of this head: the first server started Ray Serve, and the last one leaves it.
    env = head.env | {"RAY_ADDRESS": head.address}
    with servers(tmp_path, env) as start:
        outlive_each_other(start)


def outlive_each_other(start):
    a = start("--port", 0, model="a")
    root = a.address()
    port = httpx2.URL(root).port
    b, c = (start("--port", port, "--name", name, model=name) for name in "bc")
    same = start("--port", port, model="b")
    below = b.address(), c.address()
    assert below == tuple(f"http://127.0.0.1:{port}/servers/{name}/" for name in "bc")
    for address, model in zip((root, *below), "abc", strict=True):
        eventually(lambda a=address, m=model: models_at(a) == [m], 20, f"{model} is ready")
    page = httpx2.get(below[0].rstrip("/"), follow_redirects=True)
    assert (page.url, "<title>Score responses" in page.text) == (below[0], True)
    assert httpx2.get(f"{below[0]}page/page.js").status_code == 200
    assert "'server-panoply' runs on this cluster already: take another `--name`" in same.refusal()

    b.stop()
    assert (score(root, "four"), score(below[1], "three")) == (4.0, 5.0)
    assert httpx2.get(f"{below[0]}health").json().get("run") is None
    a.stop()  # it started Ray Serve, and another is there by now
    assert a.process.returncode == 0
    assert score(below[1], "four") == 4.0
    assert httpx2.get(f"{root}health").status_code == 404
