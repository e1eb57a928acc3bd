"""Plots are files, tables hold the numbers, and what is missing is skipped."""

import io
import json

import pytest
from matplotlib.image import imread
from rich.console import Console

from panoply.report.plots import gate_weights
from panoply.report.report import print_summary, write_plots
from panoply.report.tables import BY_SOURCE
from tests.builders.example_metrics import SCORERS, example_metrics


def summary(metrics, width=100):
    console = Console(file=io.StringIO(), width=width)
    print_summary(metrics, console)
    return console.file.getvalue()


@pytest.mark.parametrize(("num_objectives", "num_sources"), [(6, 4), (40, 12)])
def test_every_plot_is_a_picture_with_something_on_it(tmp_path, num_objectives, num_sources):
    written = write_plots(example_metrics(num_objectives, num_sources), tmp_path / "new")
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
    names = [path.stem for path in write_plots(evaluated, tmp_path)]
    assert names == ["gate_weights", "reliability", "baselines"]
    text = summary(evaluated)
    for absent in ("Objectives", "Debias", "Leave one source out", "Planted", "left out"):
        assert absent in summary(whole)
        assert absent not in text


def test_nothing_gives_no_plots_and_no_text(tmp_path):
    assert write_plots({}, tmp_path) == []
    assert summary({}) == ""


def test_the_summary_holds_the_numbers():
    metrics = example_metrics()
    text = summary(metrics)
    for name, found in metrics["objectives"].items():
        line = next(line for line in text.splitlines() if line.startswith(name))
        for key in ("spearman", "r2", "length_spearman", "prompt_spearman"):
            assert f"{found[key] + 0.0:.3f}" in line
        assert ("no signal" in line) == (not found["signal"])
    gate = next(line for line in text.splitlines() if line.startswith("gate  "))
    for value in ("0.662", "0.642", "[0.630, 0.654]", "0.619", "0.031 (0.024)", "0.004"):
        assert value in gate
    for value in (
        "0.687 -> 0.011",
        "0.092 held out",
        "0.263 -> 0.016",
        "0.703 -> 0.605",
        "0.502 -> 0.611",
    ):
        assert value in " ".join(text.split())
    for value in ("+0.064", "[+0.051, +0.079]", "0.541", "0.552", "0.563"):
        assert value in text
    for value in ("0.791", "0.763", "0.695", "0.713", "0.879"):
        assert value in text


def test_scorers_stand_in_the_order_of_their_accuracy():
    table = summary(example_metrics()).split("Scorers")[1].split("Paired")[0]
    lines = [line for line in table.splitlines() if "[" in line]
    shown = [" ".join(line.split("  ")[0].split()) for line in lines]
    ranked = sorted(SCORERS, key=lambda name: -SCORERS[name])
    assert shown == [name.replace("_", " ") for name in ranked]


def test_each_domain_names_its_three_largest_weights():
    metrics = example_metrics(40, 3)
    table = " ".join(summary(metrics, 160).split("Mean gate weights")[1].split("Leave")[0].split())
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
    assert line.split()[2:6] == ["-", "[-,", "-]", "-"]
    assert len(write_plots(metrics, tmp_path)) == 4


def test_many_objectives_are_all_named_and_fit_in_a_hundred_columns():
    metrics = example_metrics(40, 12)
    text = summary(metrics)
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in " ".join(text.split()) for name in metrics["objectives"])
    assert len(text.split("Debias")[0].splitlines()) < 45


def test_neither_numbers_nor_names_are_cut_in_eighty_columns_and_a_file_gets_no_color():
    metrics = example_metrics(40, 12)
    metrics["pairs"]["oracle"] = metrics["pairs"]["gate"]
    text = summary(metrics, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    table = text.split("accuracy by source")[1].split("Paired")[0]
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
    assert len(write_plots(metrics, tmp_path)) == 4


def test_the_heat_map_keeps_the_largest_weights_and_sums_the_others():
    weights = {
        "a": {f"o{i}": 0.1 if i < 5 else 0.0125 for i in range(45)},
        "b": {f"o{i}": 0.1 if i > 34 else 0.0 for i in range(45)},
    }
    axes = gate_weights(weights).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert {f"o{i}" for i in (*range(5), *range(35, 45))} == set(labels[:-1])
    assert labels[-1] == "other (sum of 30)"
    cells = [text.get_text() for text in axes.texts]
    assert [cells[15], cells[31]] == [".38", ".00"]
