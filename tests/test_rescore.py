"""Rollouts scored again: every trainer's files, kept scores, and the arithmetic of groups."""

import json
import shutil
from itertools import combinations
from statistics import fmean, stdev

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from scipy.stats import kendalltau

from panoply.config.rescore import RescoreConfig
from panoply.config.serve import ServedModelConfig
from panoply.data.rollouts import item_id, read_rollouts_of
from panoply.data.score_file import SCORES, ScoreFolder, score_rows
from panoply.data.tasks import Task
from panoply.laser.rollout import Rollout, write_rollouts
from panoply.measure.group_report import ScoredGroups, group_report, results_of
from panoply.measure.groups import (
    EPSILON,
    agreement,
    choice,
    chosen_value,
    correlation,
    gdpo_advantages,
    grpo_advantages,
    has_spread,
    opposite_share,
    same_choice,
)
from panoply.report.progress import RunLogger
from panoply.report.report import sections_of
from panoply.report.results.rescore import verdict
from panoply.report.section import Table
from panoply.scorers.where import open_scorer
from panoply.wire.request import Details, Score
from workflows.rescore import run_rescore

NAN = float("nan")
SYSTEM = {"role": "system", "content": "Be brief."}
WHY = [{"role": "user", "content": "Why?"}]


def lines(path, rows):
    """Rows as JSON lines; the path as text."""
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def read(file, tmp_path, columns=(), max_share=0.5):
    """The groups of a file."""
    quarantine = tmp_path / "quarantine.jsonl"
    return read_rollouts_of([file], dict(columns), quarantine, max_share)


def gym(prompt, output, **fields):
    """A row of NeMo-Gym, whose response is one message or a list of records."""
    message = {"type": "message", "role": "assistant", "status": "completed"}
    text = {"type": "output_text", "text": output, "annotations": [], "logprobs": None}
    records = [{**message, "content": [text]}] if isinstance(output, str) else output
    params = {"input": prompt, "instructions": None, "tools": [], "temperature": 1.0}
    return {"responses_create_params": params, "response": {"output": records}, **fields}


CHATML = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
ROWS = {
    "TRL, texts": {"step": 3, "prompt": CHATML, "completion": "So.", "acc": 1.0, "advantage": 0.5},
    "TRL, turns": {
        "step": 3,
        "prompt": WHY,
        "completion": [{"role": "assistant", "content": "So."}],
        "acc": 1.0,
        "advantage": 0.5,
    },
    "verl": {"input": "user\nWhy?\nassistant\n", "output": "So.", "score": 1.0, "step": 3},
    "OpenRLHF": {"input": CHATML, "output": "So.<|im_end|>", "reward": 1.0, "step": 3},
    "NeMo-Gym": gym([{"role": "user", "content": "Why?"}], "So.", reward=1.0, step=3),
    "plain": {"prompt": "Why?", "response": "So.", "reward": 1, "step": 3},
    "lists": {"prompt": "Why?", "responses": ["So."], "rewards": [1.0], "step": 3},
}


@pytest.mark.parametrize("layout", ROWS)
def test_rollouts_of_every_trainer_are_read_as_the_same_group(layout, tmp_path):
    (group,) = read(lines(tmp_path / "r.jsonl", [ROWS[layout]]), tmp_path)
    assert list(group.chat.prompt) == WHY
    assert group.chat.responses == ("So.",)
    assert group.reward_n == [1.0]
    assert group.step == "3"


