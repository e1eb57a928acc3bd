"""A worker of preference training, alone in a process."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from actors.reward_trainer import RewardTrainer
from actors.training_loop import DONE, STOPPED, NonFinite
from panoply.config.preference import (
    DPO,
    SFT,
    Balanced,
    Full,
    HeadOnly,
    LastLayers,
    Lora,
    LossConfig,
    More,
    TrainedBackboneConfig,
)
from panoply.hub.policy.trainable import load_trainable
from panoply.preference.batch_sampler import BatchSampler
from panoply.preference.distributed import Group
from panoply.preference.losses import updated_labels
from panoply.preference.min_norm import exact
from panoply.preference.train_state import TrainState, learning_rate
from tests.builders.preference_runs import make_task, other, small_config, steps_of, write_pairs

MORE = More(momentum=1.0)


def losses(logged):
    return [step["loss"] for step in logged]


def flat(trainer):
    return torch.cat([value.flatten() for value in trainer.state.params().values()])


def drift(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def task(tmp_path_factory, tiny_model_folder):
    folder = tmp_path_factory.mktemp("trainer")
    return make_task(small_config(tiny_model_folder, write_pairs(folder)), folder)


def separate_scores(trainer, rows):
    """Scores of both sides of some pairs, one unpadded sequence at a time, by transformers."""
    net, found = trainer.net, []
    for row in rows:
        tree = trainer.tokens.tree(row)
        ids = [torch.tensor([tree.shared + branch.tokens]) for branch in tree.branches]
        found.append([net.head(net.decoder.model(x).last_hidden_state[0, -1]) for x in ids])
    return torch.stack([torch.cat(pair) for pair in found])


def test_a_step_is_adamw_on_the_mean_loss_of_its_pairs(task):
    trainer = RewardTrainer(task, Group())
    rows = task.pairs.train[trainer.sampler.batch_indices(0)]
    other_one = RewardTrainer(task, Group())
    scores = separate_scores(other_one, rows)
    loss = -logsigmoid(scores[:, 0] - scores[:, 1]).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(other_one.state.parameters, 1.0)
    for group in other_one.state.optimizer.param_groups:
        group["lr"] = (
            learning_rate(0, other_one.num_steps, task.config.schedule.warmup) * group["peak"]
        )
    other_one.state.optimizer.step()
    logged = trainer.step(0)
    assert logged["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert logged["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert drift(flat(trainer), flat(other_one)) < 1e-5


def test_two_runs_of_a_seed_are_identical_and_another_seed_is_not(task):
    first, logged = steps_of(task, 4)
    again, logged_again = steps_of(task, 4)
    assert losses(logged) == losses(logged_again)
    assert torch.equal(flat(first), flat(again))
    moved, _ = steps_of(replace(task, config=replace(task.config, seed=1)), 1)
    assert not torch.equal(flat(moved), flat(steps_of(task, 1)[0]))


def test_the_rate_rises_and_falls_to_zero(task):
    num_steps, warmup = RewardTrainer(task, Group()).num_steps, task.config.schedule.warmup
    rates = [learning_rate(step, num_steps, warmup) for step in range(num_steps)]
    top = int(np.argmax(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] > 0
    assert max(rates) <= 1
    assert learning_rate(num_steps, num_steps, warmup) == pytest.approx(0)


def test_more_with_one_source_is_plain_training(tmp_path, tiny_model_folder):
    config = small_config(tiny_model_folder, write_pairs(tmp_path, (40,)))
    plain = make_task(config, tmp_path)
    balanced = other(plain, "balanced", weighting=Balanced())
    weighted = other(plain, "more", weighting=MORE)
    assert losses(steps_of(weighted)[1]) == losses(steps_of(balanced)[1])
    mean = steps_of(other(plain, "mixed"), 1)[0]
    assert mean.sampler.steps_per_epoch == BatchSampler(np.zeros(28), 8, 0).steps_per_epoch


def test_lambda_is_the_least_norm_of_the_head_gradients_of_this_very_step(task):
    more = other(task, "more", weighting=MORE)
    trainer = RewardTrainer(more, Group())
    rows = more.pairs.train[trainer.sampler.batch_indices(0)]
    scores = separate_scores(trainer, rows)
    loss_P = -logsigmoid(scores[:, 0] - scores[:, 1])
    source_P = torch.from_numpy(more.pairs.source_P[rows])
    weight = trainer.net.head.weight
    means = [loss_P[source_P == s].mean() for s in range(2)]
    grads = [torch.autograd.grad(mean, weight, retain_graph=True)[0].flatten() for mean in means]
    unit = torch.stack([g / g.norm() for g in grads]).double().numpy()
    wanted = exact(unit @ unit.T)
    logged = trainer.step(0)
    assert logged["source_weights"] == pytest.approx(wanted.tolist(), abs=1e-4)
    total = sum(w * float(mean.detach()) for w, mean in zip(wanted, means, strict=True))
    assert logged["loss"] == pytest.approx(total, rel=1e-4)


def test_conflicting_sources_are_weighed_against_their_gradients(task):
    weighting = More(momentum=1.0, normalizer="none")
    _, logged = steps_of(other(task, "conflict", weighting=weighting))
    weights = np.array([step["source_weights"] for step in logged])
    assert np.allclose(weights.sum(1), 1)
    assert weights.std(0).min() > 0.01  # it moves from step to step


def test_a_step_too_large_for_one_forward_is_weighed_as_the_step_before(task):
    schedule = replace(task.config.schedule, token_budget=100)
    late = other(task, "late", weighting=MORE, schedule=schedule)
    trainer, logged = steps_of(late, 3)
    now, logged_now = steps_of(other(task, "now", weighting=MORE), 3)
    assert (trainer.delayed, now.delayed) == (True, False)
    balanced = other(task, "even", weighting=Balanced())
    assert logged[0]["loss"] == pytest.approx(steps_of(balanced, 1)[1][0]["loss"], rel=1e-5)
    assert logged[0]["source_weights"] == pytest.approx(logged_now[0]["source_weights"], abs=1e-4)


@pytest.mark.parametrize(
    "trained",
    [Full(), LastLayers(num_last=1), Lora(rank=4), HeadOnly()],
    ids=lambda trained: trained.kind,
)
def test_bfloat16_trains_near_float32_and_is_scored_as_it_is_saved(task, trained):
    loss = LossConfig() if trained == HeadOnly() else LossConfig(policy=DPO())
    ends = []
    for dtype in ("float32", "bfloat16"):
        backbone = replace(task.config.backbone, trained=trained, dtype=dtype)
        run = other(task, f"{trained.kind}-{dtype}", backbone=backbone, loss=loss)
        RewardTrainer(run, Group()).run()
        ends.append(np.load(Path(run.folder) / "margins.npy")[task.pairs.scored, 0])
        history = json.loads((Path(run.folder) / DONE).read_text())["history"]
        assert all(np.isfinite(step["loss"]) for step in history)
    assert np.corrcoef(*ends)[0, 1] > 0.9
    assert not np.array_equal(*ends)


@pytest.mark.parametrize(
    "trained", [LastLayers(num_last=1), HeadOnly()], ids=lambda trained: trained.kind
)
def test_what_is_computed_once_changes_no_step(task, trained):
    backbone = replace(task.config.backbone, trained=trained)
    stored, logged = steps_of(other(task, trained.kind, backbone=backbone), 3)
    whole = RewardTrainer(other(task, f"{trained.kind}-whole"), Group())
    whole.net.requires_grad_(False)
    parts = [whole.net.head]
    if isinstance(trained, LastLayers):
        parts += [whole.net.decoder.layers[-1], whole.net.decoder.norm]
    for part in parts:
        part.requires_grad_(True)
    rates = {name: getattr(task.config.schedule, name) for name in ("lr", "head_lr")}
    whole.state = TrainState.of(whole.net, Group(), weight_decay=0.0, **rates)
    assert losses([whole.step(i) for i in range(3)]) == pytest.approx(losses(logged), rel=1e-4)
    assert drift(flat(stored), flat(whole)) < 1e-4
    files = list(Path(task.store).rglob("*.safetensors"))
    assert files
    before = {file: file.stat().st_mtime_ns for file in files}
    RewardTrainer(other(task, f"{trained.kind}-again", backbone=backbone), Group())
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_log_probabilities_are_those_of_the_causal_model(task):
    from transformers import AutoModelForCausalLM

    backbone = task.config.backbone
    trainable = load_trainable(backbone, policy=True)
    trainer = RewardTrainer(other(task, "logps", loss=LossConfig(policy=SFT())), Group())
    rows = task.pairs.train[:5].tolist()
    found = trainer.evaluate_pairs(rows, policy=True)
    model = AutoModelForCausalLM.from_pretrained(backbone.model).eval()
    model.load_state_dict(trainable.net.decoder.model.state_dict(), strict=False)
    for place, row in enumerate(rows):
        tree = trainer.tokens.tree(row)
        branch = tree.branches[0]
        ids = torch.tensor([tree.shared + branch.tokens])
        logits = trainer.net.lm_head(trainer.net.decoder.model(ids).last_hidden_state)
        logps = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        first = len(tree.shared) + branch.start
        own = logps[first - 1 : len(tree.shared) + branch.stop]
        assert float(found.logps_P2[place, 0]) == pytest.approx(float(own.sum()), rel=1e-4)
        assert int(found.chosen_tokens_P[place]) == len(own)


def test_the_three_references_give_the_same_steps(task):
    backbone = replace(task.config.backbone, trained=Lora(rank=4))
    runs = [
        losses(
            steps_of(
                other(task, name, backbone=backbone, loss=LossConfig(policy=DPO(reference=name))),
                4,
            )[1]
        )
        for name in ("precomputed", "copy", "adapters_off")
    ]
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert runs[2] == pytest.approx(runs[0], rel=1e-5)
    # At first the policy is its reference.
    reward = steps_of(other(task, "reward", backbone=backbone), 1)[1][0]["loss"]
    assert runs[0][0] == pytest.approx(reward + 0.2 * np.log(2), rel=1e-5)


def test_dpo_as_a_reward_model_scores_by_its_implicit_reward(task):
    loss = LossConfig(policy=DPO(alpha=1.0), reward=0.0)
    trainer, _ = steps_of(other(task, "dpo", loss=loss), 0)
    rows = task.pairs.scored.tolist()
    assert np.abs(trainer.margins(rows)).max() < 1e-6
    trainer.step(0)
    outputs = trainer.evaluate_pairs(rows, policy=True)
    apart = outputs.logps_P2[:, 0] - outputs.logps_P2[:, 1]
    wanted = 0.1 * (apart.numpy() - trainer.reference_P[rows])
    assert trainer.margins(rows)[:, 0] == pytest.approx(wanted, abs=1e-6)


def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(task):
    more = other(task, "whole", weighting=MORE, loss=LossConfig(smoothing=0.3))
    RewardTrainer(more, Group()).run()
    cut = replace(more, folder=str(Path(more.folder).with_name("cut")))
    first = RewardTrainer(cut, Group())
    for _ in range(3):
        first.take_step()
    first.save()
    first.take_step()  # lost with the worker
    RewardTrainer(cut, Group()).run()
    whole, again = (json.loads((Path(t.folder) / DONE).read_text()) for t in (more, cut))
    assert losses(again["history"]) == losses(whole["history"])
    assert again["labels"] == whole["labels"]
    margins = [np.load(Path(t.folder) / "margins.npy") for t in (more, cut)]
    np.testing.assert_array_equal(*margins)
    assert not list(Path(cut.folder).glob("step-*"))


def test_a_number_that_is_not_finite_stops_before_any_weight_changes(task):
    bad = other(task, "bad")
    trainer = RewardTrainer(bad, Group())
    trainer.step(0)
    before = flat(trainer)
    trainer.labels_P[:] = np.inf
    with pytest.raises(NonFinite, match="step 1: loss"):
        trainer.step(1)
    assert torch.equal(flat(trainer), before)
    saved = json.loads((Path(bad.folder) / "nonfinite-1-0.json").read_text())
    assert saved["rows"] == bad.pairs.train[trainer.sampler.batch_indices(1)].tolist()
    assert len(saved["margins"]) == len(saved["rows"])


def test_a_task_that_diverges_says_so_and_leaves_no_result(task):
    schedule = replace(task.config.schedule, lr=1e30, head_lr=1e30)
    bad = other(task, "diverges", schedule=schedule)
    RewardTrainer(bad, Group()).run()
    assert "not" not in (reason := json.loads((Path(bad.folder) / STOPPED).read_text())["reason"])
    assert "gradient norm" in reason
    assert not (Path(bad.folder) / DONE).exists()


def test_data_smoothing_moves_training_labels_by_id_and_no_other(task):
    soft = other(task, "soft", loss=LossConfig(smoothing=0.25))
    trainer = RewardTrainer(soft, Group())
    trainer.step(0)
    train = soft.pairs.train
    margins = trainer.evaluate_pairs(train.tolist()).margin_PK.mean(1).double()
    wanted = updated_labels(torch.ones(len(train), dtype=torch.float64), margins, 0.25)
    trainer.smooth_labels()
    assert trainer.labels_P[train] == pytest.approx(wanted.numpy(), abs=1e-6)
    rest = np.setdiff1d(np.arange(len(trainer.labels_P)), train)
    assert (trainer.labels_P[rest] == 1).all()


def test_training_stops_early_and_keeps_the_best(task):
    schedule = replace(
        task.config.schedule, num_epochs=40, eval_every=2, keep_best=True, patience=2, lr=3e-2
    )
    early = other(task, "early", schedule=schedule)
    RewardTrainer(early, Group()).run()
    done = json.loads((Path(early.folder) / DONE).read_text())
    evaluations = [step["select_loss"] for step in done["history"] if "select_loss" in step]
    trainer = RewardTrainer(early, Group())
    assert len(done["history"]) < trainer.num_steps
    assert min(evaluations) == done["best_select_loss"] == min(evaluations[:-2])
    trainer.state.load_params(torch.load(Path(early.folder) / "trained.pt", weights_only=True))
    assert trainer.select_loss() == pytest.approx(min(evaluations), rel=1e-5)


def test_heads_on_frozen_features_differ_when_they_are_bagged(task):
    schedule = replace(task.config.schedule, num_epochs=60, head_lr=5e-2)
    apart = []
    for bagging in (False, True):
        backbone = replace(task.config.backbone, trained=HeadOnly())
        changes = {"backbone": backbone, "num_heads": 4, "bagging": bagging, "schedule": schedule}
        run = other(task, f"bagging-{bagging}", **changes)
        RewardTrainer(run, Group()).run()
        heads = np.corrcoef(np.load(Path(run.folder) / "margins.npy")[run.pairs.scored].T)
        apart.append(1 - heads[np.triu_indices(4, 1)].mean())
    assert apart[1] > 2 * apart[0]
    trainer = RewardTrainer(run, Group())
    bags = trainer.bag(list(range(400)))
    assert float(bags.mean()) == pytest.approx(1, abs=0.1)
    assert torch.equal(trainer.bag([7, 3])[1], bags[3])


def test_it_learns_what_a_source_prefers(tmp_path, tiny_model_folder):
    schedule = {"num_epochs": 6, "lr": 3e-3}
    config = small_config(tiny_model_folder, write_pairs(tmp_path, (120,)), schedule=schedule)
    task = make_task(config, tmp_path)
    RewardTrainer(task, Group()).run()
    margins = np.load(Path(task.folder) / "margins.npy")[:, 0]
    assert np.isnan(margins[task.pairs.train]).all()
    assert (margins[task.pairs.scored] > 0).mean() > 0.9


def test_a_model_with_too_few_layers_is_refused_before_it_is_trained(tiny_model_folder):
    backbone = TrainedBackboneConfig(
        model=str(tiny_model_folder), trained=LastLayers(num_last=3), dtype="float32"
    )
    with pytest.raises(
        ValueError, match=r"`backbone.trained.num_last` is 3, but 3 layers are kept"
    ):
        load_trainable(backbone)
