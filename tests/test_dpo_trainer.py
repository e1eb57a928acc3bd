"""A worker of policy training, alone in a process, and two of them."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.dpo_trainer import DPOTrainer, pair_rows, pair_tree
from actors.policy_round import PolicyRound
from actors.sampler import Sampler
from actors.training_loop import DONE, STOPPED
from panoply.config.policy import PolicyConfig, SamplingConfig, check_policy_backbone
from panoply.config.preference import Full, Lora, TrainedBackboneConfig
from panoply.data.tasks import Task
from panoply.hub.policy.lora import FILE
from panoply.hub.policy.policy import load_policy
from panoply.model.tree import Branch, TokenTree
from panoply.preference.batch_sampler import batch_indices
from panoply.preference.distributed import Group
from panoply.preference.losses import dpo_nll
from panoply.preference.policy_outcome import kl_per_token
from panoply.preference.step import completion_tokens
from panoply.seal import seal
from tests.builders.distributed_runs import train_policies
from tests.builders.policy_rounds import configured, policy_task, ranked_prompts
from workflows.cluster.policy import train_round


@pytest.fixture(scope="module")
def task(tmp_path_factory, tiny_policy_folder):
    gold = [
        replace(ranked, source=f"source {i % 2}")
        for i, ranked in enumerate(ranked_prompts(5, seed=3))
    ]
    folder = tmp_path_factory.mktemp("policy") / "main"
    return policy_task(tiny_policy_folder, folder, gold_pairs=tuple(gold))


@pytest.fixture(scope="module")
def first(task):
    """A finished round."""
    DPOTrainer(task, Group()).run()
    return PolicyRound.read(Path(task.folder))


@pytest.fixture(scope="module")
def second(task, first):
    """The round after it, whose reference is its start."""
    folder = Path(task.folder).with_name("second")
    start = str(first.adapter)
    after = replace(task, round=1, start=start, reference=start, folder=str(folder))
    DPOTrainer(after, Group()).run()
    return PolicyRound.read(folder)


def column(found, name, table=None):
    return np.array((found.pairs if table is None else table)[name].to_pylist())


def adapters(found):
    return load_file(found.adapter / FILE)


def same(a, b, bound):
    a, b = adapters(a), adapters(b)
    assert a.keys() == b.keys()
    return all((a[key] - b[key]).norm() <= bound * b[key].norm() + 1e-7 for key in b)


def plain_logps(model, trainer, number):
    """Log-probabilities of both sides of the first pair of a prompt, by plain forwards."""
    item, found = trainer.trees[number], []
    for place in (item.chosen[0], item.rejected[0]):
        branch = item.tree.branches[place]
        ids = torch.tensor([item.tree.shared + branch.tokens])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].log_softmax(-1)
        each = logits.gather(1, ids[0, 1:, None])[:, 0]
        start = len(item.tree.shared)
        found.append(float(each[start + branch.start - 1 : start + branch.stop].sum()))
    return found


def test_the_loss_is_its_formula():
    chosen, rejected, reference, tokens = -12.0, -9.0, 1.5, 4
    for alpha in (0.0, 0.7):
        (ours,) = dpo_nll(
            *(torch.tensor([x]) for x in (chosen, rejected, tokens, reference)), 0.1, alpha
        ).tolist()
        preference = math.log(1 + math.exp(-0.1 * (chosen - rejected - reference)))
        assert ours == pytest.approx(preference + alpha * 12.0 / 4)


def test_kl_is_the_log_ratio_over_all_tokens_of_a_pair():
    logps, base = np.array([[-10.0, -6.0]]), np.array([[-11.0, -9.0]])
    assert kl_per_token(logps, base, np.array([[5.0, 3.0]])).tolist() == [0.5]


def test_a_round_reports_its_pairs_as_plain_forwards_see_them(task, first, tiny_policy_folder):
    trainer = DPOTrainer(task, Group())
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_folder).eval()
    after = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_policy_folder), first.adapter
    ).eval()
    first_rows = [pair_rows(trainer.trees, [i])[0] for i in range(len(task.prompts))]
    for number, row in enumerate(first_rows):
        for model, suffix in ((base, ""), (after, "_after")):
            wanted = plain_logps(model, trainer, number)
            found = [
                column(first, f"{side}_log_prob{suffix}")[row] for side in ("chosen", "rejected")
            ]
            assert found == pytest.approx(wanted, abs=1e-3)
            ratio = first.pairs["reference"][int(row)].as_py()
            loss = math.log1p(math.exp(-0.1 * (wanted[0] - wanted[1] - ratio)))
            loss -= wanted[0] / completion_tokens(trainer.trees)[row, 0]
            assert column(first, f"loss{suffix}")[row] == pytest.approx(loss, abs=1e-3)


def test_the_margin_on_gold_pairs_is_that_of_plain_forwards_and_told_by_source(
    task, first, second, tiny_policy_folder
):
    trainer = DPOTrainer(task, Group())
    before, after = (column(first, name, first.gold_pairs) for name in ("margin", "margin_after"))
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_folder).eval()
    wanted = plain_margins(base, trainer.gold_trees)
    trained = PeftModel.from_pretrained(base, first.adapter).eval()
    assert before == pytest.approx(wanted, abs=1e-4)
    assert after == pytest.approx(plain_margins(trained, trainer.gold_trees), abs=1e-4)
    assert np.abs(after - before).min() > 1e-5
    gains = [after[i] - before[i] for i in range(7)]
    # Prompts 0 to 4 have 1, 2, 1, 2, 1 pairs; 0, 2 and 4 are of one source, 1 and 3 of the other.
    assert first.gold_pairs["source"].to_pylist() == [f"source {i}" for i in (0, 1, 1, 0, 1, 1, 0)]
    own = {"source 0": [0, 3, 6], "source 1": [1, 2, 4, 5]}
    for source, rows in own.items():
        assert first.gold_margin_gain(source) == pytest.approx(
            np.mean([gains[row] for row in rows])
        )
    assert (
        first.gold_margin_gain()
        == first.gold_margin_gain("source 2")
        == pytest.approx(np.mean(gains))
    )
    # A round begins where the one before ended.
    assert column(second, "margin", second.gold_pairs) == pytest.approx(after, abs=1e-5)


def plain_margins(model, comparisons):
    """Mean log-probability of a token of the chosen response less that of the rejected one."""
    found = []
    for item in comparisons:
        for sides in zip(item.chosen, item.rejected, strict=True):
            means = []
            for place in sides:
                branch, start = item.tree.branches[place], len(item.tree.shared)
                ids = item.tree.shared + branch.tokens
                with torch.no_grad():
                    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                said = range(start + branch.start, min(start + branch.stop + 1, len(ids)))
                means.append(np.mean([float(logits[t - 1, ids[t]]) for t in said]))
            found.append(means[0] - means[1])
    return found


def test_gold_pairs_change_nothing_and_a_round_without_one_has_no_gain(task, first, tmp_path):
    alone = replace(task, gold_pairs=(), folder=str(tmp_path / "alone"))
    DPOTrainer(alone, Group()).run()
    found = PolicyRound.read(tmp_path / "alone")
    assert found.pairs.equals(first.pairs)
    assert all(torch.equal(a, adapters(first)[key]) for key, a in adapters(found).items())
    assert found.gold_pairs.num_rows == 0
    assert math.isnan(found.gold_margin_gain())


def test_a_step_is_adamw_on_the_weighted_mean_loss_of_its_prompts(task):
    trainer = DPOTrainer(configured(task, Path(task.folder).with_name("one")), Group())
    by_hand = DPOTrainer(configured(task, Path(task.folder).with_name("hand")), Group())
    chosen = batch_indices((0, 0), 0, 10, 4)
    total, losses = 0.0, []
    lm_head, model = by_hand.net.lm_head, by_hand.net.decoder.model
    for i in chosen:
        item = by_hand.trees[i]
        for pair, (a, b) in enumerate(zip(item.chosen, item.rejected, strict=True)):
            said = []
            for place in (a, b):
                branch, start = item.tree.branches[place], len(item.tree.shared)
                ids = torch.tensor([item.tree.shared + branch.tokens])
                logits = lm_head(model(ids).last_hidden_state)[0, :-1].log_softmax(-1)
                each = logits.gather(1, ids[0, 1:, None])[:, 0]
                said.append(each[start + branch.start - 1 : start + branch.stop])
            row = pair_rows(by_hand.trees, [i])[pair]
            ratio = float(by_hand.reference_logps_P2[row, 0] - by_hand.reference_logps_P2[row, 1])
            apart = 0.1 * (said[0].sum() - said[1].sum() - ratio)
            loss = torch.nn.functional.softplus(-apart) - said[0].mean()
            losses.append(task.prompts[i].weight * loss)
            total += task.prompts[i].weight
    loss = torch.stack(losses).sum() / total
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(by_hand.state.parameters, 1.0)
    by_hand.state.optimizer.step()
    logged = trainer.step(0)
    assert logged["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert logged["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    for name, value in by_hand.state.params().items():
        assert torch.allclose(trainer.state.params()[name], value, atol=1e-6)


def test_a_prompt_is_computed_once_for_all_its_pairs_and_unused_responses_not_at_all(task):
    trainer = DPOTrainer(configured(task, Path(task.folder).with_name("trees")), Group())
    for ranked, item in zip(task.prompts, trainer.trees, strict=True):
        used = {i for pair in ranked.pairs for i in pair}
        assert len(item.tree.branches) == len(used)
        assert len(item.chosen) == len(ranked.pairs)
    assert trainer.num_steps == 3


def test_a_response_that_was_cut_off_has_no_end_to_be_learned(task):
    trainer = DPOTrainer(configured(task, Path(task.folder).with_name("ends")), Group())
    end = trainer.trainable.renderer.tokenizer.eos_token_id
    ranked = task.prompts[1]
    branches = trainer.trees[1].tree.branches
    for ended, branch in zip(ranked.ended, branches, strict=False):
        assert (branch.tokens[-1] == end) == ended
    long = replace(ranked, responses=("x" * 99, *ranked.responses[1:]))
    tree = pair_tree(trainer.trainable.renderer, long).tree
    assert tree.branches[0].tokens == tuple([tree.branches[0].tokens[0]] * 32)


def test_training_prefers_what_was_chosen(task, tmp_path):
    longer = configured(task, tmp_path / "longer", num_epochs=10, lr=5e-3)
    DPOTrainer(longer, Group()).run()
    found = PolicyRound.read(tmp_path / "longer")
    assert column(found, "dpo_after").mean() < column(found, "dpo").mean() - 0.1
    assert column(found, "nll_after").mean() < column(found, "nll").mean()
    assert column(found, "dpo") == pytest.approx(math.log(2), abs=1e-6)
    assert (column(found, "kl") == 0).all()


def test_the_next_round_goes_on_from_the_adapters_and_what_adamw_remembers(task, first, second):
    assert column(second, "loss")[0] == pytest.approx(column(first, "loss_after")[0], abs=0.5)
    for side in ("chosen", "rejected"):
        after = column(first, f"{side}_log_prob_after")
        assert column(second, f"{side}_log_prob") == pytest.approx(after, abs=1e-4)
    ratio = column(first, "chosen_log_prob_after") - column(first, "rejected_log_prob_after")
    assert column(second, "reference") == pytest.approx(ratio, abs=1e-4)
    base = column(first, "chosen_log_prob") + column(first, "rejected_log_prob")
    now = column(second, "chosen_log_prob") + column(second, "rejected_log_prob")
    trainer = DPOTrainer(task, Group())
    assert column(second, "kl") == pytest.approx(
        (now - base) / completion_tokens(trainer.trees).sum(1), abs=1e-5
    )
    fresh = Path(task.folder).with_name("forgetful")
    (fresh / "adapter").mkdir(parents=True)
    for name in (FILE, "adapter_config.json"):
        (fresh / "adapter" / name).write_bytes((first.adapter / name).read_bytes())
    start = str(fresh / "adapter")
    again = replace(task, round=1, start=start, reference=start, folder=str(fresh / "round"))
    DPOTrainer(again, Group()).run()
    assert not same(PolicyRound.read(fresh / "round"), second, 1e-4)


def test_the_reference_may_stay_where_an_iteration_began(task, first, second, tmp_path):
    kept = replace(task, round=1, start=str(first.adapter), folder=str(tmp_path / "kept"))
    DPOTrainer(kept, Group()).run()
    found = PolicyRound.read(tmp_path / "kept")
    assert column(found, "reference") == pytest.approx(column(first, "reference"), abs=1e-5)
    other = replace(
        task, round=2, start=str(second.adapter), reference=str(first.adapter), folder=str(tmp_path)
    )
    trainer = DPOTrainer(other, Group())
    wanted = column(second, "chosen_log_prob")
    assert trainer.reference_logps_P2[:, 0] == pytest.approx(wanted, abs=1e-4)
    assert trainer.start_logps_P2[:, 0] == pytest.approx(
        column(second, "chosen_log_prob_after"), abs=1e-4
    )
    own, wanted = trainer.state.params(), adapters(second)
    assert sum(float(v.norm()) for v in own.values()) == pytest.approx(
        sum(float(v.norm()) for v in wanted.values()), rel=1e-6
    )


def test_rounds_and_seeds_take_prompts_in_other_orders(task):
    orders = [batch_indices(key, 0, 10, 10) for key in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3


def test_a_round_goes_on_from_a_checkpoint_as_if_nothing_had_happened(task, first):
    cut = replace(task, folder=str(Path(task.folder).with_name("cut")))
    trainer = DPOTrainer(cut, Group())
    trainer.take_step()
    trainer.save()
    trainer.take_step()  # lost with the worker
    DPOTrainer(cut, Group()).run()
    found = PolicyRound.read(Path(cut.folder))
    assert found.pairs.equals(first.pairs)
    assert found.gold_pairs.equals(first.gold_pairs)
    assert [s["loss"] for s in found.history] == [s["loss"] for s in first.history]
    assert all(torch.equal(a, adapters(first)[key]) for key, a in adapters(found).items())
    assert not list(Path(cut.folder).glob("step-*"))


def test_adapters_that_are_not_those_that_were_saved_are_refused_by_name(task, first, tmp_path):
    for name in (f"adapter/{FILE}", "optimizer/optimizer.pt"):
        left = shutil.copytree(first.folder, tmp_path / Path(name).stem)
        content = bytearray((left / name).read_bytes())
        content[len(content) // 2] ^= 1
        (left / name).write_bytes(content)
        changed = replace(task, start=str(left / "adapter"), folder=str(tmp_path / "after"))
        with pytest.raises(ValueError, match=rf"{name}' is not the file that was saved"):
            DPOTrainer(changed, Group())


def test_what_adamw_remembers_goes_once_the_next_round_is_done_and_is_then_missed(
    task, first, second, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(first.folder, run / "000")
    start = str(run / "000" / "adapter")
    again = replace(task, round=1, start=start, reference=start, folder=str(run / "001"))
    assert (run / "000" / "optimizer").is_dir()
    done = train_round(again, 0)
    assert all(torch.equal(a, adapters(second)[key]) for key, a in adapters(done).items())
    assert not (run / "000" / "optimizer").exists()
    assert (run / "001" / "optimizer").is_dir()  # the last one, for more rounds
    assert train_round(again, 0).pairs.equals(done.pairs)  # a round that is done is only read

    # Another result for the same round would be silent harm; from the start all is the same.
    (run / "001" / DONE).unlink()
    with pytest.raises(ValueError, match=r"000/optimizer' was removed .* of all rounds before it"):
        train_round(again, 0)
    (run / "000" / DONE).unlink()
    train_round(replace(task, folder=str(run / "000")), 0)
    repeated = train_round(again, 0)
    assert all(torch.equal(a, adapters(second)[key]) for key, a in adapters(repeated).items())


def test_adapters_of_a_version_that_kept_the_optimizer_among_them_go_on(
    task, first, second, tmp_path
):
    old = shutil.copytree(first.folder, tmp_path / "old")
    shutil.move(old / "optimizer" / "optimizer.pt", old / "adapter")
    shutil.rmtree(old / "optimizer")
    seal(old / "adapter")
    start = str(old / "adapter")
    after = replace(task, round=1, start=start, reference=start, folder=str(tmp_path / "after"))
    done = train_round(after, 0)
    assert all(torch.equal(a, adapters(second)[key]) for key, a in adapters(done).items())
    assert (old / "adapter" / "optimizer.pt").is_file()  # it is under the seal


@pytest.mark.slow
def test_two_workers_end_where_one_does(task, first, second, tmp_path):
    tasks = [
        replace(task, folder=str(tmp_path / "first")),
        replace(
            task,
            round=1,
            start=str(first.adapter),
            reference=str(first.adapter),
            folder=str(tmp_path / "second"),
        ),
    ]
    mp.spawn(train_policies, args=(2, str(tmp_path), tasks), nprocs=2)
    for alone, name in ((first, "first"), (second, "second")):
        both = PolicyRound.read(tmp_path / name)
        assert same(both, alone, 1e-4)
        for key in ("loss", "gradient_norm", "tokens"):
            found = [step[key] for step in both.history]
            assert found == pytest.approx([step[key] for step in alone.history], rel=1e-4)
        for key in ("loss", "loss_after", "reference", "kl"):
            assert column(both, key) == pytest.approx(column(alone, key), rel=1e-4, abs=1e-5)
        for key in ("margin", "margin_after"):
            wanted = column(alone, key, alone.gold_pairs)
            assert column(both, key, both.gold_pairs) == pytest.approx(wanted, abs=1e-5)
        assert both.gold_pairs["source"].equals(alone.gold_pairs["source"])


def test_a_sampler_speaks_with_the_adapters_as_the_learner_hears_it(task, second, tmp_path):
    adapter = str(second.adapter)
    config = SamplingConfig(max_tokens=20, temperature=1.0)
    policy = load_policy(task.backbone.model, adapter, dtype="float32")
    opening = policy.renderer.opening([{"role": "user", "content": "say more"}])
    ((_, samples),) = policy.sample([opening], [list(range(8))], config)
    branches = tuple(
        Branch(tuple(one.tokens), 0, len(one.tokens) - one.ended)
        for one in samples
        if len(one.tokens) > 1
    )
    heard = DPOTrainer(replace(task, start=adapter, folder=str(tmp_path)), Group())
    found = heard.net([TokenTree(tuple(opening), branches, 0)]).log_prob_R.tolist()
    wanted = [one.log_prob for one in samples if len(one.tokens) > 1]
    assert found == pytest.approx(wanted, abs=1e-3)


def test_a_sampler_takes_the_adapters_that_it_is_asked_for(task, second):
    config = SamplingConfig(max_tokens=20, temperature=1.0)
    sampler = Sampler(task.backbone.model, config, dtype="float32")
    asked = [Task("a", [{"role": "user", "content": "say more"}])]
    (plain,) = sampler.sample(asked, 6, 0, 0)
    (adapted,) = sampler.sample(asked, 6, 0, 0, str(second.adapter))
    (again,) = sampler.sample(asked, 6, 0, 0)
    assert again == plain
    assert adapted.responses != plain.responses


def test_adapters_are_merged_in_float32_and_not_rounded_away_in_bfloat16(task, second):
    model, adapter = task.backbone.model, str(second.adapter)
    asked = [[1, 2, 3, 4]]
    for dtype, merged in (("float32", True), ("bfloat16", False)):
        policy = load_policy(model, adapter, dtype=dtype)
        assert any("lora_" in name for name, _ in policy.model.named_parameters()) != merged
        config = SamplingConfig(max_tokens=8)
        first, again = (list(policy.sample(asked, [[1, 2]], config)) for _ in range(2))
        assert first == again


def test_a_number_that_is_not_finite_stops_before_any_weight_changes(task, tmp_path):
    bad = configured(task, tmp_path / "bad", lr=1e30, num_epochs=3)
    DPOTrainer(bad, Group()).run()
    assert "gradient norm" in json.loads((tmp_path / "bad" / STOPPED).read_text())["reason"]
    assert not (tmp_path / "bad" / DONE).exists()
    assert list((tmp_path / "bad").glob("nonfinite-*.json"))


def test_adapters_of_another_rank_or_scale_are_refused(task, first, tmp_path):
    for change, told in (
        (Lora(rank=8), "do not fit the model"),
        (Lora(rank=4, alpha=64.0), "scaled by"),
    ):
        backbone = replace(task.backbone, trained=change)
        start = replace(task, start=str(first.adapter), backbone=backbone)
        other = configured(start, tmp_path)
        with pytest.raises(ValueError, match=told):
            DPOTrainer(other, Group())
    with pytest.raises(FileNotFoundError, match="name a folder that a round left"):
        DPOTrainer(replace(task, start=str(tmp_path), folder=str(tmp_path)), Group())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"beta": 0.0}, "`beta` must be positive, got 0.0"),
        ({"prompts_per_step": 0}, "`prompts_per_step` must be >= 1, got 0"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(change, told):
    with pytest.raises(ValueError, match=told):
        PolicyConfig(**change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"trained": Full()}, "`backbone.trained` must be 'lora' for a policy"),
        ({"depth": 0.5}, "`backbone.depth` must be 1 for a policy"),
    ],
)
def test_a_backbone_that_cannot_be_a_policy_is_refused(change, told):
    with pytest.raises(ValueError, match=told):
        check_policy_backbone(TrainedBackboneConfig(**change))


def test_a_ranked_prompt_names_what_is_wrong_with_it():
    ranked = ranked_prompts(1)[0]
    for change, told in (
        ({"pairs": ()}, "needs at least one pair"),
        ({"pairs": ((0, 7),)}, "needs at least one pair of its responses 0..2"),
        ({"ended": (True,)}, "3 responses and 1 values"),
        ({"weight": float("nan")}, "`weight` must be positive, got nan"),
    ):
        with pytest.raises(ValueError, match=told):
            replace(ranked, **change)
