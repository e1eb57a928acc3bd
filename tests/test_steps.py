"""Process reward models and recorded steps: each step has a score, and a rule makes one of them."""

import asyncio
import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from actors.function_replica import FunctionReplica
from actors.model_replica import RewardModelReplica
from actors.scorer import ScoringActor
from panoply.config.serve import ServedModelConfig
from panoply.config.steps import AGGREGATES, MOST_STEPS, StepRule, split_off_rule
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.doctor.checks import examine
from panoply.scorers.composite.opening import beside
from panoply.scorers.where import LocalModel, RecordedScores, open_scorer, parse_where
from panoply.serve.calls import ReplicaRequest
from panoply.wire.request import Chat, Details, RenderedText, Score, Tokens, scored
from panoply.wire.rewards import ScoreEntry
from tests.builders.models import (
    PROMPT,
    SIZE,
    STEP_END,
    publish,
    publish_process,
    save_small,
    small_classifier,
)
from tests.builders.tokenizers import chat_tokenizer
from workflows.cluster.evaluated import open_evaluated
from workflows.cluster.resolve_model import model_in_process, resolve_model

STEPS = ["Two and three\nare five.", "Five and four are nine.", "So it is 9."]
RESPONSES = ["\n\n".join(STEPS), "It is 9.", "  \n\n", f"\n\n{STEPS[0]}\n \n\n{STEPS[2]}\n"]
SPLIT = [STEPS, ["It is 9."], [""], [STEPS[0], STEPS[2]]]
"""The steps of each response."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return publish_process(tmp_path_factory.mktemp("process"))


@torch.no_grad()
def by_transformers(folder, steps):
    """Probabilities of steps as the publisher of Qwen2.5-Math-PRM computes them, unpadded."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    head = load_file(folder / "model.safetensors")
    content = STEP_END.join(steps) + STEP_END
    chat = [*PROMPT, {"role": "assistant", "content": content}]
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    states = AutoModel.from_pretrained(folder)(torch.tensor([ids])).last_hidden_state[0]
    if "score.weight" in head:
        logits = states @ head["score.weight"].T + head["score.bias"]
    else:
        hidden = torch.relu(states @ head["score.0.weight"].T + head["score.0.bias"])
        logits = hidden @ head["score.2.weight"].T + head["score.2.bias"]
    places = torch.tensor(ids) == tokenizer.convert_tokens_to_ids(STEP_END)
    return logits.softmax(1)[places, 1].tolist()


def steps_of(model, response):
    [steps] = model.outputs(model.backbone.renderer.conversations(PROMPT, [response]))
    return steps


def answer_of(replica, item, *details):
    request = ReplicaRequest(items=(item,), bucket=0, timeout=60.0, details=frozenset(details))
    return asyncio.run(replica.answer(request)).items[0]


@pytest.mark.parametrize("two_layers", [True, False], ids=["qwen", "token classifier"])
def test_steps_have_the_probabilities_of_the_published_formula(two_layers, tmp_path):
    folder = publish_process(tmp_path, two_layers=two_layers)
    model = load_reward_model(folder)
    expected = [by_transformers(folder, steps) for steps in SPLIT]
    conversations = model.backbone.renderer.conversations(PROMPT, RESPONSES)
    together = model.outputs(conversations)
    assert [len(steps) for steps in together] == [len(steps) for steps in SPLIT]
    for steps, wanted in zip(together, expected, strict=True):
        assert steps == pytest.approx(wanted, rel=1e-4)
    assert np.ptp(np.concatenate(expected)) > 0.02
    scores = model.score(PROMPT, RESPONSES)
    assert scores.dtype == np.float32
    assert scores.tolist() == pytest.approx([min(wanted) for wanted in expected], rel=1e-4)
    alone = [float(model.score(PROMPT, [response])[0]) for response in RESPONSES]
    assert alone == pytest.approx(scores.tolist(), rel=1e-4)


