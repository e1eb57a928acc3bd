"""Plots are files, tables hold the numbers, and what is missing is skipped."""

import io
import json
import time

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from panoply.config.preference import More
from panoply.report.figures import draw, picture
from panoply.report.markdown import as_markdown
from panoply.report.report import (
    DEMO,
    print_summary,
    sections_of,
    write_pictures,
    write_report,
)
from panoply.report.results.armorm import gate_weights
from panoply.report.results.pairs import (
    BY_SOURCE,
    accuracy_table,
    key_figures,
    ranked,
    verdict,
)
from panoply.report.results.preference import is_equal_mixing
from panoply.report.section import Column, Curve, Curves, Row, Table
from tests.builders.example_metrics import SCORERS, example_metrics


def pictures(metrics, folder):
    return write_pictures(sections_of(metrics), folder)


def summary(metrics, width=100):
    console = Console(file=io.StringIO(), width=width)
    print_summary(metrics, console)
    return console.file.getvalue()


@pytest.mark.parametrize(("num_objectives", "num_sources"), [(6, 4), (40, 12)])
def test_every_plot_is_a_picture_with_something_on_it(tmp_path, num_objectives, num_sources):
    written = pictures(example_metrics(num_objectives, num_sources), tmp_path / "new")
    names = {"gate_weights.png", "reliability.png", "length_bias.png", "baselines.png"}
    assert (
        {path.name for path in written} == names == {p.name for p in (tmp_path / "new").iterdir()}
    )
    for path in written:
        picture = imread(path)
        assert min(picture.shape[:2]) > 300
        assert (picture[..., :3] < 0.9).any(axis=-1).mean() > 0.01


def test_metrics_read_back_from_json_give_the_same_summary():
    metrics = example_metrics()
    metrics["planted"]["recovered"] = float("nan")
    assert summary(json.loads(json.dumps(metrics))) == summary(metrics)


def test_sections_that_a_run_does_not_have_are_skipped(tmp_path):
    whole = example_metrics()
    evaluated = {k: whole[k] for k in ("pairs", "comparisons", "reliability")}
    evaluated["gate"] = {"weights_by_domain": whole["gate"]["weights_by_domain"]}
    names = [path.stem for path in pictures(evaluated, tmp_path)]
    assert names == ["baselines", "gate_weights", "reliability"]
    text = summary(evaluated)
    for absent in ("Objectives", "Debias", "Leave one source out", "planted", "Left out"):
        assert absent in summary(whole)
        assert absent not in text


def test_nothing_gives_no_plots_and_no_text(tmp_path):
    assert pictures({}, tmp_path) == []
    assert summary({}) == ""


def test_the_summary_holds_the_numbers():
    metrics = example_metrics()
    text = summary(metrics)
    for name, found in metrics["objectives"].items():
        line = next(line for line in text.splitlines() if line.startswith(name))
        for key in ("spearman", "r2", "length_spearman", "prompt_spearman"):
            assert f"{found[key] + 0.0:.3f}" in line
        assert ("no signal" in line) == (not found["signal"])
    gate = [line.split() for line in text.splitlines() if line.startswith("gate  ")]
    assert gate[:2] == [
        ["gate", "0.642", "[0.630,", "0.654]", "0.662"],
        ["gate", "0.619", "0.031", "0.024", "-", "0.004"],
    ]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "gate, chosen shorter 0.502 0.611" in lines
    assert "best fixed, chosen longer 0.703 0.605" in lines
    for value in ("0.587 -> 0.092", "(noise 0.048)", "0.263 -> 0.016"):
        assert value in " ".join(text.split())
    for value in ("+0.064", "[+0.051, +0.079]", "0.541", "0.552", "0.563"):
        assert value in text
    for value in ("0.791", "0.763", "0.695", "0.713", "0.879"):
        assert value in text


