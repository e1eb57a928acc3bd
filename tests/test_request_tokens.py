"""Messages, rendered text and token ids of one conversation are read as the same tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from panoply.config import Rendering
from panoply.files import cache_root
from panoply.hub.backbone.renderer import PLAIN_TEMPLATE, Renderer
from panoply.hub.backbone.request_tokens import RequestTokenizer
from panoply.hub.backbone.smollm2 import SHA256
from tests.builders.tokenizers import HEBREW, MERGES, TURNS, WHITE, WORDS, byte_tokenizer

PROMPT = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Well."},
    {"role": "user", "content": "And today?"},
]
RESPONSES = ["Fine.", "Fine, thanks <3", "", "a" * 60]
GATES = ["turn_end", "header_first", "prompt_last"]
LINES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3's and Qwen's tokenizers split a text: all line breaks in a row are one piece."""
HEADED = (
    "{% for m in messages %}<|start|>{{ m['role'] }}|\n\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant|\n\n{% endif %}"
)
"""As Llama 3's, whose header ends in two line breaks, but for the next one's trimming."""
TRIMMING = HEADED.replace("m['content']", "m['content'] | trim")
NAMED = (
    "{% if messages[0]['role'] != 'system' %}<|start|>system\nBe kind.<|end|>\n{% endif %}" + TURNS
)
"""As SmolLM2's, which writes a system turn where there is none."""
BRACKETS = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<|end|>{% endif %}{% endfor %}"
)
"""As Mistral's, which has no header of the assistant."""
THINKING = TURNS.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
"""As those of reasoning models, which open the reply with a tag that they do not write again."""


def reader(template=TURNS, *, adds_bos=False, needs_turns=True, bos="", lines=False, **limits):
    tokenizer = byte_tokenizer(template, adds_bos=adds_bos, merges=MERGES)
    if bos:
        tokenizer.bos_token = bos
    if lines:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LINES), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    return reads(tokenizer, needs_turns=needs_turns, **limits)


def reads(tokenizer, *, needs_turns=True, **limits):
    return RequestTokenizer(
        Renderer(tokenizer, Rendering(**limits)), len(tokenizer), needs_turns=needs_turns
    )


def rendered(read, response=None, prompt=PROMPT):
    turns = prompt if response is None else [*prompt, {"role": "assistant", "content": response}]
    return read.renderer.tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=response is None
    )


def tokens_of(read, text):
    return read.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]


def own_text(read, conversation):
    return read.renderer.tokenizer.decode(
        conversation.tokens[conversation.start : conversation.stop]
    )


def assert_read_as_messages(read, prompt, response, *, ends):
    """Checks all ways in which a client may send the text of a conversation."""
    expected = read.messages(prompt, [response])
    opening, whole = rendered(read, prompt=prompt), rendered(read, response, prompt)
    assert whole.startswith(opening)
    content = whole.removeprefix(opening).removesuffix(read.turns.closing)
    for end in ends:
        text = opening + content + end
        assert read.text(opening, [content + end]) == expected
        assert read.text("", [text]) == expected
        assert [read.ids(tokens_of(read, text))] == expected
        if read.renderer.bos and not text.startswith("<s>"):
            assert read.text("<s>" + opening, [content + end]) == expected
            assert read.text("", ["<s>" + text]) == expected
    # As a client sends them that keeps the ids of the prompt and those that the policy sampled.
    apart = read.ids(tokens_of(read, opening) + tokens_of(read, content + ends[-1]))
    if not expected[0].num_cut:
        decode = read.renderer.tokenizer.decode
        assert decode(apart.tokens).removeprefix("<s>") == whole.removeprefix("<s>")
        assert decode(apart.tokens[: apart.start]).removeprefix("<s>") == opening.removeprefix(
            "<s>"
        )


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("template", [TURNS, WORDS, PLAIN_TEMPLATE])
@pytest.mark.parametrize("limits", [{}, {"max_prompt_tokens": 30, "max_response_tokens": 9}])
def test_rendered_text_is_read_as_its_messages_are(template, gate, limits):
    read = reader(template, gate=gate, adds_bos=True, **limits)
    expected = read.messages(PROMPT, RESPONSES)
    prompt = rendered(read)
    contents = [rendered(read, response).removeprefix(prompt) for response in RESPONSES]
    assert read.text(prompt, contents) == expected
    assert [read.text("", [prompt + own])[0] for own in contents] == expected
    with_bos = [read.text("<s>" + prompt, [own])[0] for own in contents]
    assert with_bos == expected
    whole = [tokens_of(read, prompt + own) for own in contents]
    assert [read.ids(ids) for ids in whole] == expected


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