def test_samples_of_our_own_runs_have_prompts_and_verdicts(tmp_path):
    task = Task("p", WHY, None, "s")
    rollout = Rollout(
        task=task,
        responses=("So.", "No."),
        ended=(True, True),
        verdict_n=np.array([1.0, NAN]),
        score_Kn=np.array([[0.5, 0.1]]),
    )
    write_rollouts(tmp_path / "samples.parquet", [rollout], ["a"])
    (group,) = read(str(tmp_path / "samples.parquet"), tmp_path)
    assert list(group.chat.prompt) == WHY
    assert group.chat.responses == ("So.", "No.")
    assert group.reward_n[0] == 1.0
    assert np.isnan(group.reward_n[1])
    older = pq.read_table(tmp_path / "samples.parquet").drop_columns("prompt")
    pq.write_table(older, tmp_path / "older.parquet")
    with pytest.raises(ValueError, match=r"`prompt_id` and no prompts.*earlier version"):
        read(str(tmp_path / "older.parquet"), tmp_path)


def test_a_group_is_one_prompt_at_one_step_in_the_order_of_the_file(tmp_path):
    rows = [
        {"prompt": prompt, "response": text, "step": step}
        for prompt, text, step in (("a", "1", 0), ("b", "2", 0), ("a", "3", 0), ("a", "4", 1))
    ]
    groups = read(lines(tmp_path / "r.jsonl", rows), tmp_path)
    assert [group.chat.responses for group in groups] == [("1", "3"), ("2",), ("4",)]
    assert [group.step for group in groups] == ["0", "0", "1"]


def test_the_reward_of_several_functions_is_the_advantage_and_they_are_its_parts(tmp_path):
    row = {"prompt": "a", "completion": "b", "acc": 1.0, "form": None, "advantage": 0.7, "step": 1}
    other = {**row, "completion": "c", "form": 0.25}
    (group,) = read(lines(tmp_path / "r.jsonl", [row, other]), tmp_path)
    assert group.reward_n == [0.7, 0.7]
    assert group.parts["acc"] == [1.0, 1.0]
    assert np.isnan(group.parts["form"][0])
    assert group.parts["form"][1] == 0.25
    named = read(lines(tmp_path / "r.jsonl", [row]), tmp_path, {"reward": "acc"})
    assert named[0].reward_n == [1.0]


def test_components_and_labels_are_read_where_a_file_names_them(tmp_path):
    row = gym("Why?", "So.", reward=0.5, reward_components={"a": 1, "b": 0}, expected_answer=7)
    (group,) = read(lines(tmp_path / "r.jsonl", [row]), tmp_path)
    assert group.parts == {"a": [1.0], "b": [0.0]}
    assert group.chat.label == 7
    graded = {"input": "system\nBe brief.\nuser\nWhy?\nassistant\n", "output": "So.", "gts": "7"}
    (group,) = read(lines(tmp_path / "v.jsonl", [graded]), tmp_path)
    assert list(group.chat.prompt) == [SYSTEM, *WHY]
    assert group.chat.label == "7"


GOOD = {"input": "Why?", "output": "So.", "score": 1.0}
CALL = {"type": "function_call", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        (GOOD, "{torn", "line is no record"),
        (GOOD, {**GOOD, "output": None}, "missing response"),
        (GOOD, {**GOOD, "output": 7}, "response is no text"),
        (GOOD, {**GOOD, "score": "high"}, "label is no number"),
        (GOOD, {**GOOD, "input": ""}, "missing prompt"),
        (GOOD, {**GOOD, "input": "user\n\nWhy?assistant\n\n"}, "without its template's marks"),
        (GOOD, {**GOOD, "input": "user\nWhy?\nassistant\nSo.\n"}, "without its template's marks"),
        (gym("Why?", "So."), gym("Why?", [CALL]), "output of type 'function_call'"),
        (gym("Why?", "So."), gym("Why?", []), "response has 0 messages"),
        (gym("Why?", "So."), gym([CALL], "So."), "the prompt has tool calls"),
        (ROWS["lists"], {**ROWS["lists"], "rewards": [1.0, 2.0]}, "1 responses have 2 rewards"),
    ],
)
def test_a_row_that_is_no_rollout_is_quarantined_with_its_reason(good, bad, reason, tmp_path):
    (group,) = read(lines(tmp_path / "r.jsonl", [good, bad]), tmp_path)
    assert group.chat.responses == ("So.",)
    (line,) = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert reason in json.loads(line)["reason"]
    assert json.loads(line)["row"] == 2
    with pytest.raises(ValueError, match="1 of 2 rows are bad"):
        read(lines(tmp_path / "r.jsonl", [good, bad]), tmp_path, max_share=0.4)


