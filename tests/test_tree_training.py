"""Training through token trees: the loss and the gradients of separate sequences."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from panoply.hub.backbone.attention import attend_by_trees
from panoply.model.budget import LEAST, calibrate, within_memory
from panoply.model.decoder import Decoder
from panoply.model.forward import encode, encode_plain
from panoply.model.reward_net import RewardNet
from panoply.preference.batch_sampler import batch_indices
from panoply.preference.step import PairTree, micro_batches
from panoply.preference.step import compute_gradients as step_gradients
from tests.builders.token_trees import FAMILIES, alike_trees, make, random_trees, relative


def comparisons(seed, num_trees=5):
    """Trees with one or several pairs each."""
    trees = [t for t in random_trees(seed, 3 * num_trees) if len(t.branches) > 1][:num_trees]
    trees += alike_trees(seed, 2)
    return [
        PairTree(t, tuple(range(len(t.branches) - 1)), tuple(range(1, len(t.branches))))
        for t in trees
    ]


def trained(family="llama", by_trees=True, num_heads=1, **changes):
    model = make(family, initializer_range=0.1, **changes).train()
    decoder = Decoder(model, [4], trainable=True)
    if by_trees:
        assert attend_by_trees(decoder)
    torch.manual_seed(1)
    return decoder, nn.Linear(32, num_heads, bias=False)


def compute_gradients(decoder, head, items, *, num_pairs, budget):
    """Loss of a step and the budget that memory allowed; every pair has the same share."""
    shares = torch.full((count(items),), 1 / num_pairs)
    done = step_gradients(RewardNet(decoder, head), items, budget=budget, shares_P=shares)
    return done.loss, done.budget


def count(items):
    return sum(len(item.chosen) for item in items)


def gradients(*modules):
    named = [item for module in modules for item in module.named_parameters()]
    return torch.cat([p.grad.flatten().float() for _, p in named if p.grad is not None])


def separate(model, head, items):
    """Loss and gradients of one unpadded sequence at a time, by transformers alone."""
    num_pairs, total = count(items), 0.0
    for item in items:
        scores = [
            head(model(torch.tensor([item.tree.shared + branch.tokens])).last_hidden_state[0, -1])
            for branch in item.tree.branches
        ]
        for chosen, rejected in zip(item.chosen, item.rejected, strict=True):
            total -= torch.nn.functional.logsigmoid(scores[chosen] - scores[rejected]).sum()
    (total / num_pairs).backward()
    return float(total.detach()) / num_pairs, gradients(model, head)


@pytest.mark.parametrize("by_trees", [True, False], ids=["attention", "mask"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_separate_sequences(family, by_trees):
    items = comparisons(0)
    decoder, head = trained(family, by_trees)
    loss, _ = compute_gradients(decoder, head, items, num_pairs=count(items), budget=300)
    found = gradients(decoder.model, head)
    wanted_loss, wanted = separate(make(family, initializer_range=0.1), deepcopy(head), items)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert relative(found, wanted) < 1e-5


@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_gradients_do_not_depend_on_the_token_budget(budget):
    items = comparisons(1)
    decoder, head = trained("qwen3")
    whole, _ = compute_gradients(decoder, head, items, num_pairs=count(items), budget=200)
    wanted = gradients(decoder.model, head)
    loss, _ = compute_gradients(decoder, head, items, num_pairs=count(items), budget=budget)
    assert loss == pytest.approx(whole, rel=1e-6)
    assert relative(gradients(decoder.model, head), wanted) < 1e-5


def test_the_gradients_of_two_workers_add_up_to_those_of_one():
    items = comparisons(2)
    decoder, head = trained()
    compute_gradients(decoder, head, items, num_pairs=count(items), budget=200)
    wanted, parts = gradients(decoder.model, head), 0
    for mine in (items[::2], items[1::2]):
        compute_gradients(decoder, head, mine, num_pairs=count(items), budget=200)
        parts = parts + gradients(decoder.model, head)
    assert relative(parts, wanted) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_gradient_checkpointing_changes_no_gradient(family):
    items = comparisons(3)
    decoder, head = trained(family)
    loss, _ = compute_gradients(decoder, head, items, num_pairs=count(items), budget=200)
    wanted = gradients(decoder.model, head)
    decoder.model.activation_checkpointing_enable({"use_reentrant": False})
    again, _ = compute_gradients(decoder, head, items, num_pairs=count(items), budget=200)
    assert again == pytest.approx(loss, rel=1e-6)
    assert relative(gradients(decoder.model, head), wanted) < 1e-5


def test_autocast_drifts_by_the_rounding_of_bfloat16_only():
    items = comparisons(4)
    decoder, head = trained()
    loss, _ = compute_gradients(decoder, head, items, num_pairs=count(items), budget=200)
    wanted = gradients(decoder.model, head)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = compute_gradients(decoder, head, items, num_pairs=count(items), budget=200)
    assert rough == pytest.approx(loss, rel=2e-2)
    assert rough != loss
    assert 1e-4 < relative(gradients(decoder.model, head), wanted) < 5e-2


def test_an_ensemble_trains_every_head_as_if_it_were_alone():
    items = comparisons(5)
    decoder, heads = trained(num_heads=3)
    compute_gradients(decoder, heads, items, num_pairs=count(items), budget=200)
    together = heads.weight.grad.clone()
    for k in range(3):
        alone = nn.Linear(32, 1, bias=False)
        alone.weight.data = heads.weight.data[k : k + 1].clone()
        compute_gradients(decoder, alone, items, num_pairs=count(items), budget=200)
        assert relative(together[k], alone.weight.grad[0]) < 1e-5


def test_every_epoch_is_a_new_order_of_all_pairs_that_seed_and_step_fix():
    epochs = [[batch_indices(3, 4 * e + s, 14, 4) for s in range(4)] for e in range(2)]
    assert [len(ids) for ids in epochs[0]] == [4, 4, 4, 2]
    flat = [[i for ids in epoch for i in ids] for epoch in epochs]
    assert sorted(flat[0]) == sorted(flat[1]) == list(range(14))
    assert flat[0] != flat[1]
    assert batch_indices(3, 5, 14, 4) == epochs[1][1]
    assert batch_indices(4, 5, 14, 4) != epochs[1][1]
    with pytest.raises(ValueError, match="must be positive"):
        batch_indices(0, 0, 0, 4)


def test_micro_batches_keep_the_budget_and_split_no_tree():
    items = comparisons(6, 12)
    batches = [[items[i] for i in at] for at in micro_batches(items, 100)]
    assert sorted(id(i) for batch in batches for i in batch) == sorted(map(id, items))
    for batch in batches:
        assert sum(item.tree.num_tokens for item in batch) <= 100 or len(batch) == 1


def test_a_comparison_names_branches_that_are_there():
    tree = random_trees(0, 1)[0]
    with pytest.raises(ValueError, match="as many chosen as rejected"):
        PairTree(tree, (0, 1), (1,))
    with pytest.raises(ValueError, match="must name branches"):
        PairTree(tree, (0,), (len(tree.branches),))


def small_memory(model, most):
    """Lets a model run out of memory above `most` tokens, as an allocator does."""

    def check(_module, _inputs, kwargs):
        if kwargs["input_ids"].numel() > most:
            raise torch.OutOfMemoryError(f"no room for {kwargs['input_ids'].numel()} tokens")

    model.register_forward_pre_hook(check, with_kwargs=True)


def test_a_step_that_runs_out_of_memory_begins_anew_with_half_the_budget_and_says_so():
    items = comparisons(7)
    decoder, head = trained()
    loss, _ = compute_gradients(decoder, head, items, num_pairs=count(items), budget=1000)
    wanted = gradients(decoder.model, head)
    small_memory(decoder.model, 150)
    with pytest.warns(UserWarning, match="budget of 512: retrying with 256"):
        again, budget = compute_gradients(decoder, head, items, num_pairs=count(items), budget=512)
    assert budget == 128
    assert again == pytest.approx(loss, rel=1e-6)
    assert relative(gradients(decoder.model, head), wanted) < 1e-5


def test_what_does_not_fit_in_the_least_budget_is_an_error():
    def run(budget):
        raise torch.OutOfMemoryError(f"{budget}")

    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(torch.OutOfMemoryError, match=f"^{LEAST}$"),
    ):
        within_memory(run, 4 * LEAST)


def test_an_error_that_is_not_about_memory_is_not_retried():
    def run(budget):
        raise RuntimeError(f"shapes differ at {budget}")

    with pytest.raises(RuntimeError, match="shapes differ at 512"):
        within_memory(run, 512)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_calibration_names_a_width_and_leaves_the_model_as_it_was(family):
    decoder = Decoder(make(family), [2, 4])
    assert attend_by_trees(decoder)
    trees = random_trees(8)
    before = encode(decoder, trees)
    assert calibrate(decoder) in (256, 512, 1024, 2048)
    assert torch.equal(encode(decoder, trees).last_RLD, before.last_RLD)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("head_dim", [8, 16], ids=["calls", "flex"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_a_gpu_gives_the_features_and_gradients_of_separate_sequences(family, head_dim):
    items = comparisons(10)
    model = make(family, head_dim=head_dim).cuda()
    decoder = Decoder(model, [2, 4])
    assert attend_by_trees(decoder)
    assert decoder.kernel == "flex"  # which leaves heads of 8 to several calls
    trees = [item.tree for item in items]
    plain = encode_plain(decoder, trees, batch_size=1)
    found = encode(decoder, trees, budget=500, rows_per_forward=2)
    assert relative(found.last_RLD, plain.last_RLD) < 1e-3
    decoder, head = trained(family, head_dim=head_dim)
    loss, _ = compute_gradients(decoder, head, items, num_pairs=count(items), budget=300)
    wanted = gradients(decoder.model, head)
    decoder.model.cuda(), head.cuda()
    decoder.kernel = "flex"
    again, _ = compute_gradients(decoder, head, items, num_pairs=count(items), budget=300)
    assert again == pytest.approx(loss, rel=1e-4)
    assert relative(gradients(decoder.model, head).cpu(), wanted) < 1e-3