def test_all_steps_cost_what_the_whole_response_costs(folder):
    model = load_reward_model(folder)
    model.score(PROMPT, RESPONSES[:1])  # measures the machine once
    [conversation] = model.backbone.renderer.conversations(PROMPT, RESPONSES[:1])
    before = model.backbone.decoder.num_positions
    model.outputs([conversation])
    assert model.backbone.decoder.num_positions - before == len(conversation.tokens) - 1  # its end


@pytest.mark.parametrize("rule", AGGREGATES)
def test_the_rule_behind_a_folder_makes_the_score(rule, folder):
    steps = steps_of(load_reward_model(folder), RESPONSES[0])
    product = steps[0] * steps[1] * steps[2]
    expected = {
        "min": min(steps),
        "product": product,
        "mean": sum(steps) / 3,
        "geometric_mean": product ** (1 / 3),
        "last": steps[2],
    }
    model = load_reward_model(f"{folder}?steps={rule}")
    assert float(model.score(PROMPT, RESPONSES[:1])[0]) == pytest.approx(expected[rule], rel=1e-5)
    assert model.provenance["steps"].startswith(rule)


def test_a_missing_step_is_missing_and_never_0():
    for rule in AGGREGATES:
        assert StepRule(steps=rule).combined([0.5, None]) is None
        assert StepRule(steps=rule).combined([]) is None
        assert StepRule(steps=rule).combined([0.25, 0.25]) == pytest.approx(
            0.0625 if rule == "product" else 0.25
        )
    assert StepRule(steps="geometric_mean").combined([-0.5, 0.5]) is None


def test_wherever_limits_cut_the_step_has_no_score_and_the_response_none(folder):
    model = load_reward_model(folder)
    renderer = model.backbone.renderer
    steps = steps_of(model, RESPONSES[0])
    [whole] = renderer.conversations(PROMPT, RESPONSES[:1])
    kept = set()
    for most in range(8, whole.stop - whole.start):
        renderer.rendering = replace(renderer.rendering, max_response_tokens=most)
        cut = steps_of(model, RESPONSES[0])
        assert cut[-1] is None
        assert cut[:-1] == pytest.approx(steps[: len(cut) - 1], rel=1e-4)
        assert math.isnan(model.score(PROMPT, RESPONSES[:1])[0])
        kept.add(len(cut) - 1)
    assert kept == {0, 1, 2}  # the cut went through each step, and between any two


def test_a_replica_tells_the_steps_before_a_cut_beside_the_error(folder):
    replica = RewardModelReplica(ServedModelConfig(name="m", where=f"{folder}?steps=product"))
    chat = Chat(tuple(PROMPT), tuple(RESPONSES))
    scores = answer_of(replica, chat, "steps")
    for score in scores:
        assert score.score == pytest.approx(math.prod(score.details.steps), rel=1e-6)
    assert [score.details.steps for score in answer_of(replica, chat)] == [()] * 4
    about = replica.about()
    assert about["kind"] == "process"
    limits = replica.model.backbone.renderer.rendering
    assert about["limits"]["conversation_tokens"] == limits.max_tokens > 1000
    assert about["cost"]["parameters"] > 10_000
    pair = Chat(tuple(PROMPT), tuple(RESPONSES[:2]))
    compared = ReplicaRequest(items=(pair,), bucket=0, timeout=60.0, compares=True)
    assert "scores steps" in asyncio.run(replica.answer(compared)).message

    renderer = replica.model.backbone.renderer
    renderer.rendering = replace(renderer.rendering, max_response_tokens=54)
    cut, short = answer_of(replica, replace(chat, responses=(RESPONSES[0], RESPONSES[1])), "steps")
    assert cut.score is None
    assert "step 3 has no score" in cut.error
    # The batch is another one: products of floats differ in their last bit on some processors.
    assert cut.details.steps[:2] == pytest.approx(scores[0].details.steps[:2], rel=1e-6)
    assert cut.details.steps[2:] == (None,)
    assert cut.num_cut > 0
    assert short.score == pytest.approx(scores[1].score, rel=1e-6)