def test_a_file_of_no_known_layout_is_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(ValueError, match=r"columns \['question', 'text'\].*NeMo-Gym.*--columns"):
        read(lines(tmp_path / "r.jsonl", [{"question": "a", "text": "b"}]), tmp_path)


# Arithmetic


def example(seed, num=9, ties=4, missing=0.2):
    rng = np.random.default_rng(seed)
    scores = rng.integers(ties, size=num).astype(float)
    scores[rng.random(num) < missing] = NAN
    return scores


@pytest.mark.parametrize("seed", range(20))
def test_agreement_is_that_of_plain_python_and_its_tau_that_of_scipy(seed):
    a, b = example(seed), example(seed + 100)
    tau_KK, alike_KK, ordered_KK = agreement(np.array([a, b]))
    both = [i for i in range(len(a)) if not (np.isnan(a[i]) or np.isnan(b[i]))]
    assert tau_KK[0, 1] == pytest.approx(kendalltau(a[both], b[both]).statistic)
    assert tau_KK[1, 0] == tau_KK[0, 1]
    products = [(a[i] - a[j]) * (b[i] - b[j]) for i, j in combinations(both, 2)]
    assert ordered_KK[0, 1] == sum(product != 0 for product in products)
    assert alike_KK[0, 1] == sum(product > 0 for product in products)


def test_a_scorer_without_two_different_scores_ranks_nothing():
    tau_KK, _, ordered_KK = agreement(np.array([[1.0, 1.0, NAN], [1.0, 2.0, 3.0], [NAN] * 3]))
    assert np.isnan(tau_KK[0, 1])
    assert np.isnan(tau_KK[1, 2])
    assert ordered_KK[0, 1] == 0


def test_a_choice_splits_ties_evenly_and_passes_over_what_is_missing():
    assert choice(np.array([1.0, 3.0, NAN, 3.0])).tolist() == [0, 0.5, 0, 0.5]
    assert np.isnan(choice(np.array([NAN, NAN]))).all()
    p = choice(np.array([1.0, 3.0, NAN, 3.0]))
    assert chosen_value(p, np.array([9.0, 1.0, NAN, 2.0])) == 1.5
    assert np.isnan(chosen_value(p, np.array([9.0, NAN, 1.0, 2.0])))  # never read as 0
    assert np.isnan(chosen_value(np.full(2, NAN), np.ones(2)))
    assert same_choice(np.array([[0.5, 0.5], [0, 1]])).tolist() == [[0.5, 0.5], [0.5, 1.0]]


def plain_grpo(rewards):
    spread = stdev(rewards)
    return [(r - fmean(rewards)) / (spread + EPSILON) for r in rewards]


def test_grpo_is_that_of_plain_python_and_0_where_nothing_differs():
    assert grpo_advantages(np.array([1.0, 0.0, 0.0, NAN]))[:3] == pytest.approx(
        plain_grpo([1.0, 0.0, 0.0])
    )
    assert np.isnan(grpo_advantages(np.array([1.0, 0.0, 0.0, NAN]))[3])
    assert grpo_advantages(np.array([0.3, 0.3, 0.3])).tolist() == [0.0, 0.0, 0.0]
    assert [has_spread(np.array(r)) for r in ([0.3, 0.3], [0.3, NAN], [0.3, 0.4])] == [
        False,
        False,
        True,
    ]


