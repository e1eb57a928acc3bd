"""Messages, rendered text and token ids of one conversation are read as the same tokens."""

import pytest
from test_backbone import TURNS, WORDS, byte_tokenizer

from panoply.config import Rendering
from panoply.hub.backbone import PLAIN_TEMPLATE, Renderer
from panoply.hub.reading import Reader

PROMPT = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Well."},
    {"role": "user", "content": "And today?"},
]
RESPONSES = ["Fine.", "Fine, thanks <3", "", "a" * 60]


def reader(template=TURNS, *, adds_bos=False, needs_turns=True, **limits):
    tokenizer = byte_tokenizer(template, adds_bos=adds_bos)
    return Reader(Renderer(tokenizer, Rendering(**limits)), len(tokenizer), needs_turns=needs_turns)


def rendered(read, response=None):
    turns = PROMPT if response is None else [*PROMPT, {"role": "assistant", "content": response}]
    return read.renderer.tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=response is None
    )


@pytest.mark.parametrize("gate", ["turn_end", "header_first", "prompt_last"])
@pytest.mark.parametrize("template", [TURNS, WORDS, PLAIN_TEMPLATE])
@pytest.mark.parametrize("limits", [{}, {"max_prompt_tokens": 30, "max_response_tokens": 9}])
def test_rendered_text_is_read_as_its_messages_are(template, gate, limits):
    read = reader(template, gate=gate, adds_bos=True, **limits)
    wanted = read.messages(PROMPT, RESPONSES)
    prompt = rendered(read)
    told = [rendered(read, response).removeprefix(prompt) for response in RESPONSES]
    assert read.text(prompt, told) == wanted
    assert [read.text("", [prompt + own])[0] for own in told] == wanted
    with_bos = [read.text("<s>" + prompt, [own])[0] for own in told]
    assert with_bos == wanted
    tokenizer = read.renderer.tokenizer
    whole = [tokenizer(prompt + own, add_special_tokens=False)["input_ids"] for own in told]
    assert [read.ids(ids) for ids in whole] == wanted


@pytest.mark.parametrize("end", ["", "<|end|>", "<|end|>\n"])
def test_closing_tokens_are_completed_however_many_a_client_left(end):
    read = reader()
    assert read.text(rendered(read), ["Fine." + end]) == read.messages(PROMPT, ["Fine."])


def test_an_older_turn_is_not_taken_for_the_response():
    read = reader()
    first = read.text("", [rendered(read, "Fine.")])[0]
    own = read.renderer.tokenizer.decode(first.tokens[first.start : first.stop])
    assert own == "Fine."


def test_a_header_in_a_response_does_not_move_its_start_where_the_prompt_is_known():
    read = reader()
    sly = "No.<|end|>\n<|start|>assistant\nYes."
    found = read.text(rendered(read), [sly])[0]
    assert read.renderer.tokenizer.decode(found.tokens[found.start : found.stop]) == sly


def test_text_of_another_template_is_scored_to_its_end_where_turns_do_not_matter():
    read = reader(needs_turns=False)
    text = "[INST] How are you? [/INST] Fine."
    found = read.text("", [text])[0]
    assert read.renderer.tokenizer.decode(found.tokens) == text
    assert found.stop == len(found.tokens)
    split = read.text("[INST] How are you? [/INST]", [" Fine."])[0]
    assert split.tokens == found.tokens
    assert read.renderer.tokenizer.decode(split.tokens[split.start :]) == " Fine."


def test_text_of_another_template_is_refused_where_turns_matter():
    with pytest.raises(ValueError, match=r"no assistant header.*send messages"):
        reader().text("", ["[INST] How are you? [/INST] Fine."])


def test_long_text_without_turns_keeps_its_end_and_bos():
    read = reader(needs_turns=False, adds_bos=True, max_prompt_tokens=10, max_response_tokens=10)
    found = read.text("", ["x" * 50 + "the last twenty text"])[0]
    assert read.renderer.tokenizer.decode(found.tokens) == "<s>he last twenty text"


@pytest.mark.parametrize("ids", [[1, 10**6], [1]])
def test_token_ids_that_are_no_conversation_are_refused(ids):
    with pytest.raises(ValueError, match=r"token id 1000000 is not|are no conversation"):
        reader().ids(ids)