def test_text_and_token_ids_get_the_scores_of_messages(folder):
    replica = RewardModelReplica(ServedModelConfig(name="m", where=str(folder)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = answer_of(replica, Chat(tuple(PROMPT), tuple(RESPONSES[:2])), "steps")
    opening = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    texts = RenderedText(opening, tuple(f"{text}<|end|>" for text in RESPONSES[:2]))
    for score, wanted in zip(answer_of(replica, texts, "steps"), expected, strict=True):
        assert score.details.steps == pytest.approx(wanted.details.steps, rel=1e-4)
    marked = STEP_END.join(STEPS) + STEP_END
    chats = [[*PROMPT, {"role": "assistant", "content": text}] for text in (marked, "It is 9.")]
    ids = [tuple(tokenizer.apply_chat_template(chat, return_dict=False)) for chat in chats]
    whole, without = answer_of(replica, Tokens(tuple(ids)), "steps")
    assert whole.details.steps == pytest.approx(expected[0].details.steps, rel=1e-4)
    assert "no separator" in without.error


def test_a_response_that_spells_the_separator_makes_no_step_unless_the_rule_says_so(folder):
    spelled = STEP_END.join(STEPS)
    model = load_reward_model(folder)
    assert len(steps_of(model, spelled)) == 1
    split = load_reward_model(f"{folder}?steps=min&split={STEP_END}")
    assert steps_of(split, spelled) == pytest.approx(steps_of(model, RESPONSES[0]), rel=1e-5)
    assert len(steps_of(load_reward_model(f"{folder}?split=lines"), RESPONSES[0])) == 4
    with pytest.raises(ValueError, match=rf"{MOST_STEPS + 1} steps that end at 'blank_lines'"):
        model.score(PROMPT, ["a\n\n" * (MOST_STEPS + 1)])
    many = ["a\n\n" * MOST_STEPS]
    assert math.isfinite(model.score(PROMPT, many)[0])


def test_what_is_no_process_model_or_has_no_separator_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"'<step>' is no added token.*separator=TOKEN"):
        load_reward_model(f"{folder}?separator=<step>")
    save_small(tmp_path / "scalar", chat_tokenizer())
    with pytest.raises(ValueError, match=r"`steps=product` .* is no process reward model"):
        load_reward_model(f"{tmp_path / 'scalar'}?steps=product")
    three = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    publish_process(tmp_path / "three", two_layers=False, **three)
    with pytest.raises(ValueError, match=r"num_labels 3, and a process reward model has 2"):
        load_reward_model(tmp_path / "three")
    classifier = small_classifier(num_labels=2)
    fields = {"architectures": ["LlamaForTokenClassification"]}
    one_class = {"score.weight": torch.zeros(1, SIZE)}
    publish(tmp_path / "one", chat_tokenizer(), classifier, fields=fields, tensors=one_class)
    with pytest.raises(ValueError, match=r"shape \[1, 32\].*2 classes"):
        load_reward_model(tmp_path / "one")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("a/b", ("a/b", None)),
        ("a/b?steps=last", ("a/b", StepRule(steps="last"))),
        ("a?split=lines&steps=mean", ("a", StepRule(steps="mean", split="lines"))),
        ("a?split=%26%20", ("a", StepRule(split="& "))),
        ("s3://b/f?region=x&steps=min", ("s3://b/f?region=x", StepRule())),
        ("a?other=1", ("a?other=1", None)),
    ],
)
def test_a_rule_stands_behind_a_place_and_leaves_other_parameters(place, expected):
    assert split_off_rule(place) == expected
    rest, rule = expected
    if rule is not None and "?" not in rest:
        assert split_off_rule(rest + rule.query) == expected


def test_a_wrong_rule_is_named_with_those_there_are(folder):
    for query, words in (
        ("steps=max", r"`steps` must be one of \['min', 'product'.* got 'max'"),
        ("split=", "`split` must be 'blank_lines', 'lines', or a text"),
        ("steps=min&steps=last", "`steps` must be named once, got 'last'"),
    ):
        with pytest.raises(ValueError, match=words):
            parse_where(f"{folder}?{query}")


