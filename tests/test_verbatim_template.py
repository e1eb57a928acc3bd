"""A template that is proved to copy contents gives, from its parts, what it writes when it runs."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from panoply.config import Rendering
from panoply.hub.backbone import verbatim_template
from panoply.hub.backbone.renderer import PLAIN_TEMPLATE, Renderer
from panoply.hub.backbone.verbatim_template import VerbatimTemplate, copies_contents
from tests.builders.tokenizers import chat_tokenizer
from tests.test_templates import MISTRAL_OLD, MISTRAL_V3, SMOL, TAGGED, TULU, VICUNA

SPEC = find_spec("trl")
PUBLISHED = sorted(Path(SPEC.origin).parent.glob("chat_templates/*.jinja")) if SPEC else []
COPIES = (PLAIN_TEMPLATE, MISTRAL_OLD, MISTRAL_V3, SMOL, TAGGED, TULU, VICUNA)
LOOP = "{% for m in messages %}{{ m['role'] + ':' }}X{% endfor %}"
DEPENDS = (
    "{{ m['content'] | upper }}",
    "{{ m.content.split('</think>')[-1] }}",
    "{{ (':' + m.content) | trim }}",
    "{{ m.content | trim(':') }}",
    "{% if m['content'] %}:{% endif %}",
    "{% if '<' in m['content'] %}:{% endif %}",
    "{{ m['content'] | length }}",
    "{{ m['con' + 'tent'] | length }}",
    "{{ m }}",
    "{{ m.items() | list }}",
    "{{ m['values']() | list }}",
    "{% for c in m.content %}{{ c + ' ' }}{% endfor %}",
    "{% for k in m %}{{ m[k] | upper }}{% endfor %}",
    "{% set x %}{{ m.content }}{% endset %}{{ x | upper }}",
    "{% set x = m.content %}{{ x | upper }}",
    "{% set x = m %}{{ x.content | upper }}",
    "{% set x = '' %}{% if x %}:{% endif %}{% set x = m.content %}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% macro f() %}{{ m.content }}{% endmacro %}{{ f() | upper }}",
    "{% macro f(x) %}{{ x | upper }}{% endmacro %}{{ f(m.content) }}",
    "{% set n = namespace(x=m.content) %}{{ n.x | upper }}",
    "{% set n = namespace(x='') %}{% set n.x = m.content %}{{ n.x | upper }}",
    "{% set a, b = m.content, m.content %}{{ a | upper }}",
    "{{ [m.content] | join | upper }}",
    "{{ m.content * 2 }}",
    "{{ m.content[:1] }}",
    "{{ (m.content if m.content else ':') }}",
    "{{ loop.previtem.content | upper if loop.previtem is defined else '' }}",
    "{{ messages | map(attribute='content') | join('') | upper }}",
    "{% for x in messages if x.content %}:{% endfor %}",
    "{% for x in messages recursive %}{{ x.content }}{% endfor %}",
    "{{ 'a' ~ m.content | e }}",
)
CONTENTS = ("", "  two\n", "</think> {{ m }}", "\ue0f00\ue0f1", "\u2003a\u2003", "<|im_end|>", "a:")


def _renderer(template: str):
    compiled = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    ).from_string(template)

    def render(turns, opens):
        return compiled.render(
            messages=turns, add_generation_prompt=opens, bos_token="<s>", eos_token="</s>"
        )

    return render


def _check(template: str) -> int:
    """Compares both ways to write on all conversations; returns how often the template ran."""
    render, runs = _renderer(template), []

    def counted(turns, opens):
        runs.append(opens)
        return render(turns, opens)

    writer = VerbatimTemplate(template, counted)
    for first in CONTENTS:
        for second in CONTENTS:
            turns = [{"role": "user", "content": first}, {"role": "assistant", "content": second}]
            for opens in (False, True):
                assert writer.write(turns, opens) == render(turns, opens)
    return len(runs)


@pytest.mark.parametrize("template", COPIES)
def test_a_template_that_copies_contents_runs_once_for_roles_and_gives_the_same_texts(template):
    assert copies_contents(template)
    assert _check(template) == 2


@pytest.mark.parametrize("part", DEPENDS)
def test_a_template_that_does_more_with_a_content_is_never_taken_to_copy_it(part):
    assert copies_contents(LOOP)
    assert not copies_contents(LOOP.replace("X", part))
    assert _check(LOOP.replace("X", part)) == 2 * len(CONTENTS) ** 2


def test_published_templates_that_copy_contents_write_the_same_either_way():
    copying = [file for file in PUBLISHED if copies_contents(file.read_text())]
    assert {"gemma", "llama3", "phi3"} <= {file.stem for file in copying}
    for file in copying:
        assert _check(file.read_text()) == 2


def test_a_name_of_a_turn_is_written_by_the_template_itself():
    template = LOOP.replace("X", "{{ m.name | default('') }}{{ m.content }}")
    writer = VerbatimTemplate(template, _renderer(template))
    plain, named = {"role": "user", "content": "a"}, {"role": "user", "content": "a", "name": "b"}
    assert (writer.write([plain], False), writer.write([named], False)) == ("user:a", "user:ba")


def test_what_is_kept_of_ever_other_sequences_of_roles_is_bounded(monkeypatch):
    monkeypatch.setattr(verbatim_template, "MAX_KEPT", 40)
    calls = []

    def render(turns, opens):
        calls.append(opens)
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns)

    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    written = VerbatimTemplate(template, render)
    for num in (*range(1, 20), 50, 50):
        turns = [{"role": "user", "content": f"{i}"} for i in range(num)]
        assert written.write(turns, False) == "".join(f"<user>{i}" for i in range(num))
        assert sum(map(len, written._parts.values())) <= max(40, 3 * num + 1)
    assert len(calls) == 20  # what is longer than all of it is kept while it comes again


def test_pairs_of_a_batch_get_the_trees_that_they_get_alone():
    renderer = Renderer(chat_tokenizer(), Rendering(max_prompt_tokens=30, max_response_tokens=8))
    question = {"role": "user", "content": "what is a cup"}
    earlier = [question, {"role": "assistant", "content": "red"}, question]
    items = [
        ([question], ["a cup", "a red cup <|end|> is a cup"]),
        (earlier, ["it is", "it is"]),
        ([question], ["a cup"]),
        ([{"role": "user", "content": "<|end|>" * 20}], ["", "red", "<|user|> red"]),
    ]
    alone = [renderer.render(prompt, responses) for prompt, responses in items]
    assert renderer.render_all(items) == alone
    assert any(rendered.prompt_tokens_cut for rendered in alone)
