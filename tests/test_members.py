"""Ensembles of one recipe: heads or adapters, trained, saved and served as one scorer."""

import asyncio
import json

import httpx2
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.model_replica import RewardModelReplica
from panoply.config.members import pooled_rule
from panoply.config.preference import Full, Lora, LossConfig, Mixed, More, PreferenceConfig
from panoply.config.preference import TrainedBackboneConfig as Backbone
from panoply.config.serve import ServedModelConfig
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.artefact.manifest import read_manifest
from panoply.hub.artefact.scalar import load_scalar_model
from panoply.hub.backbone.pretrained import resolve
from panoply.hub.doctor import examine
from panoply.hub.merge.merge import open_merge
from panoply.report.progress import RunLogger
from panoply.wire.request import Chat, ScoreRequest
from panoply.wire.rewards import read_answer
from tests.builders.adapters import save_adapters
from tests.builders.gateway import serving
from tests.builders.models import PROMPT, RESPONSES, chats, save_small, scores_by_transformers
from tests.builders.preference_runs import small_config, write_pairs
from workflows.cluster.preference_results import MAIN
from workflows.preference import run_preference

RULES = {
    "mean": lambda z, caution: z.mean(1),
    "lcb": lambda z, caution: z.mean(1) - caution * z.std(1),
    "uwo": lambda z, caution: z.mean(1) - caution * z.var(1),
    "wco": lambda z, caution: z.min(1),
}


CAUTION = 0.7


@pytest.fixture(scope="module")
def folders(tiny_model_folder, tmp_path_factory):
    """A cautious ensemble of three members of each kind, a mean of heads, and a single adapter."""
    root = tmp_path_factory.mktemp("members")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    cautious = {"rule": "lcb", "caution": CAUTION}
    save_small(root / "heads", tokenizer, num_heads=3, **cautious)
    save_small(root / "mean", tokenizer, num_heads=2)
    save_adapters(root / "adapters", tiny_model_folder, num=3, **cautious)
    save_adapters(root / "layers", tiny_model_folder, num=3, kind="layers", **cautious)
    save_adapters(root / "single", tiny_model_folder)
    return root


def trees(model):
    return [model.backbone.renderer.render(PROMPT, RESPONSES).tree]


@torch.no_grad()
def by_peft(folder, member):
    """Scores of single conversations under one adapter and its head, by transformers and peft."""
    from peft import PeftConfig, PeftModel
    from safetensors.torch import load_file

    adapter = folder / "members" / str(member)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    base.score.weight.data = load_file(folder / "heads.safetensors")["heads"][member][None]
    config = PeftConfig.from_pretrained(adapter)
    config.task_type = None
    model = PeftModel.from_pretrained(base, adapter, config=config).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in chats()]
    return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]


@pytest.mark.parametrize("kind", ["heads", "adapters", "layers"])
def test_the_score_is_the_rule_of_the_standardized_members(kind, folders):
    model = load_reward_model(folders / kind)
    z_RK = model.members_of_trees(trees(model)).double().numpy()
    assert z_RK.std(1).min() > 0.01
    expected = RULES["lcb"](z_RK, CAUTION)
    assert model.score(PROMPT, RESPONSES) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for name, rule in RULES.items():
        model.rule = pooled_rule(name, CAUTION)
        expected = rule(z_RK, CAUTION)
        if name == "mean":  # which leaves its constant out
            constant = np.mean(np.array(model.manifest.centers) / np.array(model.manifest.scales))
            expected = expected + constant
        assert model.score(PROMPT, RESPONSES) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_members_with_adapters_score_as_peft_has_them(folders):
    model = load_reward_model(folders / "adapters")
    scales, centers = np.array(model.manifest.scales), np.array(model.manifest.centers)
    raw_KR = np.array([by_peft(folders / "adapters", member) for member in range(3)])
    z_RK = model.members_of_trees(trees(model)).numpy()
    assert np.abs(raw_KR[0] - raw_KR[1]).min() > 0.01
    assert z_RK == pytest.approx((raw_KR.T - centers) / scales, rel=1e-4, abs=1e-4)
    alone = [float(model.score(PROMPT, [response])[0]) for response in RESPONSES]
    assert alone == pytest.approx(model.score(PROMPT, RESPONSES).tolist(), rel=1e-4, abs=1e-5)


