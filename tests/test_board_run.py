"""A board scored by any scorers: its report by hand, and the command from files to page."""

import asyncio
import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from rich.console import Console

from panoply.boards import load_board
from panoply.boards.items import read_items
from panoply.config.board import BoardConfig
from panoply.data.read import Input
from panoply.data.schema import split_key
from panoply.measure.board_report import BoardTable, board_report
from panoply.report.progress import RunLogger
from panoply.report.report import sections_of
from panoply.report.results.board import verdict
from panoply.report.terminal import print_sections
from tests.builders.judge_server import by_length, judging, open_judge
from tests.builders.models import save_small

NAN = float("nan")
NUM = 40


def rows(num=NUM):
    """Rows of RewardBench: the better response is the longer one in two of three, and is good."""
    return [
        {
            "prompt": f"question {i}",
            "chosen": f"good {i}" + " and long" * (i % 3),
            "rejected": f"bad {i} and so on",
            "subset": ("math-prm", "hep-go", "donotanswer")[i % 3] if i % 2 else "hep-go",
            "id": i,
        }
        for i in range(num)
    ]


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("items")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows())))
    board = load_board("rewardbench")
    return read_items(board, [Input(folder / "rows.jsonl")], folder / "bad.jsonl", 0)[0]


def by_text(items, score):
    """The scores of all responses, each from its text."""
    texts = [text for item in items for text in item.chat.responses]
    return np.array([score(text) for text in texts], np.float64)


def good(text):
    return float("good" in text)


def half_good(text):
    """Likes what is good, of even numbers; all others it finds alike."""
    return float("good" in text and int(text.split()[1]) % 2 == 0)


def some(text):
    """Likes what is good, and has no score of every fourth prompt."""
    return good(text) if int(text.split()[1]) % 4 else NAN


def report_of(items, scores, seen=None):
    table = BoardTable.of(load_board("rewardbench"), items)
    by_scorer = {name: by_text(items, score) for name, score in scores.items()}
    nothing = dict.fromkeys(scores, np.zeros(len(items), bool))
    return board_report(table, by_scorer, nothing | (seen or {}))


def test_a_report_tells_what_is_there_of_the_board_and_what_lacks_a_score(items):
    report = report_of(items, {"half": half_good, "some": some})
    assert (report["n"], report["official"], report["complete"]) == (NUM, 2985, False)
    assert report["lacking"]["mt-bench-easy"] == [0, 28]
    assert report["lacking"]["hep-go"] == [sum(i % 2 == 0 or i % 3 == 1 for i in range(NUM)), 164]
    assert set(report["lacking"]) == set(load_board("rewardbench").official)
    half, partly = report["scorers"]["half"], report["scorers"]["some"]
    assert (half["n"], half["missing"], half["ties"]) == (NUM, 0, 0.5)
    assert (partly["n"], partly["missing"], partly["missing_scores"]) == (30, 10, 20)
    assert partly["values"]["RewardBench"] == 1.0
    assert np.isnan(partly["values"]["Chat"])
    assert partly["cells"]["hep-go"]["n"] < half["cells"]["hep-go"]["n"]


def test_controls_are_what_no_reading_gives(items):
    controls = report_of(items, {"good": good})["controls"]
    assert controls["constant"]["values"]["RewardBench"] == 0.0  # every tie is lost
    longer = [len(row["chosen"]) > len(row["rejected"]) for row in rows()]
    assert controls["length"]["pairs"]["accuracy_chosen_longer"] == 1.0
    assert controls["length"]["pairs"]["accuracy_length_balanced"] == 0.5
    low, high = controls["random"]["ci95"]["RewardBench"]
    assert low < 0.5 < high
    assert 0 < low < controls["random"]["values"]["RewardBench"] < high < 1
    assert 0 < sum(longer) < NUM


def test_the_interval_holds_the_number_and_equal_prompts_are_drawn_together(items):
    entry = report_of(items, {"half": half_good})["scorers"]["half"]
    low, high = entry["ci95"]["RewardBench"]
    assert low < entry["values"]["RewardBench"] < high
    twice = report_of([*items, *items], {"half": half_good})["scorers"]["half"]
    assert twice["values"] == pytest.approx(entry["values"], nan_ok=True)
    assert twice["ci95"]["RewardBench"] == pytest.approx([low, high])


def test_scorers_are_compared_on_the_items_that_both_have(items):
    report = report_of(items, {"half": half_good, "some": some})
    both = [item for item in items if int(item.chat.responses[0].split()[1]) % 4]
    alone = report_of(both, {"half": half_good, "some": good})
    difference = report["paired"]["some - half"]
    expected = [alone["scorers"][name]["values"]["RewardBench"] for name in ("some", "half")]
    assert difference["value"] == pytest.approx(expected[0] - expected[1])
    assert 0 < difference["ci95"][0] < difference["value"] < difference["ci95"][1]