def test_scorers_stand_in_the_order_of_their_accuracy():
    table = summary(example_metrics()).split("Scorers")[1].split("Probabilities")[0]
    lines = [line for line in table.splitlines() if "[" in line]
    shown = [" ".join(line.split("  ")[0].split()) for line in lines]
    ranked = sorted(SCORERS, key=lambda name: -SCORERS[name])
    assert shown == [name.replace("_", " ") for name in ranked]


def test_a_scorer_that_lacks_a_source_comes_after_those_that_have_all():
    pairs = example_metrics(6, 3)["pairs"]
    table = accuracy_table(pairs)
    assert [column.name for column in table.columns][-1] == "plain accuracy"
    best = ranked(pairs)[0]
    assert best == "best_fixed_per_source"
    source = next(iter(pairs[best]["per_source"]))
    pairs[best]["per_source"][source] |= {"accuracy_length_balanced": float("nan")}
    assert ranked(pairs) == [*ranked(pairs)[:-1], best]
    table = accuracy_table(pairs)
    assert table.columns[-1].name == "sources"
    assert [row.cells[-1] for row in table.rows] == ["3 of 3"] * (len(pairs) - 1) + ["2 of 3"]
    difference = {"value": 0.1, "ci95": [0.05, 0.2]}
    compared = {f"gate - {name}": difference for name in ("mlp", best)}
    assert "mlp" in verdict({"pairs": pairs, "comparisons": compared})


def test_each_domain_names_its_three_largest_weights():
    metrics = example_metrics(40, 3)
    table = " ".join(summary(metrics, 160).split("Largest mean weights")[1].split())
    for row in metrics["gate"]["weights_by_domain"].values():
        largest = sorted(row, key=lambda name: -row[name])
        assert ", ".join(f"{name} {row[name]:.2f}" for name in largest[:3]) in table


def test_what_is_not_defined_is_a_dash_and_not_a_number(tmp_path):
    metrics = example_metrics()
    name = next(iter(metrics["objectives"]))
    metrics["objectives"][name] |= dict.fromkeys(("spearman", "r2"), float("nan"))
    metrics["objectives"][name]["spearman_ci95"] = [float("nan"), None]
    metrics["pairs"]["mlp"]["macro"]["accuracy_length_balanced"] = float("nan")
    metrics["pairs"]["linear"]["macro"]["ci95_length_balanced"] = [float("nan")] * 2
    metrics["planted"]["recovered"] = None
    metrics["debias"]["before"][name] = float("nan")
    metrics["debias"]["heldout"]["after"][name] = None
    text = summary(metrics)
    assert "nan" not in text.lower()
    assert "None" not in text
    line = next(line for line in text.splitlines() if line.startswith(name))
    assert line.replace("(no signal)", "").split()[1:3] == ["-", "-"]
    assert len(pictures(metrics, tmp_path)) == 4


def test_many_objectives_are_all_named_and_fit_in_a_hundred_columns():
    metrics = example_metrics(40, 12)
    text = summary(metrics)
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in " ".join(text.split()) for name in metrics["objectives"])
    assert len(text.split("Objectives")[1].split("Largest")[0].splitlines()) < 45