def test_every_way_to_a_model_keeps_its_rule(folder, tmp_path):
    where = f"{folder}?steps=last"
    model = load_reward_model(folder)
    last = steps_of(model, RESPONSES[0])[-1]
    assert parse_where(where) == LocalModel(str(folder), StepRule(steps="last"))
    config = ServedModelConfig(name="m", where=where)
    assert resolve_model(config).where == where
    chat = Chat(tuple(PROMPT), tuple(RESPONSES))
    [row] = asyncio.run(open_scorer(config, open_model=model_in_process).score([chat]))
    assert row[0].score == pytest.approx(last, rel=1e-5)
    assert beside(folder.parent / "c.yaml", f"{folder.name}?steps=last") == where

    scorer = open_evaluated(where)
    assert math.isnan(scorer.temperature)  # probabilities of steps are no log odds
    actor = ScoringActor(scorer.model, 1)
    texts = {"prompt": json.dumps(PROMPT), "text_ids": ["a"], "responses": RESPONSES[:1]}
    columns = actor(pa.table({"prompts": [[{"prompt_id": "p", **texts}]]})).to_pydict()
    assert columns["score"] == pytest.approx([last], rel=1e-5)


def test_the_doctor_says_steps_rule_and_separator(folder):
    findings = {
        finding.check: finding for finding in examine(f"{folder}?steps=product&split=lines")
    }
    steps = findings["steps"]
    assert steps.verdict == "ok"
    assert "product of the steps, which end at 'lines'; '<extra_0>' behind each" in steps.finding
    assert len(steps.values["scores"]) == 3
    assert "scored token" not in findings
    assert [f.check for f in findings.values() if f.verdict == "fail"] == []


@pytest.fixture
def recorded(tmp_path):
    """Three responses, of which one has a step without a score and one no steps at all."""
    rows = [("whole", [0.5, 0.25, 0.75]), ("cut", [0.5, None]), ("none", []), ("gone", None)]
    table = pa.table(
        {
            "prompt": ["Why?"] * len(rows),
            "response": [name for name, _ in rows],
            "steps": pa.array([steps for _, steps in rows], pa.list_(pa.float64())),
        }
    )
    pq.write_table(table, tmp_path / "steps.parquet")
    return tmp_path / "steps.parquet"


def test_recorded_steps_take_the_same_rule(recorded):
    where = f"replay:{recorded}?steps=product"
    assert parse_where(where) == RecordedScores(str(recorded), StepRule(steps="product"))
    replica = FunctionReplica(ServedModelConfig(name="m", where=where))
    chat = Chat(({"role": "user", "content": "Why?"},), ("whole", "cut", "none", "gone"))
    whole, *others = answer_of(replica, chat, "steps")
    assert whole.score == 0.5 * 0.25 * 0.75
    assert whole.details.steps == (0.5, 0.25, 0.75)
    assert [score.score for score in others] == [None] * 3
    assert others[0].details.steps == (0.5, None)
    assert answer_of(replica, chat)[0] == Score(score=whole.score)


def test_a_table_of_steps_without_a_rule_and_one_of_scores_with_it_are_refused(recorded, tmp_path):
    def opened(where):
        return open_scorer(ServedModelConfig(name="m", where=where))

    with pytest.raises(ValueError, match=r"no column 'score'.*`replay:FILE\?steps=min`"):
        opened(f"replay:{recorded}")
    with pytest.raises(ValueError, match=r"`\?steps=RULE` alone"):
        opened(f"replay:{recorded}?steps=min&split=lines")
    plain = tmp_path / "scores.jsonl"
    plain.write_text(json.dumps({"prompt": "Why?", "response": "So.", "score": 1.5}))
    with pytest.raises(ValueError, match="no column 'steps'"):
        opened(f"replay:{plain}?steps=min")


def test_steps_come_over_the_wire_as_they_were():
    steps = (0.5, None, 0.25)
    assert scored(0.5, steps=steps[::2]).details.steps == (0.5, 0.25)
    entry = ScoreEntry.model_validate({"score": None, "error": "cut", "steps": list(steps)})
    assert entry.read() == Score(error="cut", details=Details(steps=steps))
    with pytest.raises(ValueError, match="finite"):
        Details(steps=(math.nan,))
