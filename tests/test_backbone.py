"""Rendering conversations into token trees, and loading backbones."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from panoply.config import BackboneConfig, Rendering
from panoply.files import cache_root
from panoply.hub.backbone.backbone import Backbone, hash_weights, load_backbone
from panoply.hub.backbone.pretrained import resolve
from panoply.hub.backbone.renderer import PLAIN_TEMPLATE, Renderer
from panoply.hub.backbone.smollm2 import SHA256
from panoply.model.decoder import Decoder
from panoply.model.forward import encode, encode_plain
from tests.builders.tokenizers import TURNS, WORDS, byte_tokenizer

PROMPT = [{"role": "user", "content": "How are you?"}]


def whole(tokenizer, prompt, response):
    """Token ids of the full render, by transformers alone."""
    messages = [*prompt, {"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def own_text(tokenizer, branch):
    return tokenizer.decode(branch.tokens[branch.start : branch.stop])


def small_decoder(family="llama", **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        initializer_range=0.3,
        **changes,
    )
    return AutoModel.from_config(config)


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("template", [TURNS, WORDS, PLAIN_TEMPLATE])
def test_the_shared_part_and_a_branch_make_up_each_render(template):
    tokenizer = byte_tokenizer(template)
    prompt = [{"role": "system", "content": "Be kind."}, *PROMPT]
    responses = ["Fine.", "Find out!", " Well  ", "", "é ∑"]
    tree = Renderer(tokenizer, Rendering()).render(prompt, responses).tree
    for branch, response in zip(tree.branches, responses, strict=True):
        assert list(tree.shared + branch.tokens) == whole(tokenizer, prompt, response)
    opening = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(tree.shared) == opening


def test_a_branch_names_the_response_without_the_templates_closing_tokens():
    tokenizer = byte_tokenizer(TURNS)
    tree = Renderer(tokenizer, Rendering()).render(PROMPT, ["Fine.", "Find out!"]).tree
    assert [own_text(tokenizer, branch) for branch in tree.branches] == ["Fine.", "Find out!"]
    assert [tokenizer.decode(b.tokens[b.stop :]) for b in tree.branches] == ["<|end|>\n"] * 2


def test_a_tokenizer_without_a_template_gets_the_plain_one():
    tokenizer = byte_tokenizer(None)
    tree = Renderer(tokenizer, Rendering()).render(PROMPT, ["Fine."]).tree
    text = tokenizer.decode(tree.shared + tree.branches[0].tokens)
    assert text == "User: How are you?\n\nAssistant: Fine.\n\n"


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("writes_bos", [True, False])
def test_the_beginning_is_marked_once_whoever_marks_it(adds_bos, writes_bos):
    template = "<s>" + TURNS if writes_bos else TURNS
    tokenizer = byte_tokenizer(template, adds_bos=adds_bos)
    tree = Renderer(tokenizer, Rendering()).render(PROMPT, ["Fine.", "Bad."]).tree
    wanted = [tokenizer.bos_token_id] if adds_bos or writes_bos else []
    for branch in tree.branches:
        tokens = tree.shared + branch.tokens
        assert [t for t in tokens if t == tokenizer.bos_token_id] == wanted
        assert list(tokens[: len(wanted)]) == wanted


def test_the_gate_reads_the_first_header_token_or_the_last_prompt_token():
    tokenizer = byte_tokenizer(TURNS)
    first = Renderer(tokenizer, Rendering(gate="header_first")).render(PROMPT, ["Hi."]).tree
    last = Renderer(tokenizer, Rendering(gate="prompt_last")).render(PROMPT, ["Hi."]).tree
    assert tokenizer.decode(first.shared[first.gate :]) == "<|start|>assistant\n"
    assert tokenizer.decode(last.shared[last.gate :]) == "\n"
    assert last.gate == len(last.shared) - 1


def test_header_tokens_in_a_prompt_or_a_response_do_not_move_the_gate():
    tokenizer = byte_tokenizer(TURNS)
    render = Renderer(tokenizer, Rendering()).render
    header = "<|end|>\n<|start|>assistant\n"
    plain, odd = render(PROMPT, ["Hi."]).tree, render(PROMPT, [f"Hi.{header}again"]).tree
    assert (odd.shared, odd.gate) == (plain.shared, plain.gate)
    asked = render([{"role": "user", "content": f"What is {header}?"}], ["A header."]).tree
    assert tokenizer.decode(asked.shared[asked.gate :]) == "<|start|>assistant\n"


def test_the_embedded_models_gate_stands_at_the_assistant_header():
    folder = cache_root() / f"smollm2-135m-instruct-{SHA256[:8]}"
    if not folder.is_dir():
        pytest.skip("the embedded model is not in this machine's cache (`make demo` fetches it)")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for gate, wanted in (("header_first", "<|im_start|>assistant\n"), ("prompt_last", "\n")):
        render = Renderer(tokenizer, Rendering(gate=gate)).render
        for response in ("Fine.", "<|im_start|>assistant\nFine."):
            tree = render(PROMPT, ["Fine.", response]).tree
            assert tokenizer.decode(tree.shared[tree.gate :]) == wanted
    # Here a response that begins with a line break merges with the header's last token.
    tree = Renderer(tokenizer, Rendering()).render(PROMPT, ["\n\nFine.", "Fine."]).tree
    assert tokenizer.decode(tree.shared[tree.gate :]) == "<|im_start|>assistant"


def test_a_long_prompt_keeps_its_last_tokens_and_a_valid_gate():
    for gate in ("header_first", "prompt_last"):
        limits = Rendering(max_prompt_tokens=20, gate=gate)
        tokenizer = byte_tokenizer(TURNS)
        rendered = Renderer(tokenizer, limits).render(
            [{"role": "user", "content": "x" * 100 + "END"}], ["Fine."]
        )
        tree, opening = rendered.tree, "END<|end|>\n<|start|>assistant\n"
        assert len(tree.shared) == 20
        assert tokenizer.decode(tree.shared).endswith(opening)
        assert tokenizer.decode(tree.shared[tree.gate :]).endswith("\n")
        assert tree.gate == (9 if gate == "header_first" else 19)
        assert rendered.prompt_tokens_cut == 122 - 20


def test_a_cut_prompt_still_begins_with_the_beginning_of_sequence():
    tokenizer = byte_tokenizer(TURNS, adds_bos=True)
    prompt = [{"role": "user", "content": "x" * 100}]
    tree = Renderer(tokenizer, Rendering(max_prompt_tokens=20)).render(prompt, ["Fine."]).tree
    assert len(tree.shared) == 20
    assert [i for i, t in enumerate(tree.shared) if t == tokenizer.bos_token_id] == [0]
    assert tokenizer.decode(tree.shared[tree.gate :]) == "<|start|>assistant\n"


def test_a_long_response_keeps_its_first_tokens_and_the_closing_tokens():
    tokenizer = byte_tokenizer(TURNS)
    rendered = Renderer(tokenizer, Rendering(max_response_tokens=8)).render(
        PROMPT, ["BEGIN" + "y" * 50, "12345678", "short"]
    )
    texts = [tokenizer.decode(branch.tokens) for branch in rendered.tree.branches]
    assert texts == ["BEGINyyy<|end|>\n", "12345678<|end|>\n", "short<|end|>\n"]
    own = [own_text(tokenizer, branch) for branch in rendered.tree.branches]
    assert own == ["BEGINyyy", "12345678", "short"]
    assert rendered.num_responses_cut == 1
    assert rendered.prompt_tokens_cut == 0


def test_a_role_that_the_template_refuses_is_an_error_that_names_it():
    guard = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    )
    renderer = Renderer(byte_tokenizer(guard + "{% endif %}{% endfor %}" + TURNS), Rendering())
    with pytest.raises(ValueError, match=r"refuses roles \['system', 'user'\]: no system"):
        renderer.render([{"role": "system", "content": "Be kind."}, *PROMPT], ["Fine."])
    with pytest.raises(ValueError, match="at least one response"):
        renderer.render(PROMPT, [])


# Features of rendered texts.

MERGES = [("Ġ", "h"), ("Ġh", "i"), ("y", "Ċ")]
"""Over the border between prompt and response, and between response and closing."""


def test_a_tokenizer_that_merges_across_the_border_still_gives_exact_features():
    tokenizer = byte_tokenizer(WORDS, merges=MERGES)
    responses = ["hi there", "zebra", "hey", "h"]
    tree = Renderer(tokenizer, Rendering()).render(PROMPT, responses).tree
    opening = tokenizer(tokenizer.apply_chat_template(PROMPT, tokenize=False) + "assistant: ")
    assert len(tree.shared) == len(opening["input_ids"]) - 1
    assert [branch.start for branch in tree.branches] == [0, 1, 0, 0]
    model = small_decoder()
    features = encode(Decoder(model, [3]), [tree], budget=60)
    for i, response in enumerate(responses):
        tokens = torch.tensor([whole(tokenizer, PROMPT, response)])
        with torch.no_grad():
            state_TD = model(input_ids=tokens).last_hidden_state[0]
        start = len(tree.shared) + tree.branches[i].start
        assert relative(features.last_RLD[i, 0], state_TD[-1]) < 1e-4
        mean_D = state_TD[start : len(tree.shared) + tree.branches[i].stop].mean(0)
        assert relative(features.mean_RLD[i, 0], mean_D) < 1e-4


@pytest.mark.parametrize("limit", [16, 256])
@pytest.mark.parametrize("gate", ["header_first", "prompt_last"])
def test_a_text_has_the_same_features_alone_and_among_others(limit, gate):
    tokenizer = byte_tokenizer(TURNS, adds_bos=True)
    backbone = Backbone("", small_decoder(), Renderer(tokenizer, Rendering(gate=gate)), [1, 3])
    alone = backbone.features([backbone.renderer.render(PROMPT, ["Fine."]).tree])
    crowd = ["No", "Fine.", "<|end|>Well", "Find"]
    other = backbone.renderer.render([{"role": "user", "content": "?"}], ["Fine."]).tree
    tree = backbone.renderer.render(PROMPT, crowd).tree
    among = backbone.features([other, tree], limit)
    assert backbone.shares_prefixes
    assert relative(among.mean_RLD[2], alone.mean_RLD[0]) < 1e-4
    assert relative(among.last_RLD[2], alone.last_RLD[0]) < 1e-4
    assert relative(among.gate_GLD[1], alone.gate_GLD[0]) < 1e-4


def test_siblings_that_merge_with_the_header_do_not_move_where_a_long_prompt_is_cut():
    tokenizer = byte_tokenizer(WORDS, merges=MERGES)
    renderer = Renderer(tokenizer, Rendering(max_prompt_tokens=20))
    prompt = [{"role": "user", "content": "abcdefg" * 10}]
    decoder = Decoder(small_decoder(), [3])
    alone = encode(decoder, [renderer.render(prompt, ["zebra"]).tree])
    among = encode(decoder, [renderer.render(prompt, ["zebra", "hi there"]).tree])
    assert relative(among.mean_RLD[0], alone.mean_RLD[0]) < 1e-4
    assert relative(among.gate_GLD, alone.gate_GLD) < 1e-4


def test_the_fallback_gives_the_features_of_one_sequence_at_a_time():
    tokenizer = byte_tokenizer(TURNS)
    renderer = Renderer(tokenizer, Rendering())
    backbone = Backbone("", small_decoder("bloom"), renderer, [2, 3])
    tree = renderer.render(PROMPT, ["Fine.", "A longer answer.", "No"]).tree
    found = backbone.features([tree])
    assert not backbone.shares_prefixes
    wanted = encode_plain(backbone.decoder, [tree], batch_size=1)
    assert relative(found.mean_RLD, wanted.mean_RLD) < 1e-4
    assert relative(found.gate_GLD, wanted.gate_GLD) < 1e-4


def random_backbone():
    return Backbone("", small_decoder(), Renderer(byte_tokenizer(TURNS), Rendering()), [3])


def some_trees(backbone):
    texts = [f"{word} and {word}" for word in ("one", "two", "three", "four", "five", "six")]
    return [backbone.renderer.render(PROMPT, texts[i:]).tree for i in range(5)]


def test_without_a_budget_it_is_measured_once_and_changes_no_feature():
    backbone = random_backbone()
    trees = some_trees(backbone)
    wanted = encode_plain(backbone.decoder, trees, batch_size=1)
    assert backbone.token_budget == 0
    for budget in (64, 100, 0):
        assert relative(backbone.features(trees, budget).last_RLD, wanted.last_RLD) < 1e-4
    measured = backbone.token_budget
    assert measured >= 64
    backbone.features(trees)
    assert backbone.token_budget == measured
    with pytest.raises(ValueError, match=r"token_budget` must be 0 \(measured\) or >= 64, got 63"):
        BackboneConfig(token_budget=63)


def test_a_backbone_that_ran_out_of_memory_stays_below_what_fitted():
    backbone = random_backbone()
    trees = some_trees(backbone)
    wanted = backbone.features(trees, 1024)
    seen = []

    def check(_module, _inputs, kwargs):
        seen.append(kwargs["input_ids"].numel())
        if seen[-1] > 300:
            raise torch.OutOfMemoryError(f"no room for {seen[-1]} tokens")

    backbone.decoder.model.register_forward_pre_hook(check, with_kwargs=True)
    with pytest.warns(UserWarning, match="out of memory with a token budget of 1024"):
        found = backbone.features(trees, 1024)
    assert relative(found.last_RLD, wanted.last_RLD) < 1e-5
    seen.clear()
    assert relative(backbone.features(trees, 1024).last_RLD, wanted.last_RLD) < 1e-5
    assert max(seen) <= 300


def test_a_loaded_backbone_is_cut_to_the_deepest_wanted_layer(tiny_model_folder):
    full = load_backbone(str(tiny_model_folder), dtype="float32")
    cut = load_backbone(str(tiny_model_folder), depths=[2], dtype="float32")
    tree = cut.renderer.render(PROMPT, ["Fine."]).tree
    assert full.decoder.depths == (3,)
    assert len(cut.decoder.layers) == 2
    assert cut.weights_hash == full.weights_hash
    assert relative(cut.features([tree]).last_RLD, full.features([tree]).last_RLD) > 1e-2


def test_the_weights_hash_depends_on_every_weight_and_takes_scalars():
    model = torch.nn.Linear(3, 2)
    model.register_buffer("scale", torch.tensor(2.0))
    before = hash_weights(model)
    assert hash_weights(model) == before
    model.scale.add_(1)
    assert hash_weights(model) != before


def test_a_model_that_is_not_there_is_told_before_anything_loads(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing' is neither a folder nor a hub name"):
        load_backbone(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_backbone(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=r"file' is neither a folder"):
        resolve(str(tmp_path / "file"))


def test_an_unreachable_hub_is_told_with_the_way_out():
    with pytest.raises(FileNotFoundError, match=r"nobody/no-such-model.*Name a local folder"):
        load_backbone("nobody/no-such-model")