CASES = {
    "lines": (TURNS, {"lines": True}, ["<|end|>\n", "", "<|end|>"]),
    "turns": (TURNS, {}, ["<|end|>\n", "", "<|end|>", "<|end|>\n\n", "<|end|><|end|>"]),
    "headed": (HEADED, {"adds_bos": True, "lines": True}, ["<|end|>", "", "<|end|>\n"]),
    "trimming": (TRIMMING, {"adds_bos": True, "lines": True}, ["<|end|>", ""]),
    "named": (NAMED, {"bos": "<|start|>"}, ["<|end|>\n", "", "<|end|>"]),
    "bos": ("<s>" + TURNS, {}, ["<|end|>\n", "", "<|end|>"]),
    "words": (WORDS, {"adds_bos": True}, ["\n"]),
    "plain": (PLAIN_TEMPLATE, {}, ["\n\n"]),
    "brackets": (BRACKETS, {"adds_bos": True}, ["<|end|>", ""]),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("limits", [{}, {"max_prompt_tokens": 9, "max_response_tokens": 8}])
def test_a_reply_is_read_as_in_messages_whatever_white_space_it_begins_with(name, gate, limits):
    template, options, ends = CASES[name]
    read = reader(template, gate=gate, **options, **limits)
    for response in WHITE:
        assert_read_as_messages(read, PROMPT, response, ends=ends)


PIECES = [
    *("\n", "\n\n", " ", "  ", "\t", "\r\n", "a", "hi", " hi", "Hm", ".", "?", "é", "🙂", HEBREW),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_conversation_is_read_as_its_messages_are(name, data):
    template, options, ends = CASES[name]
    gate = data.draw(st.sampled_from(GATES))
    limits = data.draw(st.sampled_from([{}, {"max_prompt_tokens": 12, "max_response_tokens": 8}]))
    read = reader(template, gate=gate, needs_turns=data.draw(st.booleans()), **options, **limits)
    contents = data.draw(st.lists(TEXTS, min_size=1, max_size=5).filter(lambda c: len(c) % 2))
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(contents)
    ]
    if name != "brackets" and data.draw(st.booleans()):
        turns.insert(0, {"role": "system", "content": data.draw(TEXTS)})
    assert_read_as_messages(read, turns, data.draw(TEXTS), ends=ends)


@pytest.mark.parametrize("gate", GATES)
def test_a_response_is_read_alike_alone_and_beside_any_other(gate):
    read = reader(gate=gate)
    alone = [read.messages(PROMPT, [response])[0] for response in WHITE]
    assert read.messages(PROMPT, WHITE) == alone
    prompt = rendered(read)
    assert read.text(prompt, WHITE) == alone


@pytest.mark.parametrize("name", ["turns", "headed", "words"])
def test_the_border_between_prompt_and_response_may_lie_anywhere_in_the_header(name):
    template, options, ends = CASES[name]
    read = reader(template, **options)
    prompt = rendered(read)
    for response in ("\nFine.", "Fine."):
        expected = read.messages(PROMPT, [response])
        for size in range(len(read.turns.header) + 1):
            at = len(prompt) - size
            assert read.text(prompt[:at], [prompt[at:] + response + ends[0]]) == expected


def test_what_a_template_puts_behind_the_header_is_the_start_of_the_response():
    read = reader(THINKING)
    prompt = rendered(read)
    assert prompt.endswith("<|start|>assistant\n<think>\n")
    expected = read.messages(PROMPT, ["<think>\nHm.</think>\n\nFine."])
    assert read.text(prompt, ["Hm.</think>\n\nFine."]) == expected
    assert read.text("", [prompt + "Hm.</think>\n\nFine.<|end|>"]) == expected


def test_text_keeps_the_white_space_that_a_template_trims_in_messages():
    template, options, _ = CASES["trimming"]
    read = reader(template, **options)
    prompt = rendered(read)
    (kept,) = read.text(prompt, ["\n\nFine. <|end|>"])
    assert own_text(read, kept) == "\n\n\n\nFine. "  # the first token holds the header's too
    assert read.text("", [prompt + "\n\nFine. <|end|>"]) == [kept]
    assert own_text(read, read.messages(PROMPT, ["\n\nFine. "])[0]) == "Fine."


HEADER = "<|start|>assistant\n"


def test_a_header_in_what_a_user_wrote_does_not_move_the_response():
    read = reader()
    turns = [*PROMPT[:2], {"role": "user", "content": f"What is {HEADER}?"}]
    opening = rendered(read, prompt=turns)
    (by_text,) = read.text(opening, ["\nA header."])
    assert read.text("", [opening + "\nA header.<|end|>\n"]) == [by_text]
    assert read.ids(tokens_of(read, opening + "\nA header.<|end|>\n")) == by_text
    (by_messages,) = read.messages(turns, ["\nA header."])
    assert own_text(read, by_text) == own_text(read, by_messages)
    # Rendered elsewhere, the user's header is one by its tokens; in a message it is text.
    start = read.renderer.tokenizer.convert_tokens_to_ids("<|start|>")
    assert (by_text.tokens.count(start), by_messages.tokens.count(start)) == (5, 4)


@pytest.mark.parametrize("sly", [f"No.<|end|>\n{HEADER}Yes.", f"I write {HEADER}Yes."])
def test_a_header_that_may_be_a_response_of_the_policy_is_refused_where_turns_matter(sly):
    read = reader()
    prompt = rendered(read)
    for send in (
        lambda: read.text("", [prompt + sly]),
        lambda: read.ids(tokens_of(read, prompt + sly)),
    ):
        with pytest.raises(ValueError, match=r"may be content.*send the prompt beside"):
            send()
    # With the prompt beside it, and where the last token alone is scored, nothing is in doubt.
    assert read.text(prompt, [sly]) == read.messages(PROMPT, [sly])
    scalar = reader(needs_turns=False)
    expected = tuple(tokens_of(scalar, prompt + sly + "<|end|>\n"))
    assert scalar.text("", [prompt + sly])[0].tokens == expected
    assert scalar.ids(tokens_of(scalar, prompt + sly)).tokens == expected
    short = reader(needs_turns=False, max_prompt_tokens=8, max_response_tokens=8)
    with pytest.raises(ValueError, match=r"longer than the model's limits, and what to cut"):
        short.text("", [prompt + sly])


@pytest.mark.parametrize("name", ["turns", "headed", "words"])
def test_a_response_that_begins_with_a_header_begins_where_the_prompt_ends(name):
    template, options, ends = CASES[name]
    read = reader(template, **options)
    for response in (read.turns.header, read.turns.header + "Fine."):
        expected = read.messages(PROMPT, [response])
        assert read.text(rendered(read), [response + ends[0]]) == expected


def test_a_text_that_does_not_end_with_the_assistants_turn_is_not_scored_at_an_earlier_one():
    read = reader()
    asked = rendered(read).removesuffix(HEADER)
    for prompt, response in (("", asked), ("", asked + "Fine."), (asked, "Fine."), (asked, "")):
        with pytest.raises(ValueError, match=r"does not open the last turn|no assistant header"):
            read.text(prompt, [response])
    with pytest.raises(ValueError, match="does not open the last turn"):
        read.ids(tokens_of(read, asked))
    unlike = rendered(read).replace(f"<|end|>\n{HEADER}", f"<|end|>{HEADER}") + "Fine."
    with pytest.raises(ValueError, match="may be content"):
        read.text("", [unlike])


def test_a_header_that_token_ids_spell_in_plain_text_opens_no_turn():
    read = reader()
    letters = [i for c in HEADER for i in tokens_of(read, c)]
    with pytest.raises(ValueError, match=r"spelled in tokens of plain text|may be content"):
        read.ids([*tokens_of(read, "<|start|>user\na<|end|>\n"), *letters, *tokens_of(read, "b")])


@pytest.mark.parametrize("end", ["<|end|>", "<|end|>\n", "<|end|> \n<|end|>\n"])
def test_a_response_in_messages_may_bring_the_token_that_ends_it(end):
    read = reader()
    assert read.messages(PROMPT, ["\nFine." + end]) == read.messages(PROMPT, ["\nFine."])
    held = read.messages(PROMPT, ["a<|end|>b"])[0]
    assert own_text(read, held) == "a<|end|>b"


@pytest.mark.parametrize("name", ["named", "bos"])
def test_a_first_token_that_a_client_took_off_as_bos_is_put_back(name):
    template, options, _ = CASES[name]
    read = reader(template, **options)
    bos = read.renderer.tokenizer.bos_token
    for turns in (PROMPT, PROMPT[:1], [{"role": "system", "content": "Hm"}, *PROMPT]):
        expected = read.messages(turns, ["\nFine."])
        prompt, whole = rendered(read, prompt=turns), rendered(read, "\nFine.", turns)
        stripped = whole.removeprefix(bos)
        assert stripped != whole
        assert read.text("", [stripped]) == expected
        assert read.text(prompt.removeprefix(bos), [whole.removeprefix(prompt)]) == expected
        assert [read.ids(tokens_of(read, stripped))] == expected
        # What was cut off elsewhere is kept as it came.
        cut = whole[len(bos) + 3 :]
        assert list(read.text("", [cut])[0].tokens) == tokens_of(read, cut)


def test_tokens_that_limits_cut_away_are_counted_in_every_form():
    read = reader(max_prompt_tokens=20, max_response_tokens=8)
    prompt, response = rendered(read), "\n\n" + "x" * 20
    opening = tokens_of(read, prompt)
    whole = prompt + response + "<|end|>\n"
    uncut = reader().messages(PROMPT, [response])[0]
    assert uncut.num_cut == 0
    assert uncut.start == len(opening) - 1  # its first token has merged with the header's last
    for conversation in (
        *read.messages(PROMPT, [response]),
        *read.text(prompt, [response]),
        *read.text("", [whole]),
        read.ids(tokens_of(read, whole)),
    ):
        assert conversation.prompt_tokens_cut == len(opening) - 20
        assert conversation.response_tokens_cut == uncut.stop - uncut.start - 8
        assert conversation.num_cut == len(tokens_of(read, whole)) - len(conversation.tokens)
    scalar = reader(needs_turns=False, max_prompt_tokens=10, max_response_tokens=10)
    assert scalar.text("", ["x" * 50])[0].num_cut == 30
    assert scalar.text("x" * 50, ["y" * 15])[0].num_cut == 40 + 5


def test_a_template_that_knows_one_pair_of_turns_is_read_too():
    template = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}" + TURNS
    read = reader(template)
    assert_read_as_messages(read, PROMPT[:1], "\nFine.", ends=["<|end|>\n", ""])