def test_gdpo_is_that_of_plain_python_by_batch():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(2, 4)) * [[1.0], [50.0]] for _ in range(4)]
    result = gdpo_advantages(parts, ["1", "2", "1", "2"])
    for batch in ((0, 2), (1, 3)):
        sums = []
        for g in batch:
            by_part = [plain_grpo(part.tolist()) for part in parts[g]]
            sums += [sum(values) for values in zip(*by_part, strict=True)]
        expected = [(s - fmean(sums)) / (stdev(sums) + EPSILON) for s in sums]
        assert np.concatenate([result[g] for g in batch]) == pytest.approx(expected)


def test_gdpo_moves_a_group_whose_parts_cancel_and_leaves_out_what_is_missing():
    opposed = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])  # its sum has no spread
    uneven = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, NAN]])
    first, second = gdpo_advantages([opposed, uneven], ["", ""])
    assert np.isfinite(first).all()
    assert second[2] < second[0]
    (nothing,) = gdpo_advantages([np.full((2, 3), NAN)], [""])
    assert np.isnan(nothing).all()


def test_correlation_and_opposite_signs_are_of_what_both_have():
    x, y = np.array([1.0, -1.0, 2.0, NAN, 0.0]), np.array([1.0, 1.0, 3.0, 5.0, 5.0])
    assert opposite_share(x, y) == pytest.approx(1 / 3)
    assert correlation(x, y) == pytest.approx(np.corrcoef(x[[0, 1, 2, 4]], y[[0, 1, 2, 4]])[0, 1])
    assert np.isnan(correlation(x, np.ones(5)))


