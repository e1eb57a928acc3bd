"""Evaluation of any scorer: published models, functions, recorded scores, side by side."""

import io
import json

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from panoply.config.evaluate import CrossEvalConfig, EvaluateConfig
from panoply.hub.artefact.load import load_reward_model
from panoply.report.progress import RunLogger
from tests.builders.models import publish, save_small, small_classifier
from tests.builders.tokenizers import NO_SYSTEM, byte_tokenizer
from workflows.cluster.evaluated import open_evaluated
from workflows.cross_eval import run_cross_eval
from workflows.evaluate import run_evaluate

LENGTH = """
def length(response):
    return len(response)


def length_of_some(prompt, response):
    return len(response) if "1" in prompt[-1]["content"] else None


def broken(response):
    raise KeyError(response)


def says_yes(response):
    return float("yes" in response)


def likes_the_first(prompts, responses):
    return [float(prompt not in prompts[:i]) for i, prompt in enumerate(prompts)]
"""


@pytest.fixture
def rows():
    return [
        {"prompt": f"question {i}", "chosen": f"{'good ' * (i % 5)}{i}", "rejected": f"no, {i}"}
        for i in range(24)
    ]


@pytest.fixture
def pairs(rows, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "length.py").write_text(LENGTH)
    return (str(file),)


def in_words(tmp_path, name):
    return f"function:{tmp_path / 'length.py'}:{name}"


def test_a_function_is_evaluated_without_a_cluster_and_has_no_probability(rows, pairs, tmp_path):
    config = EvaluateConfig(
        model=in_words(tmp_path, "length"),
        beside=(in_words(tmp_path, "length_of_some"),),
        pairs=pairs,
        out=str(tmp_path / "out"),
        report_to=("none",),
    )
    lines = io.StringIO()
    metrics = run_evaluate(config, RunLogger(Console(file=lines, width=200)))
    assert "pairs: 24 rows, by source pairs (24)" in lines.getvalue()
    gaps = [len(row["chosen"]) - len(row["rejected"]) for row in rows]
    assert metrics["pairs"]["score"]["n"] == 24
    wins = sum((gap > 0) + (gap == 0) / 2 for gap in gaps)
    assert metrics["pairs"]["score"]["accuracy"] == pytest.approx(wins / 24)
    some = metrics["pairs"][config.beside[0]]
    assert (some["n"], some["missing"]) == (12, 12)  # what has no score is missing, never 0
    assert metrics["num_seen"] == 0
    assert "truncated" in metrics


def test_a_scorer_that_likes_the_place_of_a_response_learns_nothing_of_its_label(tmp_path):
    lengths = ("yes", "no, not so"), ("yes, just so", "no")
    rows = [
        {"prompt": f"q {i}", "chosen": lengths[i % 2][0], "rejected": lengths[i % 2][1]}
        for i in range(200)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "length.py").write_text(LENGTH)
    config = EvaluateConfig(
        model=in_words(tmp_path, "likes_the_first"),
        beside=(in_words(tmp_path, "says_yes"),),
        pairs=(str(tmp_path / "pairs.jsonl"),),
        out=str(tmp_path / "out"),
        report_to=("none",),
    )
    scored = run_evaluate(config, RunLogger())["pairs"]
    assert scored["score"]["ties"] == 0
    assert scored["score"]["accuracy"] == pytest.approx(0.5, abs=0.1)
    assert scored[config.beside[0]]["accuracy"] == 1.0  # each score went back to its own response


def test_a_scorer_that_fails_on_every_text_is_refused_without_quoting_one(pairs, tmp_path):
    config = EvaluateConfig(
        model=in_words(tmp_path, "broken"),
        pairs=pairs,
        out=str(tmp_path / "out"),
        report_to=("none",),
    )
    with pytest.raises(ValueError, match=r"broken' gave no score to any of 48 texts") as raised:
        run_evaluate(config, RunLogger())
    assert "KeyError" in str(raised.value)
    assert "question" not in str(raised.value)
    assert "good" not in str(raised.value)


