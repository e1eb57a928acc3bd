"""Merged models as folders: what becomes of every tensor, and which models are refused."""

import ctypes
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from panoply.config import Rendering
from panoply.data.schema import digest
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.artefact.scalar import load_scalar_model
from panoply.hub.merge import folder as folder_module
from panoply.hub.merge.folder import into_shards, save_merged
from panoply.hub.merge.merge import MergedFit, open_merge
from panoply.seal import check_seal
from tests.builders.models import (
    PROMPT,
    RESPONSES,
    assert_the_same_everywhere,
    fine_tuned,
    publish,
    save_domain_policy,
    save_small,
    small_classifier,
    small_decoder,
)
from tests.builders.tokenizers import CHAT, TURNS, byte_tokenizer, chat_tokenizer

PAD = "<|panoply_pad|>"
TOOL = "<|tool|>"
RULES = ["linear", "slerp", "task", "ties", "dare"]


def merge(folders, out, share, **settings):
    """Merges models into a folder and returns it."""
    save_merged(open_merge(folders, share, **settings), out)
    return out


def weights(folder, file="model.safetensors"):
    return load_file(folder / file)


def reversed_tokenizer():
    """The chat tokenizer with its bytes in the other order, and one token more."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|system|>", "<|user|>", TOOL, "<|assistant|>", "<|end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy of the base of `small_models`, with the very same tokens."""
    return save_domain_policy(tmp_path_factory.mktemp("policy"), chat_tokenizer())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The base of `small_models`, as a folder of the backbone alone."""
    folder = tmp_path_factory.mktemp("base")
    small_decoder().save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def equals(tmp_path_factory, tiny_model_folder):
    """Three reward models of one base, each of a source and with a prompt that it has seen."""
    root = tmp_path_factory.mktemp("equals")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    for number, source in enumerate(("east", "west", "north")):
        model, key = fine_tuned(small_decoder(), number), digest(str(number))
        scales = (1.0 + number, 2.0)
        card = {"sources": (source,), "scales": scales, "centers": (0.1 * number, 0.5)}
        heads = {"num_heads": 2, "head_seed": number}
        save_small(root / source, tokenizer, model=model, seen=[key], **heads, **card)
    return [root / source for source in ("east", "west", "north")]


def test_the_average_of_a_model_with_itself_is_itself(small_models, tmp_path):
    folder = small_models["ensemble"]
    out = merge([folder, folder], tmp_path / "out", 0.5)
    for file in ("model.safetensors", "heads.safetensors"):
        before, after = weights(folder, file), weights(out, file)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    first, mean = load_scalar_model(folder), load_scalar_model(out)
    assert (first.score(PROMPT, RESPONSES) == mean.score(PROMPT, RESPONSES)).all()
    assert mean.manifest.centers == first.manifest.centers
    assert mean.manifest.scales == first.manifest.scales
    assert mean.manifest.temperature == 1.0


def test_equals_become_the_plain_mean_of_their_weights_and_heads(equals, tmp_path):
    out = merge(equals, tmp_path / "out", 2 / 3)
    merged = weights(out)
    for name, mean in merged.items():
        if name != "score.weight":
            expected = torch.stack([weights(folder)[name] for folder in equals]).mean(0)
            assert torch.allclose(mean, expected, rtol=1e-5, atol=1e-6), name
    heads = torch.stack([weights(folder, "heads.safetensors")["heads"] for folder in equals])
    assert torch.allclose(weights(out, "heads.safetensors")["heads"], heads.mean(0), atol=1e-6)
    # The classifier's head is that of the new heads and scales, not a mean of classifiers' heads.
    scales = torch.tensor([[2.0], [2.0]])
    assert torch.allclose(merged["score.weight"][0], (heads.mean(0) / scales).mean(0), atol=1e-6)
    manifest = load_scalar_model(out).manifest
    assert manifest.scales == pytest.approx((2.0, 2.0))
    assert manifest.centers == pytest.approx((0.1, 0.5))
    assert manifest.sources == ("east", "west", "north")
    assert manifest.method["merge"] == "linear"
    assert manifest.method["weights"] == pytest.approx([1 / 3] * 3)
    assert manifest.data["pairs of model 3"]["by_source"] == {"east": 20, "west": 10}
    # Prompts that any of them has seen are seen.
    seen = np.load(out / "seen.npy")
    assert set(seen.tolist()) == {int(digest(str(number))[:16], 16) for number in range(3)}
    assert_the_same_everywhere(out)
    assert check_seal(out, required=True)
    assert "means of the models" in (out / "README.md").read_text()


def test_a_policy_gives_its_backbone_and_neither_head_nor_deeper_layers(
    small_models, policy, tmp_path
):
    folder = small_models["scalar"]
    out = merge([folder, policy], tmp_path / "out", 0.3)
    first, other, merged = weights(folder), weights(policy), weights(out)
    assert merged.keys() == first.keys()
    assert "lm_head.weight" in other
    assert any(name.startswith("model.layers.2") for name in other)
    for name in merged.keys() - {"score.weight", "model.embed_tokens.weight"}:
        assert torch.allclose(merged[name], 0.7 * first[name] + 0.3 * other[name], atol=1e-6), name
    assert torch.equal(merged["score.weight"], first["score.weight"])
    heads = [weights(each, "heads.safetensors")["heads"] for each in (folder, out)]
    assert torch.equal(*heads)
    # The pad token is the reward model's alone, and its row stays zero.
    rows, before, there = (each["model.embed_tokens.weight"] for each in (merged, first, other))
    pad = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(PAD)
    assert not rows[pad].any()
    assert torch.allclose(rows[:pad], 0.7 * before[:pad] + 0.3 * there[:pad], atol=1e-6)
    assert torch.equal(rows[pad:], before[pad:])
    assert_the_same_everywhere(out)
    manifest = load_scalar_model(out).manifest
    assert manifest.sources == ("east", "west")
    assert manifest.data == load_scalar_model(folder).manifest.data


def test_with_all_weight_on_a_policy_the_head_lies_on_its_backbone(small_models, policy, tmp_path):
    folder = small_models["scalar"]
    out = merge([folder, policy], tmp_path / "out", 1.0)
    other, merged = weights(policy), weights(out)
    for name in merged.keys() - {"score.weight", "model.embed_tokens.weight"}:
        assert torch.equal(merged[name], other[name]), name
    assert torch.equal(merged["score.weight"], weights(folder)["score.weight"])


def test_tokens_are_matched_by_their_text_and_added_ones_are_gained(small_models, tmp_path):
    folder, tokenizer = small_models["scalar"], reversed_tokenizer()
    ours = AutoTokenizer.from_pretrained(folder)
    known = ours.get_vocab()
    texts = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    # Where the base has no such token any of its rows will do.
    rows = [known.get(text, 0) for text in texts]
    policy = save_domain_policy(tmp_path / "policy", tokenizer, rows=rows, tie_word_embeddings=True)
    assert "lm_head.weight" not in weights(policy)
    out = merge([folder, policy], tmp_path / "out", 0.25)
    name = "model.embed_tokens.weight"
    before, there, merged = (weights(each)[name] for each in (folder, policy, out))
    for text in ("a", "Z", "<|user|>", "<|end|>"):
        mean = 0.75 * before[known[text]] + 0.25 * there[tokenizer.convert_tokens_to_ids(text)]
        assert torch.allclose(merged[known[text]], mean, atol=1e-6), text
    grown = AutoTokenizer.from_pretrained(out)
    assert grown.get_vocab().items() > known.items()
    gained = grown.convert_tokens_to_ids(TOOL)
    assert torch.equal(merged[gained], there[tokenizer.convert_tokens_to_ids(TOOL)])
    assert len(grown.get_vocab()) == len(known) + 1
    assert not merged[known[PAD]].any()
    assert_the_same_everywhere(out)
    # A text that spells the token is content, as every control token is.
    first, model = load_scalar_model(folder), load_scalar_model(out)
    rendered = [
        each.backbone.renderer.conversations(PROMPT, [TOOL])[0].tokens for each in (first, model)
    ]
    assert rendered[0] == rendered[1]


def test_an_embedding_grows_where_it_has_no_row_left(small_models, tmp_path, tiny_tokenizer):
    folder = save_small_of_size(tmp_path / "first", 261, tiny_tokenizer)
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens([f"<word {i}>" for i in range(3)])
    policy = save_domain_policy(tmp_path / "policy", tokenizer)
    out = merge([tmp_path / "first", policy], tmp_path / "out", 0.5)
    assert weights(folder)["model.embed_tokens.weight"].shape[0] == 261
    merged, there = (weights(each)["model.embed_tokens.weight"] for each in (out, policy))
    assert merged.shape[0] == json.loads((out / "config.json").read_text())["vocab_size"] == 264
    assert torch.equal(merged[261:], there[260:263])
    assert_the_same_everywhere(out)


def save_small_of_size(folder, size, tokenizer):
    """A scalar model on the first rows of `small_decoder`'s embedding."""
    model = small_decoder()
    model.resize_token_embeddings(size)
    save_small(folder, tokenizer, model=model)
    return folder