def test_neither_numbers_nor_names_are_cut_in_eighty_columns_and_a_file_gets_no_color():
    metrics = example_metrics(40, 12)
    metrics["pairs"]["oracle"] = metrics["pairs"]["gate"]
    text = summary(metrics, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    table = text.split("accuracy by source")[1].split("Objectives")[0]
    shown = [name for name in BY_SOURCE if name in metrics["pairs"]]
    assert all(word in table for name in shown for word in name.split("_"))
    for source in metrics["pairs"]["gate"]["per_source"]:
        line = next(line for line in table.splitlines() if line.startswith(f"{source} "))
        each = [metrics["pairs"][name]["per_source"][source] for name in shown]
        numbers = sorted(f"{found['accuracy_length_balanced']:.3f}" for found in each)
        assert line.split()[1] == "130"
        assert sorted(line.split()[2:]) == numbers


def test_names_are_text_and_not_markup(tmp_path):
    metrics = example_metrics()
    name = "raters[bold]-cost_in_$_and_$"
    metrics["objectives"][name] = metrics["objectives"]["raters0-overall"]
    for section in ("before", "after"):
        metrics["debias"][section][name] = 0.1
    for row in metrics["gate"]["weights_by_domain"].values():
        row[name] = 0.9
    assert name in summary(metrics)
    assert len(pictures(metrics, tmp_path)) == 4


def test_the_heat_map_keeps_the_largest_weights_and_sums_the_others():
    weights = {
        "a": {f"o{i}": 0.1 if i < 5 else 0.0125 for i in range(45)},
        "b": {f"o{i}": 0.1 if i > 34 else 0.0 for i in range(45)},
    }
    heat_map = gate_weights(weights).blocks[0]
    names = [row.name for row in heat_map.rows]
    assert {f"o{i}" for i in (*range(5), *range(35, 45))} == set(names[:-1])
    assert names[-1] == "30 others together"
    assert heat_map.texts(heat_map.rows[-1]) == ["0.38", "0.00"]
    assert len(picture([heat_map])) > 10_000


def test_curves_have_their_numbers_by_place_and_an_empty_one_is_left_out():
    found = [Curve("a", ["1", "4", "16"], [0.0, None, 1.0]), Curve("b", [], [])]
    curves = Curves("c", "n", "m", found)
    numbers = curves.numbers()
    assert [row.name for row in numbers.rows] == ["1", "4", "16"]
    assert [numbers.texts(row) for row in numbers.rows] == [["0.000"], ["-"], ["1.000"]]
    assert Curves("c", "n", "m", found[1:]).is_empty


def test_a_column_that_is_only_drawn_has_no_text_and_a_star_marks_a_value():
    columns = [Column("a"), Column("b", None, "tick"), Column("c", str)]
    table = Table("t", "f", columns, [Row("r", [0.5, [0.1, 0.2], "x"], starred=[0])])
    assert table.texts(table.rows[0]) == ["0.500*", "x"]
    assert [column.name for column in table.shown] == ["a", "c"]


def test_markdown_takes_names_for_text():
    name = "<b>|`x`](y)\nz"
    table = Table("t", "f", [Column("a", str), Column("b")], [Row(name, [name, 1.0])])
    plain = r"\<b\>\|\`x\`\](y) z"
    assert as_markdown(table).splitlines()[2] == f"| {plain} | {plain} | 1.000 |"


def preference_run(num_steps=60):
    """Metrics and history of a run by MORE, and of plain mixing beside it."""
    rng = np.random.default_rng(0)
    history = {}
    for name in ("score", "mixed"):
        rows = [{"step": i, "loss": 0.7 - 0.004 * i + 0.1 * rng.random()} for i in range(num_steps)]
        for row in rows[9::10]:
            row["select_loss"] = row["loss"] + 0.02
        history[name] = rows
    for row in history["score"]:
        row["source_weights"] = [0.25 + 0.005 * row["step"], 0.75 - 0.005 * row["step"]]
    numbers = {
        "num_steps": num_steps,
        "tokens": 12_000,
        "seconds": 61.0,
        "first_loss": 0.693,
        "last_loss": 0.5,
        "margin_mean_absolute": 1.25,
        "select_loss": [0.7, 0.65, 0.6, 0.55, 0.5],
    }
    weights = {"east": 0.4, "west": 0.6}
    training = {
        "score": numbers | {"mean_weights": weights},
        "mixed": numbers | {"mean_weights": {}},
    }
    return {"training": training}, history


def test_training_has_its_curves_and_tables_and_both_pictures(tmp_path):
    metrics, history = preference_run()
    sections = sections_of(metrics, {}, history)
    losses, weights, summary_table, means = sections[0].blocks
    assert [curve.name for curve in losses.drawn if curve.line != "faint"] == [
        "MORE: loss",
        "MORE: select",
        "plain mixing: loss",
        "plain mixing: select",
    ]
    smooth = next(curve for curve in losses.drawn if curve.name == "MORE: loss")
    raw = [row["loss"] for row in history["score"]]
    assert smooth.x[0] == 9
    assert smooth.y == pytest.approx([np.mean(raw[i : i + 10]) for i in range(51)])
    assert len({losses.hue(curve) for curve in losses.curves}) == 2
    assert weights.origin == 0.5
    more = summary_table.texts(summary_table.rows[0])
    assert more == ["60", "12,000", "61", "0.693", "0.500", "0.650, 0.600, 0.550, 0.500", "1.250"]
    assert [row.name for row in means.rows] == ["MORE"]
    names = [path.name for path in write_pictures(sections, tmp_path)]
    assert names == ["training.png", "source_weights.png"]


def test_curves_over_rounds_have_whole_numbers_below_them():
    figure = Figure()
    axes = figure.subplots()
    draw(axes, Curves("reward", "round", "reward", [Curve("a", [0, 1, 2], [0.1, 0.2, 0.3])]))
    figure.canvas.draw()
    assert not [label.get_text() for label in axes.get_xticklabels() if "." in label.get_text()]


def preference_metrics(**changes):
    """Metrics of MORE beside plain mixing, with other values of the score."""
    pairs = example_metrics()["pairs"]
    entry = pairs["gate"] | {"num_prompts": 60.0, "temperature": 1.3}
    scorers = dict.fromkeys(("score", "score_raw", "mixed", "mixed_raw", "length"), entry)
    comparison = {"value": 0.021, "ci95": [0.003, 0.04]}
    return {
        "pairs": scorers | {"score": entry | changes},
        "comparisons": {"score - mixed": comparison, "score - length": comparison},
    }


def test_more_is_compared_with_plain_mixing_under_its_name():
    text = summary(preference_metrics())
    assert "MORE - plain mixing  +0.021  [+0.003, +0.040]" in text
    accuracy = text.partition("Probabilities")[0]
    assert "raw" not in accuracy
    assert "of 60 prompts" in accuracy
    assert "No signal" not in text
    assert "Too few" not in text
    sentence = verdict(preference_metrics())
    assert sentence.startswith("On held-out pairs MORE beats the strongest scorer")


def test_a_model_without_signal_is_told_in_words_and_has_no_calibration_error():
    silent = preference_metrics(temperature=None, ece=None, ece_floor=None)
    assert "No signal: the probabilities of MORE are all .5" in summary(silent)
    figure = key_figures(silent["pairs"])[1]
    assert (figure.value, figure.note) == ("-", "no signal: all probabilities are .5")


def test_a_handful_of_prompts_is_told_in_words():
    few = preference_metrics()
    few["pairs"] = {n: entry | {"num_prompts": 4.0} for n, entry in few["pairs"].items()}
    assert "Too few prompts (4) for intervals" in summary(few, width=200)


def test_two_sources_that_always_count_the_same_are_told_to_be_balanced_mixing():
    assert is_equal_mixing({"a": 0.5, "b": 0.5})
    assert not is_equal_mixing({"a": 0.5001, "b": 0.4999})
    assert not is_equal_mixing({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    assert More().is_equal_mixing(2)
    assert not More().is_equal_mixing(3)
    assert not More(normalizer="loss").is_equal_mixing(2)


def test_a_page_says_when_how_and_on_what_a_run_came_about(tmp_path):
    origin = {
        "begun": time.time() - 3725,
        "command": "preference.py more --pairs <a> --out runs/more",
        "machine": "x86_64, 2 CPUs, Linux",
        "versions": {"torch": "2.13.0"},
        "trackers": ["MLflow run abc"],
    }
    config = {"planted": {"num_prompts": 9}, "backbone": {"model": "embedded"}}
    for name, values in (("metrics", preference_metrics()), ("config", config), ("run", origin)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    for text in ("after 1 h 2 min", "--pairs &lt;a&gt;", "MLflow run abc", "embedded", DEMO):
        assert text in html
