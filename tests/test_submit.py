"""`ray job submit`: what arrives on the cluster, what comes back, what a stopped job leaves."""

import json
import socket
import time
import zipfile
from pathlib import Path
from urllib.request import urlopen

import pytest
from ray._private.runtime_env.packaging import create_package
from ray_head import ROOT, eventually, free_ports, ray_head

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
    create_package(str(ROOT), target := tmp_path / "package.zip", include_gitignore=True)
    packed = set(zipfile.ZipFile(target).namelist())
    modules = {str(p.relative_to(ROOT)) for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    assert "panoply/data/planted.py" in modules
    assert modules <= packed
    assert not [name for name in packed if name.startswith((".venv", "runs", "mlruns"))]
    assert target.stat().st_size < 10 << 20


def test_a_submitted_run_tells_its_progress_and_leaves_its_results(
    head, tiny_model_folder, tmp_path
):
    out = tmp_path / "run"
    done, job = submit(head, "good", *armorm(tiny_model_folder, out, "--num-workers", "2"))
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("objectives: ", "gate: ", f"results: {out}", "'good' succeeded"):
        assert line in done.stdout
    assert job()["driver_exit_code"] == 0
    assert (out / "metrics.json").exists()
    assert (out / "model" / "model.safetensors").exists()
    # The store of the head's environment is that of the run.
    assert list(Path(head.env["PANOPLY_STORE"]).rglob("texts-*.parquet"))


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


def test_a_stopped_server_leaves_no_application_no_actor_and_no_port(head):
    (port,) = free_ports(1)
    length = "length=function:panoply.serve.verifiers:length"
    words = ("python", "-m", "jobs.serve", "models", "--models", length, "--port", str(port))
    done, job = submit(head, "serve", "--no-wait", *words, "--scaling.cpus", "0.1")
    assert done.returncode == 0, done.stdout + done.stderr

    def answer():
        assert job()["status"] in ("PENDING", "RUNNING"), job()
        body = json.dumps({"query": ["four"]}).encode()
        try:
            with urlopen(f"http://127.0.0.1:{port}/get_reward", body, timeout=30) as told:
                return json.load(told)
        except OSError:  # refused, or 404 and 503 while it starts
            return None

    assert eventually(answer, 180, "an answer")["rewards"] == [4.0]
    assert head.get("/api/serve/applications/")["applications"].keys() == {
        "gateway",
        "model-length",
    }
    assert head.run("job", "stop", "--address", head.dashboard, "serve").returncode == 0
    assert job()["status"] == "STOPPED"

    def left():
        alive = {a["class_name"] for a in head.listed("actors") if a["state"] != "DEAD"}
        with socket.socket() as probe:
            is_open = probe.connect_ex(("127.0.0.1", port)) == 0
        return [*(alive - RAYS_OWN), *([port] if is_open else [])]

    eventually(lambda: not left(), 60, "nothing is left")
    assert head.get("/api/serve/applications/")["applications"] == {}