@pytest.mark.parametrize("rule", RULES)
def test_without_a_share_a_merge_is_the_reward_model_bit_by_bit(
    small_models, policy, base, tmp_path, rule
):
    folder = small_models["ensemble"]
    origin = base if rule in ("task", "ties", "dare") else None
    out = merge([folder, policy], tmp_path / "out", 0.0, rule=rule, base=origin, density=0.5)
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            before, after = weights(folder, file.name), weights(out, file.name)
            assert all(torch.equal(before[name], after[name]) for name in {**before, **after})
        elif file.name not in ("panoply.json", "seal.json", "README.md"):
            assert file.read_bytes() == (out / file.name).read_bytes(), file.name
    first, merged = load_scalar_model(folder), load_scalar_model(out)
    assert (first.score(PROMPT, RESPONSES) == merged.score(PROMPT, RESPONSES)).all()
    assert merged.manifest.temperature == first.manifest.temperature
    assert merged.manifest.scales == first.manifest.scales


@pytest.mark.parametrize("rule", ["task", "ties", "dare"])
def test_rules_of_changes_read_the_base(small_models, policy, base, tmp_path, rule):
    folder = small_models["scalar"]
    settings = {"rule": rule, "base": base, "density": 1.0}
    out = merge([folder, policy], tmp_path / "out", 0.4, **settings)
    name = "model.layers.1.mlp.up_proj.weight"
    first, other, merged = (weights(each)[name] for each in (folder, policy, out))
    # The reward model is the base itself with a head, so that its own change is nothing.
    change = {"task": 0.4, "ties": 1.0, "dare": 0.4}[rule]
    assert torch.allclose(merged, first + change * (other - first), atol=1e-6)
    assert_the_same_everywhere(out)


