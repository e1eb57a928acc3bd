"""`serve deploy`: the file that `--write` leaves, Ray's reading of it, and what it changes live."""

import io
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import httpx2
import psutil
import pytest
import yaml
from ray import serve
from ray._common.utils import import_attr
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from rich.console import Console

from jobs.recipes import SERVE
from panoply.config.serve import ScalingConfig, ServeConfig
from panoply.report.progress import RunLogger
from tests.builders.ports import free_ports
from tests.builders.ray_head import ROOT
from workflows.cluster.models import model_app
from workflows.cluster.resolve_model import resolve_model
from workflows.serve import admitted, deployed, follow, run_serve, serve_file, targets

LENGTH = "function:panoply.serve.verifiers:length"
[PORT] = free_ports(1)
URL = f"http://127.0.0.1:{PORT}"


def written(tmp_path, *models, **settings):
    """The configuration, and the file that `--write` leaves."""
    config = ServeConfig(models=models, write=str(tmp_path / "serve.yaml"), **settings)
    run_serve(config, RunLogger())
    return config, yaml.safe_load(Path(config.write).read_text())


def unknown_keys(value, schema):
    """Keys that Ray would drop in silence."""
    return sorted(set(value) - set(schema.model_fields))


def same(a, b):
    """Whether two applications are the same deployment of the same arguments."""
    a, b = a._bound_deployment, b._bound_deployment
    return (
        (a.name, a.func_or_class, a.init_args, a.ray_actor_options)
        == (b.name, b.func_or_class, b.init_args, b.ray_actor_options)
    ) and a._deployment_config == b._deployment_config


def test_the_file_has_no_key_that_ray_would_drop_and_builds_what_the_job_builds(
    tmp_path, monkeypatch
):
    scaling = ScalingConfig(min_replicas=0, max_replicas=3, idle_seconds=9.0, cpus=0.5)
    models = (f"a={LENGTH}", "b=function:panoply.serve.verifiers:exact", f"c={tmp_path}")
    config, file = written(tmp_path, *models, scaling=scaling, keys=("b=KEY",), host="0.0.0.0")
    read = ServeDeploySchema.model_validate(file)
    assert unknown_keys(file, ServeDeploySchema) == []
    assert unknown_keys(file["http_options"], type(read.http_options)) == []
    for entry, app in zip(file["applications"], read.applications, strict=True):
        assert unknown_keys(entry, type(app)) == []
    assert unknown_keys({"import_paht": "x"}, type(read.applications[0])) == ["import_paht"]
    assert (read.http_options.host, read.http_options.port) == ("0.0.0.0", 8000)
    assert [app.route_prefix for app in read.applications] == [None, None, None, "/"]

    expected = targets([resolve_model(model) for model in config.served_models()], config)
    built = {app.name: import_attr(app.import_path)(app.args) for app in read.applications}
    assert (
        list(built)
        == [name for name, _, _ in expected]
        == ["panoply-model-a", "panoply-model-b", "panoply-model-c", "panoply-gateway"]
    )
    for name, path, args in expected[:-1]:
        assert path == "workflows.cluster.models:model_app"
        assert same(built[name], model_app(args))
    assert not same(built["panoply-model-a"], built["panoply-model-b"])
    assert read.applications[-1].args["keys"] == {"b": ["KEY"]}
    assert "secret" not in Path(config.write).read_text()


def test_a_misspelled_setting_in_the_file_is_an_error(tmp_path):
    _, file = written(tmp_path, f"a={LENGTH}")
    app, gateway = file["applications"]
    for args, build in (
        (app["args"], model_app),
        (gateway["args"], import_attr(gateway["import_path"])),
    ):
        with pytest.raises(ValueError, match=r"^scalling: Unexpected keyword argument$"):
            build(args | {"scalling": {}})
    scaling = app["args"]["scaling"] | {"max_replica": 2}
    with pytest.raises(ValueError, match=r"^scaling\.max_replica: Unexpected keyword argument$"):
        model_app(app["args"] | {"scaling": scaling})
    with pytest.raises(ValueError, match="min_replicas"):
        model_app(app["args"] | {"scaling": {"min_replicas": 2, "max_replicas": 1}})


def gateway_args(**changes):
    return {"models": ["a", "b"], "keys": {"b": ["KEY"]}} | changes