def test_a_report_tells_groups_without_spread_and_judges_choices_by_the_recorded_reward():
    scores = [
        np.array([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0]]),  # both choose the first
        np.array([[0.0, 1.0, 0.0], [5.0, 0.0, NAN]]),  # the second chooses wrong
        np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),  # nothing differs
    ]
    lengths = [np.array([3.0, 2.0, 1.0])] * 3
    groups = ScoredGroups(("recorded", "rm"), scores, {}, lengths, [""] * 3, "recorded")
    report = group_report(groups, results_of(groups))
    assert report["scorers"]["rm"] == {
        "scored": 8,
        "missing": 1,
        "flat_groups": 1,
        "flat_share": pytest.approx(1 / 3),
    }
    assert report["choices"]["rm"]["reward"] == pytest.approx(1 / 3)
    assert report["choices"]["recorded"]["reward"] == pytest.approx(2 / 3)
    assert report["choices"]["random"]["above_random"]["value"] == pytest.approx(0)
    assert report["choices"]["longest"]["length"] == 3.0
    assert report["alike"]["rm"]["recorded"] == {"value": pytest.approx(2 / 3), "pairs": 3}
    assert report["same_choice"]["rm"]["recorded"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    texts = [
        block.title
        for s in sections_of({"rescored": report})
        for block in s.blocks
        if isinstance(block, Table)
    ]
    assert any("without spread" in text for text in texts)
    assert verdict({"rescored": report}).startswith("Of the scorers rm chooses")


# Kept scores


def table(*rows):
    return pa.Table.from_pylist([row for part in rows for row in part], SCORES)


def test_kept_scores_survive_a_killed_run_and_the_transient_are_asked_again(tmp_path):
    kept = ScoreFolder(tmp_path)
    parts = Score(score=1.5, details=Details(objectives={"a": 1.0}, usage={"cost": 0.25}))
    failed = Score(error="no verdict: it said something")
    kept.append(table(score_rows("j", "x", [parts, failed])))
    kept.append(table(score_rows("j", "y", [Score(error="busy", transient=True)])))
    again = ScoreFolder(tmp_path)  # nothing was sealed
    assert not again.lacks("j", "x", 2)
    assert again.lacks("j", "y", 1)
    assert again.lacks("j", "z", 1)
    assert again.lacks("other", "x", 2)
    assert again.scores("j", "x") == kept.scores("j", "x")
    again.append(table(score_rows("j", "y", [Score(score=2.0)])))
    again.seal()
    assert not list((tmp_path / "scores").iterdir())
    sealed = ScoreFolder(tmp_path)
    assert not sealed.lacks("j", "y", 1)
    assert sealed.scores("j", "y")[0]["score"] == 2.0
    assert sealed.scores("j", "x")[1]["score"] is None
    (tmp_path / "scores.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"scores.parquet' is damaged"):
        ScoreFolder(tmp_path)


SCORERS = """
from pathlib import Path

def length(response):
    with Path({log!r}).open("a") as log:
        log.write(response + chr(10))
    return len(response)

def parts(response):
    if response.endswith("3"):
        return None
    good, short = float("good" in response), 1 / len(response)
    return {{"score": good + short, "good": good, "short": short}}
"""
COMPOSITE = """
rule: {{kind: mean}}
scale: prompt
parts:
  a: {{where: "{place}length"}}
  b: {{where: "{place}parts"}}
"""


class Rescored:
    """A folder with rollouts and scorers, and a finished run on them.

    The rollouts are 24 groups of four responses with rewards, and one bad row. One scorer is a
    model, one has parts and no score of the fourth response, one writes down what it is asked.
    """

    def __init__(self, folder, model):
        rows = []
        for prompt in range(24):
            for i in range(4):
                text = f"{'good ' * ((prompt + i) % 3)}{prompt} {i}"
                row = {"input": f"user\nquestion {prompt}\nassistant\n", "output": text}
                rows.append({**row, "step": 1, "score": float((prompt + i) % 3 == 2)})
        self.folder, self.asked, self.logger = folder, folder / "asked", RunLogger()
        self.rollouts = lines(folder / "r.jsonl", [*rows, {"input": None, "output": "x"}])
        self.scorers = folder / "scorers.py"
        self.scorers.write_text(SCORERS.format(log=str(self.asked)))
        place = f"function:{self.scorers}:"
        (folder / "both.yaml").write_text(COMPOSITE.format(place=place))
        self.arms = {"length": f"{place}length", "rubric": f"{place}parts", "model": str(model)}
        self.report = self.run("out", self.arms)

    def run(self, out, arms):
        """The report of a run."""
        config = RescoreConfig(
            rollouts=(self.rollouts,),
            arms=tuple(f"{name}={where}" for name, where in arms.items()),
            out=str(self.folder / out),
            report_to=("mlflow",) if out == "out" else ("none",),
        )
        return run_rescore(config, self.logger)["rescored"]

    def copied(self, out):
        """The folder of another run that begins where the finished one is."""
        copy = self.folder / out
        shutil.copytree(self.folder / "out", copy)
        self.asked.unlink(missing_ok=True)
        return copy


@pytest.fixture(scope="module")
def rescored(cluster, tmp_path_factory, small_models):
    return Rescored(tmp_path_factory.mktemp("rescored"), small_models["scalar"])


def test_rollouts_are_scored_by_every_kind_of_scorer_and_a_failed_score_is_missing(rescored):
    report, out = rescored.report, rescored.folder / "out"
    assert report["num_groups"] == 24
    assert report["scorers"]["rubric"]["missing"] == 24  # one of four, never 0
    assert report["scorers"]["rubric"]["reason"] == "no score"
    assert report["scorers"]["model"]["missing"] == 0
    assert report["gdpo"]["rubric"]["parts"] == 2
    assert report["choices"]["recorded"]["reward"] == 1.0
    quarantined = (out / "data" / "quarantine.jsonl").read_text()
    assert json.loads(quarantined)["row"] == 97
    assert "Who ranks whom" in (out / "report.html").read_text()
    client = MlflowClient(f"sqlite:///{rescored.folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("rescore").experiment_id])
    assert run.data.metrics["rescored/scorers/rubric/missing"] == 24

    rows = pq.read_table(out / "advantages.parquet").to_pylist()
    rubric = [row for row in rows if row["scorer"] == "rubric" and row["group"] == 0]
    assert sum(row["chosen"] for row in rubric if row["chosen"]) == pytest.approx(1)
    assert [row["score"] is None for row in rubric] == [False, False, False, True]
    assert all(row["gdpo"] is None for row in rows if row["scorer"] == "length")
    texts = pq.read_table(out / "rollouts.parquet").to_pylist()
    assert {row["item_id"] for row in texts} == {row["item_id"] for row in rows}
    assert list(texts[0]["prompt"]) == [{"role": "user", "content": "question 0"}]


def test_a_run_that_was_killed_asks_only_what_it_lacks_and_ends_alike(rescored):
    out = rescored.copied("killed")
    whole = pq.read_table(out / "scores.parquet")
    keys = list(zip(whole["scorer"].to_pylist(), whole["item_id"].to_pylist(), strict=True))
    lost = {("length", item) for item in sorted({item for _, item in keys})[:3]}
    (out / "scores").mkdir(exist_ok=True)
    segment = whole.filter(pa.array([key not in lost for key in keys]))
    pq.write_table(segment, out / "scores" / "00000001.parquet")
    for name in ("scores.parquet", "metrics.json"):
        (out / name).unlink()
    assert rescored.run("killed", rescored.arms) == rescored.report
    assert len(rescored.asked.read_text().splitlines()) == 4 * 3


def test_a_scorer_that_is_added_is_asked_alone(rescored):
    rescored.copied("more")
    both = f"combine:{rescored.folder / 'both.yaml'}"
    report = rescored.run("more", {"rubric": rescored.arms["rubric"], "both": both})
    assert report["scorers"]["rubric"] == rescored.report["scorers"]["rubric"]
    assert report["gdpo"]["both"]["parts"] == 2
    assert len(rescored.asked.read_text().splitlines()) == 96  # by the composite's part
    text = rescored.scorers.read_text()
    try:
        rescored.scorers.write_text(text + "# better\n")
        for name in ("rubric", "both"):  # a part's file is the composite's too
            with pytest.raises(ValueError, match=rf"another '{name}' \(its files have changed\)"):
                rescored.run("more", {name: {"both": both, **rescored.arms}[name]})
        with pytest.raises(ValueError, match=r"another 'length' \(it was 'function:"):
            rescored.run("more", {"length": both})
    finally:
        rescored.scorers.write_text(text)


def test_recorded_scores_replay_the_report_to_the_last_digit(rescored):
    scores = f"replay:{rescored.folder / 'out' / 'scores.parquet'}"
    replayed = rescored.run("replayed", dict.fromkeys(rescored.arms, scores))
    assert json.dumps(replayed) == json.dumps(rescored.report)
    with pytest.raises(ValueError, match=r"has the scores of length, model, rubric: name the"):
        open_scorer(ServedModelConfig(name="other", where=scores))


def test_an_item_is_known_by_all_that_a_scorer_reads(tmp_path):
    rows = [{"prompt": "a", "response": text, "label": 1} for text in "xy"]
    (group,) = read(lines(tmp_path / "a.jsonl", rows), tmp_path)
    ids = {item_id(group.chat)}
    for changed in (rows[:1], rows[::-1], [{**row, "label": 2} for row in rows]):
        (other,) = read(lines(tmp_path / "b.jsonl", changed), tmp_path)
        ids.add(item_id(other.chat))
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ((), "`arms`.*at least one NAME=WHERE"),
        (("longest=x/y",), "`arms`.*no row of the report has"),
        (("a=x/y", "a=x/z"), "models of different names"),
    ],
)
def test_arms_that_cannot_be_told_apart_are_refused(arms, message):
    with pytest.raises(ValueError, match=message):
        RescoreConfig(rollouts=("r.jsonl",), arms=arms)
