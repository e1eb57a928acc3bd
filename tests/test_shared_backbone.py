"""Models of adapters on one loaded backbone: scores as alone, and changes while they serve."""

import asyncio
import io
import json
import shutil
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict

import httpx2
import psutil
import pytest
from ray import serve
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from actors.shared_replica import SharedBackboneReplica
from panoply.config.serve import (
    BatchConfig,
    ScalingConfig,
    ServeConfig,
    ServedModelConfig,
    SharedBackboneConfig,
)
from panoply.config.upgrade import RollbackConfig, UpgradeConfig
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.artefact.sharing import backbone_key, load_on_backbone
from panoply.report.progress import RunLogger
from panoply.serve.calls import ReplicaRequest
from panoply.wire.request import Chat, RequestError
from tests.builders.adapters import adapt, save_adapters
from tests.builders.models import PROMPT, RESPONSES, publish, save_small
from tests.builders.ports import free_ports
from tests.builders.ray_head import eventually
from tests.builders.servers import LENGTH, models_at
from workflows.cluster.shared import describe, places_of
from workflows.cluster.versions import Routes
from workflows.serve import deployed, serve_file
from workflows.upgrade import run_rollback, run_upgrade

[PORT] = free_ports(1)


@pytest.fixture(scope="module")
def folders(tiny_model_folder, tmp_path_factory):
    """Three models of ours on one backbone, and two adapters of peft on another."""
    root = tmp_path_factory.mktemp("adapters")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    save_adapters(root / "a", tiny_model_folder, seed=1)
    save_adapters(root / "b", tiny_model_folder, seed=2)
    save_adapters(root / "several", tiny_model_folder, num=2, seed=3, rule="lcb")
    save_adapters(root / "layers", tiny_model_folder, seed=4, kind="layers")
    base = publish(root / "base", tokenizer)
    adapt(base, root / "first", seed=4)
    adapt(base, root / "second", seed=5, target_modules=["q_proj", "up_proj"], use_rslora=True)
    adapt(base, root / "third", seed=6, target_modules=["o_proj", "down_proj"], r=4)
    adapt(base, root / "fourth", seed=7, use_dora=True)
    save_small(root / "merged", tokenizer)
    return root


def scores_alone(folder):
    return load_reward_model(folder).score(PROMPT, RESPONSES).tolist()


@pytest.mark.parametrize(
    "names",
    [
        ("a", "b", "several"),
        ("first", "second", "third", "fourth"),
        ("layers", "a"),
        ("a", "layers"),
    ],
)
def test_models_on_one_backbone_score_as_alone_and_hold_it_once(folders, names):
    models = {names[0]: load_on_backbone(str(folders / names[0]), None)}
    shared = models[names[0]].shared
    for name in names[1:]:
        models[name] = load_on_backbone(str(folders / name), shared)
    assert len({id(model.backbone.decoder.model) for model in models.values()}) == 1
    expected = {name: scores_alone(folders / name) for name in names}
    for name in [*names, *names[::-1]]:
        scores = models[name].score(PROMPT, RESPONSES).tolist()
        assert scores == pytest.approx(expected[name], rel=1e-4, abs=3e-5)
    assert len({model.provenance["weights"] for model in models.values()}) == len(names)
    models[names[0]].release()
    assert models[names[1]].score(PROMPT, RESPONSES).tolist() == pytest.approx(
        expected[names[1]], rel=1e-4, abs=3e-5
    )
    with pytest.raises(RuntimeError, match="was removed"):
        models[names[0]].score(PROMPT, RESPONSES)


def test_the_backbone_of_a_model_is_told_from_its_files(folders, tiny_policy_folder, tmp_path):
    keys = {
        name: backbone_key(str(folders / name))
        for name in ("a", "b", "several", "first", "second", "merged")
    }
    assert keys["a"] == keys["b"] == keys["several"]
    assert keys["first"] == keys["second"] != keys["a"]
    assert keys["merged"] == ""
    save_adapters(tmp_path / "other", tiny_policy_folder, seed=1)
    assert backbone_key(str(tmp_path / "other")) not in keys.values()