def test_a_protection_that_nothing_would_enforce_stops_the_server(tmp_path, monkeypatch):
    _, file = written(tmp_path, f"a={LENGTH}", f"b={LENGTH}", keys=("b=KEY",))
    model, _, gateway = (app["args"] for app in file["applications"])
    assert gateway["keys"] == {"b": ["KEY"]}
    build = import_attr("workflows.cluster.gateway:gateway_app")
    build(gateway_args())
    message = r"name the key in its `keys` instead: \{a: KEY\}"
    with pytest.raises(ValueError, match=f"(?i){message}"):
        model_app(model | {"key_variable": "KEY"})
    for changes, message in (
        ({"keys": {"A": ["KEY"]}}, r"`keys` must be names among \['a', 'b'\], got \['A'\]"),
        ({"keys": {"a": [""]}}, r"`keys\['a'\]` must be names of environment variables, or absol"),
        ({"keys": {"a": []}}, r"`keys\['a'\]` must be names of .* files, got \[\]"),
        (
            {"default": "nobody"},
            r"`gateway.default` must be one of \['a', 'b'\], or empty, got 'nobody'",
        ),
        ({"models": []}, "`models` must be"),
        ({"models": ["a", "a"]}, "`models` must be different"),
        ({"name": "a-model"}, "`name` must be letters, digits"),
    ):
        with pytest.raises(ValueError, match=message):
            build(gateway_args(**changes))
    for keys, message in (
        (("c=KEY",), r"`keys` must be names among \['a', 'b'\], got \['c'\]"),
        (("b=",), r"`keys\['b'\]` must be names of environment variables"),
        (("b=KEY", "b=KEY"), "`keys` must be each place of a model once"),
        (("b",), "`keys` must be NAME=VARIABLE or NAME=/FILE, got 'b'"),
    ):
        with pytest.raises(ValueError, match=message):
            written(tmp_path, f"a={LENGTH}", f"b={LENGTH}", keys=keys)
    monkeypatch.delenv("KEY", raising=False)
    with pytest.raises(ValueError, match="environment variable 'KEY' holds no key"):
        run_serve(ServeConfig(models=(f"a={LENGTH}",), keys=("a=KEY",), port=0), RunLogger())


def test_the_rayservice_serves_what_can_be_built_where_its_clients_ask():
    spec = yaml.safe_load((ROOT / "deploy/kuberay/rayservice.yaml").read_text())["spec"]
    file = yaml.safe_load(spec["serveConfigV2"])
    read = ServeDeploySchema.model_validate(file)
    assert unknown_keys(file, ServeDeploySchema) == []
    pod = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"containerPort": read.http_options.port, "name": "serve"} in pod["ports"]
    assert read.http_options.host == "0.0.0.0"
    gpus = {}
    for entry, app in zip(file["applications"], read.applications, strict=True):
        assert unknown_keys(entry, type(app)) == []
        built = import_attr(app.import_path)(app.args)._bound_deployment
        gpus[app.name] = built.ray_actor_options.get("num_gpus")
    assert gpus == {"panoply-model-armorm": 1, "panoply-model-length": 0, "panoply-gateway": None}
    models = [app.args for app in read.applications[:-1]]
    assert [model["name"] for model in models] == read.applications[-1].args["models"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["volumeMounts"]}
    assert models[0]["where"].startswith(mounts["shared"])


def test_the_demo_without_its_model_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'runs/embedded/model' is no folder.*`make demo`"):
        run_serve(SERVE["demo"][1], RunLogger())


@pytest.fixture(scope="module")
def live(cluster, tmp_path_factory):
    """A function that stays, and one that goes when it is idle, deployed from a file."""
    config, _ = written(
        tmp_path_factory.mktemp("deploy"), f"stays={LENGTH}", f"goes={LENGTH}", port=PORT
    )
    small = ScalingConfig(cpus=0.1)
    stays, goes = [replace(model, scaling=small) for model in config.served_models()]
    idle = ScalingConfig(min_replicas=0, max_replicas=1, idle_seconds=1.0, cpus=0.1)
    file = serve_file([stays, replace(goes, scaling=idle)], config)
    serve.start(http_options={"host": config.host, "port": PORT})
    deploy(file)
    yield file
    serve.shutdown()


def deploy(file):
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(file))


