"""Rendering conversations into token trees, and loading backbones."""

import pytest

from panoply.config import Rendering
from panoply.hub.backbone import Renderer, load_backbone, resolve
from panoply.model.forward import encode_plain

PROMPT = [{"role": "user", "content": "How are you?"}]


def test_the_shared_part_and_the_branches_make_up_each_render(tiny_tokenizer):
    tree = Renderer(tiny_tokenizer, Rendering()).render(PROMPT, ["Fine.", "Find out!"]).tree
    texts = [tiny_tokenizer.decode(tree.shared + branch.tokens) for branch in tree.branches]
    assert texts == [
        "<|user|>How are you?<|end|><|assistant|>Fine.<|end|>",
        "<|user|>How are you?<|end|><|assistant|>Find out!<|end|>",
    ]
    own = [tiny_tokenizer.decode(b.tokens[b.start : b.stop]) for b in tree.branches]
    assert own == ["Fine.", "Find out!"]


def test_the_gate_reads_the_header_or_the_last_prompt_token(tiny_tokenizer):
    for position in ("header_first", "prompt_last"):
        tree = Renderer(tiny_tokenizer, Rendering(gate=position)).render(PROMPT, ["Hi."]).tree
        assert tiny_tokenizer.decode([tree.shared[tree.gate]]) == "<|assistant|>"
        assert tree.gate == len(tree.shared) - 1


def test_header_tokens_in_a_response_do_not_move_the_gate(tiny_tokenizer):
    renderer = Renderer(tiny_tokenizer, Rendering())
    plain = renderer.render(PROMPT, ["Hi."]).tree
    odd = renderer.render(PROMPT, ["Hi.<|end|><|assistant|>again"]).tree
    assert odd.gate == plain.gate
    assert odd.shared == plain.shared


def test_a_long_prompt_keeps_its_last_tokens_and_a_long_response_its_first(tiny_tokenizer):
    limits = Rendering(max_prompt_tokens=10, max_response_tokens=8)
    prompt = [{"role": "user", "content": "x" * 100 + "END"}]
    rendered = Renderer(tiny_tokenizer, limits).render(prompt, ["BEGIN" + "y" * 50])
    tree = rendered.tree
    assert tiny_tokenizer.decode(tree.shared).endswith("END<|end|><|assistant|>")
    assert len(tree.shared) == 10
    assert 0 <= tree.gate < 10
    assert tiny_tokenizer.decode(tree.branches[0].tokens) == "BEGINyyy<|end|>"
    assert rendered.prompt_tokens_cut > 0
    assert rendered.num_responses_cut == 1


def test_a_response_scores_the_same_alone_and_among_others(tiny_model_folder):
    backbone = load_backbone(str(tiny_model_folder), depths=[2])
    render = backbone.renderer.render
    assert backbone.shares_prefixes
    alone = backbone.features([render(PROMPT, ["Fine."]).tree])
    among = backbone.features([render(PROMPT, ["No", "Fine.", "<|end|>Well"]).tree])
    plain = encode_plain(backbone.decoder, [render(PROMPT, ["Fine."]).tree])
    for features in (among.mean_RLD[1], plain.mean_RLD[0]):
        assert float((features - alone.mean_RLD[0]).norm() / features.norm()) < 1e-4


def test_a_model_path_that_does_not_exist_is_told_before_weights_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub name"):
        resolve(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_an_unreachable_hub_is_told_with_the_way_out():
    with pytest.raises(FileNotFoundError, match="Name a local folder"):
        resolve("nobody/no-such-model")