def test_prompts_that_a_template_refuses_are_told_before_any_model_scores(rows, tmp_path):
    folder, file = tmp_path / "ours", tmp_path / "pairs.jsonl"
    save_small(folder, byte_tokenizer(NO_SYSTEM))
    (tmp_path / "length.py").write_text(LENGTH)
    system = {"role": "system", "content": "Be brief."}
    for row in rows:
        row["prompt"] = [system, {"role": "user", "content": row["prompt"]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    models = (in_words(tmp_path, "length"), str(folder))
    alone = EvaluateConfig(model=models[1], pairs=(str(file),), out=str(tmp_path / "a"))
    beside = EvaluateConfig(
        model=models[0], beside=models[1:], pairs=(str(file),), out=str(tmp_path / "b")
    )
    crossed = CrossEvalConfig(models=models, pairs=(str(file),), out=str(tmp_path / "c"))
    for run, config in (
        (run_evaluate, alone),
        (run_evaluate, beside),
        (run_cross_eval, crossed),
    ):
        with pytest.raises(ValueError, match="no system turns"):
            run(config, RunLogger())


def test_a_published_model_is_evaluated_beside_others_and_its_cuts_are_counted(
    cluster, tiny_model_folder, rows, pairs, tmp_path
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    folder = publish(tmp_path / "theirs", tokenizer, small_classifier(max_position_embeddings=24))
    save_small(tmp_path / "ours", tokenizer)
    length = in_words(tmp_path, "length")
    wheres = (str(folder), str(tmp_path / "ours"), length)
    config = EvaluateConfig(
        model=wheres[0], beside=wheres[1:], pairs=pairs, out=str(tmp_path / "out"), num_workers=1
    )
    metrics = run_evaluate(config, RunLogger())
    assert set(metrics["pairs"]) == {"score", "ours", length}
    assert metrics["pairs"]["score"]["temperature"] == 1.0
    assert set(metrics["comparisons"]) == {"score - ours", f"score - {length}"}
    assert (tmp_path / "out" / "report.html").is_file()

    model = load_reward_model(folder)
    wins, cuts = 0.0, []
    for row in rows:
        prompt = [{"role": "user", "content": row["prompt"]}]
        texts = [row["chosen"], row["rejected"]]
        chosen, rejected = model.score(prompt, texts)
        wins += float(chosen > rejected) + float(chosen == rejected) / 2
        cuts += [each.num_cut for each in model.backbone.renderer.conversations(prompt, texts)]
    assert metrics["pairs"]["score"]["accuracy"] == pytest.approx(wins / len(rows))
    expected = {"texts": sum(cut > 0 for cut in cuts), "tokens": sum(cuts)}
    assert expected["texts"] > 0
    assert metrics["truncated"] == {"theirs": expected, "ours": {"texts": 0, "tokens": 0}}

    crossed = CrossEvalConfig(models=wheres, pairs=pairs, out=str(tmp_path / "m"), num_workers=1)
    result = run_cross_eval(crossed, RunLogger())
    assert set(result["models"]) == {"theirs", "ours", length}
    assert result["models"]["theirs"]["truncated"] == expected
    (source,) = result["sources"]
    accuracy = result["matrix"]["theirs"][source]["accuracy"]
    assert accuracy == metrics["pairs"]["score"]["accuracy"]


def test_what_cannot_be_evaluated_is_named_before_anything_starts(tiny_model_folder, tmp_path):
    for where, said in (
        ("nowhere", "is no folder"),
        ("function:nothing.py:length", "no file"),
        ("replay:nothing.parquet", "nothing.parquet"),
        (str(tmp_path), "no panoply.json and no config.json"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            open_evaluated(where)
    with pytest.raises(ValueError, match="different scorers"):
        EvaluateConfig(model="a", beside=("a",), pairs=("p",))