def score(name, text="four", label=None):
    """A score, or the status."""
    item = {"prompt": [{"role": "user", "content": "q"}], "responses": [text], "label": label}
    answer = httpx2.post(f"{URL}/models/{name}/v1/rewards", json={"items": [item]}, timeout=60)
    if answer.status_code != 200:
        return answer.status_code
    return answer.json()["results"][0]["items"][0][0]["score"]


def state(name):
    try:
        return httpx2.get(f"{URL}/health", timeout=10).json()["models"][name]
    except (httpx2.TransportError, ValueError, KeyError):
        return "no gateway"


def wait_until(holds, seconds=200):
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, serve.status()
        time.sleep(0.2)


def pids(app):
    pids = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ends while we look; a zombie is one of these
            if f"ServeReplica:{app}:" in " ".join(process.cmdline()):
                pids.add(process.pid)
    return pids


def test_an_idle_model_comes_when_it_is_asked_and_goes_again(live):
    wait_until(lambda: state("stays") == "ready")
    wait_until(lambda: state("goes") == "idle")
    assert pids("panoply-model-goes") == set()
    assert score("goes") == 4.0
    assert len(pids("panoply-model-goes")) == 1
    wait_until(lambda: not pids("panoply-model-goes"))
    wait_until(lambda: state("goes") == "idle", 10)


def test_another_setting_of_one_model_leaves_the_replicas_of_the_others(live):
    wait_until(lambda: state("stays") == "ready")
    before = {app: pids(app) for app in ("panoply-model-stays", "panoply-gateway")}
    assert all(len(entry) == 1 for entry in before.values())
    changed = [
        app | {"args": app["args"] | {"where": "function:panoply.serve.verifiers:exact"}}
        if app["name"] == "panoply-model-goes"
        else app
        for app in live["applications"]
    ]
    deploy(live | {"applications": changed})
    wait_until(lambda: score("stays") == 4.0 and score("goes", "four", "four") == 1.0)
    assert {app: pids(app) for app in before} == before


def beside(**settings):
    """A server of another name on the cluster of the file."""
    config = ServeConfig(models=(f"mine={LENGTH}",), **{"port": PORT, "name": "own"} | settings)
    return deployed(config.served_models(), config)


def test_a_server_that_would_replace_what_others_deployed_is_refused(live):
    before = set(serve.status().applications)
    taken = model_app(asdict(ServeConfig(models=(f"x={LENGTH}",)).served_models()[0]))
    serve.run(taken, name="foreign", route_prefix="/servers/taken")
    for settings, message in (
        ({"name": "panoply"}, "'panoply[-a-z]*' was deployed on this cluster from a file: take an"),
        ({"name": "taken"}, "'foreign' answers at /servers/taken of this cluster: take another"),
        ({"port": PORT + 1}, f"listens at 127.0.0.1:{PORT} .* Add `--host 127.0.0.1 --port {PORT}"),
        ({"host": "0.0.0.0"}, f"listens at 127.0.0.1:{PORT} .* Add `--host 127.0.0.1"),
    ):
        with pytest.raises(ValueError, match=message), beside(**settings):
            pass
    serve.delete("foreign")
    assert set(serve.status().applications) == before


def test_a_server_takes_the_place_of_a_killed_one_and_ends_when_its_gateway_is_taken_down(live):
    before = set(serve.status().applications)
    left = model_app(asdict(ServeConfig(models=(f"old={LENGTH}",)).served_models()[0]))
    serve.run(left, name="own-model-old", route_prefix=None)
    watch = RunLogger(Console(file=io.StringIO(), width=300))

    def strike():
        wait_until(lambda: "Serving at" in watch.console.file.getvalue())
        serve.delete("own-gateway")

    with beside(port=0) as server:
        names = {"own-gateway", "own-model-mine"}
        assert set(serve.status().applications) - before == names
        threading.Thread(target=strike).start()
        message = "the gateway is gone: .* Somebody else took 'own-gateway' down"
        with pytest.raises(ConnectionError, match=message):
            follow(server, threading.Event(), watch)
        lines = watch.console.file.getvalue()
        assert f"Serving at {URL}/servers/own/ (UI)" in lines
        assert "the gateway: ready" in lines
    assert set(serve.status().applications) == before


def test_what_serves_without_http_admits_no_server():
    config = ServeConfig(models=(f"a={LENGTH}",))
    with pytest.raises(ValueError, match="runs on this cluster without HTTP, as a run of"):
        admitted(config, {"proxy_location": "Disabled"})