def test_prompts_of_the_training_are_counted_and_the_number_without_them_stands_beside(items):
    is_even = np.array([int(item.chat.responses[0].split()[1]) % 2 == 0 for item in items])
    entry = report_of(items, {"half": half_good}, {"half": is_even})["scorers"]["half"]
    assert entry["seen"] == is_even.sum()
    assert entry["unseen"]["values"]["RewardBench"] == 0.0
    assert entry["values"]["RewardBench"] > 0
    assert "unseen" not in report_of(items, {"half": half_good})["scorers"]["half"]


def test_prompts_in_training_files_are_counted_and_the_numbers_without_them_stand_beside(items):
    is_even = np.array([int(item.chat.responses[0].split()[1]) % 2 == 0 for item in items])
    table = BoardTable.of(load_board("rewardbench"), items)
    scores, seen = {"half": by_text(items, half_good)}, {"half": np.zeros(len(items), bool)}
    report = board_report(table, scores, seen, is_even)
    assert report["overlapping"] == is_even.sum()
    assert report["scorers"]["half"]["clean"]["values"]["RewardBench"] == 0.0
    assert board_report(table, scores, seen)["overlapping"] is None


def test_pairs_are_calibrated_by_a_temperature_of_other_prompts(items):
    rng = np.random.default_rng(0)
    noisy = {text: good(text) + rng.normal() for item in items for text in item.chat.responses}
    report = report_of(items, {"a": noisy.get, "b": lambda text: 100 * noisy[text]})
    a, b = (report["scorers"][name]["pairs"] for name in "ab")
    assert a["log_loss"] == pytest.approx(b["log_loss"])  # whatever the unit of the scores
    assert a["log_loss"] < np.log(2)
    assert a["accuracy"] == b["accuracy"]
    assert np.isnan(report["controls"]["constant"]["pairs"]["ece"])


def test_the_report_fits_a_terminal_and_names_what_lacks_and_who_leads(items):
    report = report_of(items, {"half": half_good, "good": good})
    metrics = {"board": report}
    console = Console(file=io.StringIO(), width=100)
    print_sections(sections_of(metrics), console)
    text = console.file.getvalue()
    assert "Incomplete: alpacaeval-easy 0 of 100" in text
    assert text.index("good") < text.index("half")
    assert "ArmoRM-Llama3-8B" in text
    assert verdict(metrics).startswith("Of the scorers good has the highest number of RewardBench")
    assert verdict({}) == ""


def judged(items, answer, folder):
    """The report of JudgeBench by a judge that answers so."""
    with judging(answer) as (url, _):
        judge = open_judge(
            folder,
            url,
            prompt="{{ prompt }} {{ first }} {{ second }} {{ answer_format }}",
            mode={"kind": "pairwise"},
        )

        async def ask():
            try:
                return await judge.score([item.chat for item in items])
            finally:
                await judge.close()

        answers = asyncio.run(ask())
    scores = [score.score for row in answers for score in row]
    table = BoardTable.of(load_board("judgebench"), items)
    seen = {"judge": np.zeros(len(items), bool)}
    return board_report(table, {"judge": np.array(scores, np.float64)}, seen)["scorers"]["judge"]


def test_a_judge_plays_both_games_and_one_that_fails_has_no_score(tmp_path):
    rows = [
        {
            "question": f"Which {i}?",
            "response_A": "short",
            "response_B": "the longer response",
            "label": "B>A" if i % 3 else "A>B",
            "source": "livecodebench",
        }
        for i in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    board = load_board("judgebench")
    items, _ = read_items(board, [Input(tmp_path / "rows.jsonl")], tmp_path / "bad.jsonl", 0)
    entry = judged(items, by_length, tmp_path)
    assert entry["values"]["overall"] == entry["values"]["code"] == pytest.approx(4 / 6)
    first = judged(items, lambda _: '{"better": "A"}', tmp_path)
    assert (first["values"]["overall"], first["ties"], first["missing"]) == (0.0, 1.0, 0)
    prose = judged(items, lambda _: "Both are fine.", tmp_path)
    assert np.isnan(prose["values"]["overall"])  # a failure is no loss, and no half
    assert (prose["n"], prose["missing"]) == (0, 6)


SCORERS = """
from pathlib import Path

def good(response):
    with Path({log!r}).open("a") as log:
        log.write(response + chr(10))
    return float("good" in response)

def some(prompt, response):
    return None if prompt[-1]["content"].endswith("7") else float("good" in response)
"""


class ScoredBoard:
    """A folder with a board and scorers, one of which has seen a prompt, and a finished run."""

    def __init__(self, folder, tokenizer):
        self.folder, self.asked = folder, folder / "asked"
        self.files = folder / "rows.jsonl"
        bad = {**rows(1)[0], "subset": "shp"}
        self.files.write_text("\n".join(map(json.dumps, [*rows(), bad])))
        self.training = folder / "training.jsonl"
        self.training.write_text(
            json.dumps({"prompt": "Question 5!", "chosen": "a", "rejected": "b"})
        )
        (folder / "scorers.py").write_text(SCORERS.format(log=str(self.asked)))
        seen = [split_key([{"role": "user", "content": "question 3"}])]
        save_small(folder / "model", tokenizer, seen=seen)
        place = f"function:{folder / 'scorers.py'}:"
        self.scorers = {
            "good": f"{place}good",
            "some": f"{place}some",
            "model": str(folder / "model"),
        }
        self.metrics = self.run("out", self.scorers)

    def run(self, out, scorers):
        """The report of a run."""
        config = BoardConfig(
            board="rewardbench",
            files=(str(self.files),),
            training=(str(self.training),),
            scorers=tuple(f"{name}={where}" for name, where in scorers.items()),
            out=str(self.folder / out),
            report_to=("mlflow",) if out == "out" else ("none",),
        )
        from workflows.board import run_board

        return run_board(config, RunLogger())["board"]


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory, tiny_tokenizer):
    return ScoredBoard(tmp_path_factory.mktemp("board"), tiny_tokenizer)


