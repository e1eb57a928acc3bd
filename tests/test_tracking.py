"""A real MLflow server takes two runs at once, and goes on with a run that is logged again."""

import json
import os
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient

LOG = """
import sys
from pathlib import Path
from workflows.tracking import log_run
out = Path(sys.argv[1])
print(log_run("race", out, {"seed": 1}, {"pairs": {"gate": {"accuracy": 0.5}}}, {}, "armorm"))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", uri.rsplit(":", 1)[1], "--artifacts-destination", str(folder / "files")]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            urlopen(f"{uri}/health", timeout=1)
            break
        except (URLError, TimeoutError):
            assert process.poll() is None
            time.sleep(0.2)
    yield uri
    process.terminate()
    process.wait()


def finished_run(folder):
    (folder / "model").mkdir(parents=True)
    for name in ("config.json", "metrics.json", "model/panoply.json"):
        (folder / name).write_text(json.dumps({"name": name}))
    return folder


def log(server, *outs):
    env = os.environ | {"MLFLOW_TRACKING_URI": server, "MLFLOW_DISABLE_TELEMETRY": "true"}
    each = [
        subprocess.Popen([sys.executable, "-c", LOG, str(out)], env=env, stdout=subprocess.PIPE)
        for out in outs
    ]
    told = [process.communicate(timeout=300)[0].decode().split() for process in each]
    assert [process.returncode for process in each] == [0] * len(outs)
    return [next(word for word in words if len(word) == 32) for words in told]


def test_two_runs_at_once_share_one_experiment_and_one_registered_model(server, tmp_path):
    outs = [finished_run(tmp_path / name) for name in ("a", "b")]
    first, second = log(server, *outs)
    client = MlflowClient(server)
    runs = [client.get_run(name) for name in (first, second)]
    assert len({run.info.experiment_id for run in runs}) == 1
    assert [run.data.metrics["pairs.gate.accuracy"] for run in runs] == [0.5, 0.5]
    versions = client.search_model_versions("name = 'armorm'")
    assert {version.run_id for version in versions} == {first, second}
    assert log(server, outs[0]) == [first]
    assert len(client.search_model_versions("name = 'armorm'")) == 2
    files = {file.path for file in client.list_artifacts(first)}
    assert files == {"config.json", "metrics.json", "model"}