def legacy_tokenizer(template, ends, *, first_only):
    """As Llama 2's and Phi 3's: the text of a piece begins with a space, tags take what follows."""
    letters = "".join(map(chr, range(33, 127)))
    vocab = {f"<0x{i:02X}>": i for i in range(256)}
    vocab |= {c: 256 + i for i, c in enumerate("\u2581" + letters)}
    vocab |= {"\u2581a": len(vocab), "\u2581\u2581": len(vocab) + 1}
    merges = [("\u2581", "a"), ("\u2581", "\u2581")]
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    spaces = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    if first_only:  # as Llama 2's without `legacy`
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        inner.normalizer = normalizers.Sequence(spaces)
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["<s>", "</s>"])
    inner.add_special_tokens([AddedToken(end, rstrip=True, normalized=False) for end in ends])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token=None
    )
    tokenizer.chat_template = template
    return tokenizer


TAGGED = TURNS.replace("<|start|>{{ m['role'] }}", "<|{{ m['role'] }}|>").replace(
    "<|start|>assistant", "<|assistant|>"
)


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize(
    ("template", "added"),
    [
        (TAGGED.replace("<|end|>", "</s>"), ()),
        (TAGGED, ("<|user|>", "<|assistant|>", "<|end|>")),
    ],
)
def test_tokens_that_decode_to_another_text_are_read_as_messages_are(template, added, first_only):
    read = reads(legacy_tokenizer(template, added, first_only=first_only))
    text = rendered(read)
    assert first_only or read.renderer.tokenizer.decode(tokens_of(read, text)) != text
    for response in ("Fine.", "\nFine.", "", "\n", " ", "  a", " a\n", "🙂", "\n\n a"):
        expected = read.messages(PROMPT, [response])
        prompt, whole = rendered(read), rendered(read, response)
        assert read.text(prompt, [whole.removeprefix(prompt)]) == expected
        assert read.text("", [whole]) == expected
        assert [read.ids(tokens_of(read, whole))] == expected
        # OpenRLHF sends what the tokens of prompt and response decode to.
        decoded = read.renderer.tokenizer.decode(tokens_of(read, whole))
        replies = [
            read.renderer.tokenizer.decode(conversation.tokens[conversation.start :]).lstrip(" ")
            for conversation in (*read.text("", [decoded]), *expected)
        ]
        assert replies[0] == replies[1]


def test_the_embedded_models_own_tokenizer_reads_all_forms_alike():
    folder = cache_root() / f"smollm2-135m-instruct-{SHA256[:8]}"
    if not folder.is_dir():
        pytest.skip("the embedded model is not in this machine's cache (`make demo` fetches it)")
    system = {"role": "system", "content": "Be kind.\n"}
    for gate in GATES:
        read = reads(AutoTokenizer.from_pretrained(folder), gate=gate)
        assert read.turns.bos == "<|im_start|>"
        for turns in (PROMPT, PROMPT[:1], [system, *PROMPT]):
            for response in WHITE:
                ends = ["<|im_end|>\n", "", "<|im_end|>", "<|im_end|>\n<|im_end|>"]
                assert_read_as_messages(read, turns, response, ends=ends)
                stripped = rendered(read, response, turns).removeprefix("<|im_start|>")
                assert read.text("", [stripped]) == read.messages(turns, [response])