def test_members_with_layers_score_as_transformers_with_those_layers(tiny_model_folder, tmp_path):
    members = save_adapters(tmp_path / "m", tiny_model_folder, num=2, kind="layers")
    model = load_reward_model(tmp_path / "m")
    scales, centers = np.array(model.manifest.scales), np.array(model.manifest.centers)
    z_RK = model.members_of_trees(trees(model)).numpy()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    rows = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in chats()]
    for k, params in enumerate(members):
        plain = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
        state = plain.state_dict() | {"score.weight": params["head.weight"]}
        for name, value in params.items():
            if name != "head.weight":  # the last of three layers is the first that is trained
                state[name.replace("layers.0.", "layers.2.")] = value
        plain.load_state_dict(state)
        with torch.no_grad():
            raw = [float(plain(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]
        expected = (np.array(raw) - centers[k]) / scales[k]
        assert z_RK[:, k] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_transformers_gives_the_mean_of_heads_whatever_the_rule(folders):
    model = load_scalar_model(folders / "heads")
    _, mean_R = model.bound_trees(trees(model), beta=0.0)
    logits = scores_by_transformers(folders / "heads", [chats()])
    assert logits == pytest.approx(mean_R.tolist(), rel=1e-4, abs=1e-5)
    assert logits != pytest.approx(model.score(PROMPT, RESPONSES).tolist(), rel=1e-2)
    card = (folders / "heads" / "README.md").read_text()
    assert "The mean of 3 linear Bradley-Terry heads" in card
    assert "less 0.7 of their deviations (LCB)" in card


def test_only_what_an_older_version_would_misread_has_the_newer_format(folders):
    formats = {
        name: json.loads((folders / name / "panoply.json").read_text())["format"]
        for name in ("mean", "heads", "adapters", "layers", "single")
    }
    assert formats == {"mean": 2, "heads": 3, "adapters": 3, "layers": 3, "single": 3}


def test_an_answer_has_the_spread_and_the_members_of_an_ensemble(folders):
    request = ScoreRequest(
        items=(Chat(tuple(PROMPT), tuple(RESPONSES)),),
        models=("m", "one"),
        details=frozenset({"objectives", "spread"}),
    )

    async def run():
        app, _ = serving(Served("m", folders / "adapters"), Served("one", folders / "single"))
        body = {
            "models": ["m", "one"],
            "items": [{"prompt": PROMPT, "responses": RESPONSES}],
            "details": ["objectives", "spread"],
        }
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
            return (await client.post("/v1/rewards", json=body)).json()

    several, one = read_answer(asyncio.run(run()), request).models
    model = load_reward_model(folders / "adapters")
    z_RK = model.members_of_trees(trees(model)).numpy()
    constant = np.mean(np.array(model.manifest.centers) / np.array(model.manifest.scales))
    for score, z_K in zip(several.items[0], z_RK, strict=True):
        shown = {f"member_{k + 1}": z for k, z in enumerate(z_K.tolist())}
        shown["lower_bound"] = z_K.mean() + constant - z_K.std()
        assert score.details.objectives == pytest.approx(shown, rel=1e-3, abs=1e-4)
        assert score.details.spread == pytest.approx(z_K.std(), rel=1e-3)
        assert score.score == pytest.approx(z_K.mean() - CAUTION * z_K.std(), rel=1e-3, abs=1e-4)
    assert all(score.details.spread is None for score in one.items[0])
    assert not any(score.details.objectives for score in one.items[0])


class Served:
    """A replica of a model as the gateway asks it."""

    def __init__(self, name, folder):
        self.name = name
        replica = RewardModelReplica(ServedModelConfig(name=name, where=str(folder)))
        self.ask, self.describe = replica.answer, replica.about

    async def about(self):
        """Says what it is."""
        return self.describe()


def test_a_run_trains_members_apart_and_leaves_one_model_by_its_rule(tiny_model_folder, tmp_path):
    config = small_config(
        tiny_model_folder,
        write_pairs(tmp_path, (40,)),
        backbone={"trained": Lora(rank=2)},
        schedule={"num_epochs": 3, "lr": 3e-3},
        out=str(tmp_path / "run"),
        store=str(tmp_path / "store"),
        num_heads=2,
        members="adapters",
        rule="uwo",
        caution=2.0,
        report_to=("none",),
    )
    metrics = run_preference(config, RunLogger())
    assert metrics["artefact"]["round_trip_drift"] < 1e-3  # margins by the rule, from texts
    assert set(metrics["training"]) == {MAIN, "member-2"}
    folder = tmp_path / "run" / "model"
    manifest = read_manifest(folder)
    assert (manifest.members, manifest.rule, manifest.caution) == ("adapters", "uwo", 2.0)
    model = load_reward_model(folder)
    z_RK = model.members_of_trees(trees(model)).numpy()
    assert z_RK.std(1).min() > 1e-3
    failed = [finding for finding in examine(str(folder)) if finding.verdict == "fail"]
    assert not failed
    run_preference(config, RunLogger())  # the same command again leaves the model
    assert load_reward_model(folder).score(PROMPT, RESPONSES).tolist() == pytest.approx(
        model.score(PROMPT, RESPONSES).tolist()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "lcb"}, "`rule` 'lcb' is of several members, and `num_heads` is 1"),
        ({"rule": "best", "num_heads": 2}, "`rule` must be one of"),
        ({"caution": -1.0}, "`caution` must be >= 0, got -1.0"),
        (
            {"members": "adapters", "backbone": Backbone(trained=Full())},
            "needs `backbone.trained` 'lora', got 'full'",
        ),
        ({"members": "adapters", "weighting": More()}, "takes `weighting` 'mixed' or 'balanced'"),
    ],
)
def test_settings_of_members_that_cannot_be_are_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        PreferenceConfig(**{"pairs": ("a.jsonl",), "weighting": Mixed()} | changes)


def test_heads_without_a_reward_loss_have_no_rule():
    from panoply.config.preference import DPO

    with pytest.raises(ValueError, match=r"`rule` 'lcb' is of heads, which `loss.reward` 0 leaves"):
        PreferenceConfig(
            pairs=("a.jsonl",), num_heads=2, rule="lcb", loss=LossConfig(reward=0.0, policy=DPO())
        )


def test_adapters_are_no_backbone_to_train_on(folders):
    with pytest.raises(ValueError, match="is a reward model of adapters, which are not merged"):
        resolve(str(folders / "single"))


def test_adapters_are_not_merged(folders):
    with pytest.raises(ValueError, match="adapters beside a frozen backbone, which are not merged"):
        open_merge([folders / "single", folders / "single"])