def test_fitted_numbers_are_the_models_own(small_models, policy, tmp_path):
    opened = open_merge([small_models["ensemble"], policy], 0.5)
    fit = MergedFit(0.7, (0.1, 0.2), (3.0, 4.0))
    save_merged(opened, tmp_path / "out", fit=fit, method={"shares tried": {"0": 0.5}})
    manifest = load_scalar_model(tmp_path / "out").manifest
    assert (manifest.temperature, manifest.centers, manifest.scales) == (0.7, (0.1, 0.2), (3, 4))
    assert manifest.method["shares tried"] == {"0": 0.5}
    assert "centers and scales" not in manifest.method
    assert_the_same_everywhere(tmp_path / "out")


def test_models_that_do_not_fit_are_refused_with_the_difference(
    small_models, policy, base, tiny_model_folder, tmp_path
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    save_small(tmp_path / "wide", tokenizer, model=small_decoder(intermediate_size=64))
    save_small(tmp_path / "short", tokenizer, model=small_decoder(num_hidden_layers=1), depth=1)
    save_small(tmp_path / "qwen2", tokenizer, model=small_decoder("qwen2"))
    save_small(tmp_path / "cut", tokenizer, rendering=Rendering(max_prompt_tokens=64))
    save_small(tmp_path / "template", byte_tokenizer(TURNS))
    save_domain_policy(tmp_path / "shallow", tokenizer, num_hidden_layers=1)
    shutil.copytree(policy, tmp_path / "packed")
    config = json.loads((policy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    scalar = small_models["scalar"]
    for folder, message in (
        (tmp_path / "wide", "config's intermediate_size is 64, there it is 48"),
        (tmp_path / "short", "its depth is 1, there it is 2"),
        (tmp_path / "qwen2", "config's model_type is 'qwen2', there it is 'llama'"),
        (small_models["ensemble"], "its number of heads is 2, there it is 1"),
        (tmp_path / "cut", "its rendering is .*max_prompt_tokens=64"),
        (tmp_path / "template", "its chat template is"),
        (tmp_path / "shallow", "model.layers.1.* is missing; a merge with"),
        (tmp_path / "packed", "quantized weights, which are not merged"),
        (small_models["gated"], "is a gated reward model"),
        (tmp_path / "none", "no config.json"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            merge([scalar, folder], tmp_path / "out", 0.5)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="no head of a reward model"):
        open_merge([policy, scalar], 0.5)
    with pytest.raises(ValueError, match="holds something"):
        merge([scalar, policy], tmp_path / "cut", 0.5)


def test_models_of_another_base_are_refused_and_those_of_one_base_are_not(
    small_models, policy, base, tmp_path, tiny_tokenizer
):
    scalar = small_models["scalar"]
    stranger, wild = tmp_path / "stranger", tmp_path / "wild"
    save_small(stranger, tiny_tokenizer, model=small_decoder(seed=11))
    save_domain_policy(wild, tiny_tokenizer)
    small_decoder(seed=12).save_pretrained(wild)  # its weights are replaced by unrelated ones
    for folders, origin in (([scalar, stranger], None), ([scalar, wild], None)):
        with pytest.raises(ValueError, match=r"not trained from the weights .* differ by 1\.[34]"):
            open_merge(folders, 0.5, base=origin)
    with pytest.raises(ValueError, match=f"'{stranger}' was not trained"):
        open_merge([scalar, policy], 0.5, rule="ties", base=stranger)
    near = open_merge([scalar, policy], 0.5, rule="ties", base=base)
    assert near.distances == pytest.approx([0.1, 0.0], abs=0.01)


def test_a_published_reward_model_stays_in_its_layout(policy, tmp_path):
    first = publish(tmp_path / "first", chat_tokenizer(), fine_tuned(related_classifier(), 3))
    out = merge([first, policy], tmp_path / "out", 0.4)
    before, other, merged = weights(first), weights(policy), weights(out)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(merged[name], 0.6 * before[name] + 0.4 * other[name], atol=1e-6)
    assert torch.equal(merged["score.weight"], before["score.weight"])
    assert not (out / "panoply.json").exists()
    assert load_reward_model(out).score(PROMPT, RESPONSES).shape == (len(RESPONSES),)
    # Of an equal the head is merged too.
    second = publish(tmp_path / "second", chat_tokenizer(), fine_tuned(related_classifier(), 4))
    mean = weights(merge([first, second], tmp_path / "mean", 0.5))["score.weight"]
    expected = (before["score.weight"] + weights(second)["score.weight"]) / 2
    assert torch.allclose(mean, expected, atol=1e-6)
    alone = merge([first, policy], tmp_path / "alone", 0.0)
    scores = [load_reward_model(each).score(PROMPT, RESPONSES) for each in (first, alone)]
    assert (scores[0] == scores[1]).all()


def related_classifier():
    """A classifier on the weights of `small_decoder`."""
    classifier = small_classifier()
    classifier.model.load_state_dict(small_decoder().state_dict())
    return classifier


def test_weights_are_written_in_shards_of_a_layer_and_score_as_in_one_file(
    small_models, policy, tmp_path, monkeypatch
):
    folders = [small_models["scalar"], policy]
    whole = merge(folders, tmp_path / "whole", 0.3)
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 20_000)
    out = merge(folders, tmp_path / "out", 0.3)
    files = sorted(out.glob("model-*-of-*.safetensors"))
    assert len(files) > 3
    assert not (out / "model.safetensors").exists()
    tensors = {}
    for file in files:
        held = load_file(file)
        assert len(held) == 1 or sum(each.nbytes for each in held.values()) <= 20_000
        tensors |= held
    expected = weights(whole)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    scores = [load_scalar_model(each).score(PROMPT, RESPONSES) for each in (whole, out)]
    assert (scores[0] == scores[1]).all()
    # A merge of what was written in shards reads them too.
    again = merge([out, policy], tmp_path / "again", 0.0)
    assert (again / "model.safetensors.index.json").is_file()


def test_a_shard_is_as_large_as_allowed_or_one_tensor(monkeypatch):
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 100)
    shapes = {"a": (10,), "b": (15,), "c": (1,), "d": (50,), "e": (24,), "f": (1,)}
    assert into_shards(shapes) == [["a", "b"], ["c"], ["d"], ["e", "f"]]


class PeakMemory:
    """Most memory that is not of files while the context is open, in bytes above its beginning."""

    def __enter__(self):
        # What was freed before would be taken again without a trace.
        ctypes.CDLL(None).malloc_trim(0)
        self.over = threading.Event()
        self.start = self.most = anonymous_bytes()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        """Looks every millisecond."""
        while not self.over.wait(0.001):
            self.most = max(self.most, anonymous_bytes())

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.growth = self.most - self.start


def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_memory_holds_a_layer_and_never_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 2**22)
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24}
    classifier = small_classifier(**shape)
    first = publish(tmp_path / "first", chat_tokenizer(), classifier)
    policy = LlamaForCausalLM(LlamaConfig.from_dict(classifier.config.to_dict()))
    policy.model.load_state_dict(classifier.model.state_dict())
    fine_tuned(policy, 1).save_pretrained(tmp_path / "policy")
    chat_tokenizer().save_pretrained(tmp_path / "policy")
    size = (first / "model.safetensors").stat().st_size
    del classifier, policy
    with PeakMemory() as memory:
        merge([first, tmp_path / "policy"], tmp_path / "out", 0.3)
    assert size > 90e6
    assert memory.growth < size / 3
    # A model that is held whole is seen as such.
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 2**30)
    with PeakMemory() as whole:
        merge([first, tmp_path / "policy"], tmp_path / "whole", 0.3)
    assert whole.growth > size