def test_a_board_is_scored_by_any_scorer_with_its_own_numbers(finished):
    report, out = finished.metrics, finished.folder / "out"
    assert report["scorers"]["good"]["values"]["RewardBench"] == 1.0
    assert report["scorers"]["some"]["missing"] == 4  # questions 7, 17, 27 and 37, never 0
    assert report["scorers"]["some"]["reason"] == "no score"
    assert report["scorers"]["model"]["seen"] == 1
    assert report["scorers"]["model"]["missing"] == 0
    assert report["overlapping"] == 1
    assert report["scorers"]["some"]["clean"]["values"]["RewardBench"] == 1.0
    overlaps = pq.read_table(out / "overlaps.parquet").to_pylist()
    assert [row["exact"] for row in overlaps].count(True) == 1
    assert report["quarantined"] == {"'subset' is none of RewardBench's": 1}
    assert set(report["paired"]) == {"some - good", "model - good"}
    assert "RewardBench" in (out / "report.html").read_text()
    assert (out / "board.png").is_file()
    assert (out / "board.md").read_text().startswith("| scorer | RewardBench | 95 % |")
    table = pq.read_table(out / "items.parquet").to_pylist()
    assert [row["seen_by"] for row in table].count(["model"]) == 1
    for row in table:
        assert row["candidates"][row["right"][0]].startswith("good")
    client = MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("board").experiment_id])
    assert run.data.metrics["board/scorers/good/values/RewardBench"] == 1.0
    assert run.data.metrics["board/scorers/some/missing"] == 4


def test_a_board_that_was_killed_asks_only_what_it_lacks_and_ends_alike(finished):
    out = finished.folder / "killed"
    shutil.copytree(finished.folder / "out", out)
    finished.asked.unlink()
    whole = pq.read_table(out / "scores.parquet")
    keys = list(zip(whole["scorer"].to_pylist(), whole["item_id"].to_pylist(), strict=True))
    lost = {("good", item) for item in sorted({item for _, item in keys})[:3]}
    (out / "scores").mkdir(exist_ok=True)
    segment = whole.filter(pa.array([key not in lost for key in keys]))
    pq.write_table(segment, out / "scores" / "00000001.parquet")
    for name in ("scores.parquet", "metrics.json"):
        (out / name).unlink()
    again = finished.run("killed", finished.scorers)
    assert json.dumps(again) == json.dumps(finished.metrics)
    assert len(finished.asked.read_text().splitlines()) == 2 * 3


def test_recorded_scores_of_a_board_replay_its_report_to_the_last_digit(finished):
    scores = f"replay:{finished.folder / 'out' / 'scores.parquet'}"
    replayed = finished.run("replayed", dict.fromkeys(finished.scorers, scores))
    assert json.dumps(replayed) == json.dumps(finished.metrics)


def test_a_board_of_which_nothing_has_a_score_has_no_report(finished, tmp_path):
    row = {"prompt": "Why?", "response": "So.", "score": 1.0}
    (tmp_path / "others.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"not one response has a score \(a: .*has no score of"):
        finished.run("nothing", {"a": f"replay:{tmp_path / 'others.jsonl'}"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": ()}, "`files`.*at least one file"),
        ({"scorers": ()}, "`scorers`.*at least one NAME=WHERE"),
        ({"scorers": ("length=x/y",)}, "`scorers`.*no row of the report has"),
        ({"scorers": ("random=x/y",)}, "`scorers`.*no row of the report has"),
        ({"scorers": ("a=x/y", "a=x/z")}, "models of different names"),
        ({"num_workers": 0}, "`num_workers`.*positive"),
    ],
)
def test_settings_of_a_board_that_cannot_be_are_refused(changes, message):
    settings = {"board": "rmbench", "files": ("x.parquet",), "scorers": ("a=x/y",), **changes}
    with pytest.raises(ValueError, match=message):
        BoardConfig(**settings)