@pytest.mark.parametrize("changes", [{"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_replaces_weights_of_its_backbone_shares_none(folders, changes, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(folders / "first", folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=r"cannot share a backbone.*serve it without"):
        backbone_key(str(folder))


def test_an_adapter_of_another_model_leaves_the_others_as_they_were(folders, tmp_path):
    model = load_on_backbone(str(folders / "first"), None)
    expected = model.score(PROMPT, RESPONSES).tolist()
    shutil.copytree(folders / "second", tmp_path / "m")
    file = tmp_path / "m" / "adapter_model.safetensors"
    held = {name.replace("layers.1", "layers.7"): value for name, value in load_file(file).items()}
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit its base model.*layers"):
        load_on_backbone(str(tmp_path / "m"), model.shared)
    assert model.shared.num_adapters == 1
    assert model.score(PROMPT, RESPONSES).tolist() == expected


def settings(**members):
    models = {
        member: asdict(ServedModelConfig(name=member.partition("_")[0], where=str(folder)))
        for member, folder in members.items()
    }
    return {"models": models}


def replica_of():
    config = SharedBackboneConfig(
        name="s-backbone-k", key="k", models={}, batch=BatchConfig(max_tokens=4096)
    )
    return SharedBackboneReplica(config)


def request(responses=RESPONSES):
    return ReplicaRequest(items=(Chat(tuple(PROMPT), tuple(responses)),), bucket=0, timeout=60.0)


def values(answer):
    return [score.score for score in answer.items[0]]


def test_requests_to_several_models_share_batches_and_get_their_own_scores(folders):
    async def run():
        replica, batches = replica_of(), []
        await replica.reconfigure(settings(a=folders / "a", b=folders / "b"))
        replica.batcher.watch = batches.append
        answers = await asyncio.gather(
            *(replica.answer(request(), member=name) for name in "abab" * 3)
        )
        return answers, batches, await replica.about(member="a")

    answers, batches, about = asyncio.run(run())
    for name, answer in zip("abab" * 3, answers, strict=True):
        expected = scores_alone(folders / name)
        assert values(answer) == pytest.approx(expected, rel=1e-4, abs=3e-5)
        assert answer.model == name
    assert len(batches) < len(answers)
    assert about["shared_backbone"] == "k"


def test_models_come_and_go_while_others_answer(folders):
    """No answer of one that stays is missing or another while others load, fail and go."""

    async def run():
        replica = replica_of()
        await replica.reconfigure(settings(a=folders / "a"))
        counts, is_over = Counter(), asyncio.Event()

        async def ask():
            while not is_over.is_set():
                answer = await replica.answer(request(), member="a")
                counts[tuple(round(value, 3) for value in values(answer))] += 1

        asking = [asyncio.create_task(ask()) for _ in range(3)]
        for _ in range(3):
            await replica.reconfigure(
                settings(a=folders / "a", b=folders / "b", bad=folders / "none")
            )
            added = await replica.answer(request(), member="b")
            assert values(added) == pytest.approx(scores_alone(folders / "b"), rel=1e-4, abs=3e-5)
            failed = await replica.answer(request(), member="bad")
            await replica.reconfigure(settings(a=folders / "a"))
            gone = await replica.answer(request(), member="b")
        is_over.set()
        await asyncio.gather(*asking, *replica.releases)
        replica.check_health()
        return counts, failed, gone, replica.shared.num_adapters

    counts, failed, gone, num_adapters = asyncio.run(run())
    expected = tuple(round(value, 3) for value in scores_alone(folders / "a"))
    assert list(counts) == [expected]
    assert sum(counts.values()) > 5
    assert isinstance(failed, RequestError)
    assert (failed.status, "could not be loaded" in str(failed)) == (503, True)
    assert isinstance(gone, RequestError)
    assert (gone.status, "not on this backbone" in str(gone)) == (503, True)
    assert num_adapters == 1


def test_a_replica_none_of_whose_models_loads_does_not_start(tmp_path):
    with pytest.raises(FileNotFoundError):
        asyncio.run(replica_of().reconfigure(settings(a=tmp_path / "none")))


def test_which_models_share_is_in_the_deploy_file_and_in_lines(folders):
    config = ServeConfig(
        models=(
            *(f"{name}={folders / name}" for name in ("a", "b", "first", "merged")),
            f"length={LENGTH}",
        ),
        share_backbone=True,
    )
    models = config.served_models()
    places = places_of(models, config)
    key = backbone_key(str(folders / "a"))
    assert places["a"] == f"panoply-backbone-{key}/a"
    assert places["b"] == f"panoply-backbone-{key}/b"
    lines = describe(models, places)
    assert lines[0] == f"a, b: adapters on one loaded backbone, {key}"
    assert lines[-1] == "merged, length: no adapters, loaded whole"
    file = serve_file(models, config)
    apps = {app["name"]: app for app in file["applications"]}
    assert set(apps) == {
        f"panoply-backbone-{key}",
        f"panoply-backbone-{backbone_key(str(folders / 'first'))}",
        "panoply-model-merged",
        "panoply-model-length",
        "panoply-gateway",
    }
    assert set(apps[f"panoply-backbone-{key}"]["args"]["models"]) == {"a", "b"}
    assert apps["panoply-gateway"]["args"]["places"] == places
    assert places_of(models, ServeConfig(models=config.models)) == {}


def test_versions_on_a_backbone_are_told_from_those_of_other_models():
    member = {"deployments": {"RewardModel": {"deployment_config": {"user_config": {}}}}}
    config = member["deployments"]["RewardModel"]["deployment_config"]
    config["user_config"] = {"models": {"a": {}, "a@2": {}, "ab": {}}}
    routes = {"a": "s-backbone-k/a", "ab": "s-backbone-k/ab", "c": "s-model-c"}
    gateway = {"deployment_config": {"user_config": {"routes": routes, "latest": {"a": 2}}}}
    apps = {
        "s-gateway": {"deployments": {"Gateway": gateway}},
        "s-backbone-k": member,
        "s-model-c": {},
        "s-model-c@2": {},
    }
    read = Routes.read("s", ["gone"], {"applications": apps})
    assert read.current == routes
    assert read.others == {"a": "s-backbone-k/a@2", "c": "s-model-c@2"}
    assert read.answered == {"a": "s-backbone-k/a@2"}
    less = read.without(["a"])
    assert set(less.current) == {"ab", "c"}
    assert less.latest["a"] == 2  # a model of that name that is added again is another version


def log():
    return RunLogger(Console(file=io.StringIO(), width=300))


def change(**settings):
    run_upgrade(UpgradeConfig(name="shared", minutes=2.0, **settings), log())


def replicas():
    """The processes of the server's models."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if "ServeReplica:shared-" in title and "gateway" not in title:
                found.append(title)
    return found


def ask_until(stopped, address, counts):
    """Asks model `a` without a pause or a second try; counts statuses and scores."""
    body = {"items": [{"prompt": PROMPT, "responses": RESPONSES}]}
    with httpx2.Client(timeout=60) as client:
        while not stopped.is_set():
            answer = client.post(f"{address}models/a/v1/rewards", json=body)
            scores = ()
            if answer.status_code == 200:
                entries = answer.json()["results"][0]["items"][0]
                scores = tuple(round(entry["score"], 3) for entry in entries)
            counts[answer.status_code, scores] += 1


def states(address):
    with suppress(httpx2.TransportError, ValueError, KeyError):
        return models_at(address)


def asked(address, name):
    body = {"items": [{"prompt": PROMPT, "responses": RESPONSES}]}
    answer = httpx2.post(f"{address}models/{name}/v1/rewards", json=body, timeout=60)
    if answer.status_code != 200:
        return answer.status_code
    return [entry["score"] for entry in answer.json()["results"][0]["items"][0]]


@pytest.fixture(scope="module")
def server(cluster, folders):
    """The address of a server of two models on one backbone."""
    config = ServeConfig(
        models=(f"a={folders / 'a'}", f"b={folders / 'b'}"),
        name="shared",
        port=PORT,
        scaling=ScalingConfig(cpus=0.1),
        share_backbone=True,
    )
    address = f"http://127.0.0.1:{PORT}/servers/shared/"
    with deployed(config.served_models(), config):
        eventually(lambda: states(address) == ["a", "b"], 120, "the models are ready")
        yield address
    assert not [name for name in serve.status().applications if name.startswith("shared-")]


def test_models_are_upgraded_added_and_removed_under_load_in_one_process(server, folders, tmp_path):
    def near(name):
        return pytest.approx(scores_alone(folders / name), rel=1e-4, abs=3e-5)

    damaged = tmp_path / "damaged"
    shutil.copytree(folders / "a", damaged)
    (damaged / "heads.safetensors").write_bytes(b"")
    counts, stopped = Counter(), threading.Event()
    client = threading.Thread(target=ask_until, args=(stopped, server, counts))
    client.start()
    try:
        change(models=(f"b={folders / 'several'}",))
        assert asked(server, "b") == near("several")
        change(add=(f"c={folders / 'b'}", f"length={LENGTH}"))
        assert asked(server, "c") == near("b")
        assert asked(server, "length")[0] > 0
        run_rollback(RollbackConfig(models=("b",), name="shared"), log())
        assert asked(server, "b") == near("b")
        with pytest.raises(ValueError, match=r"'b' does not answer: .*could not be loaded"):
            change(models=(f"b={damaged}",))
        change(remove=("c", "length"))
        assert asked(server, "c") == asked(server, "length") == 404
        assert asked(server, "b") == near("b")
        time.sleep(1)
    finally:
        stopped.set()
        client.join()
    expected = tuple(round(value, 3) for value in scores_alone(folders / "a"))
    assert list(counts) == [(200, expected)]
    assert sum(counts.values()) > 20
    assert len(replicas()) == 1


def test_models_say_which_backbone_they_share_and_changes_that_cannot_be_are_refused(
    server, folders
):
    entries = httpx2.get(f"{server}v1/models").json()["data"]
    assert {entry["shared_backbone"] for entry in entries} == {backbone_key(str(folders / "a"))}
    with pytest.raises(ValueError, match=r"new names, and the server has \['a'\]"):
        change(add=(f"a={folders / 'a'}",))
    with pytest.raises(ValueError, match="which answers where a client names no model"):
        change(remove=("a",))
    with pytest.raises(ValueError, match="`models` must be one NAME=WHERE or more"):
        change()
