"""The page of a run: one file that needs nothing else, for phone and desk, light and dark."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from panoply.armorm.confident_errors import MOST, confident_mistakes, report_mistakes
from panoply.boards import load_board
from panoply.boards.scored import ItemPlaces
from panoply.data.tables import PairTable, Split
from panoply.files import write_json
from panoply.measure.board_report import BoardTable, board_report
from panoply.report.figures import HUES, VARIABLES, picture, svg
from panoply.report.page import Scale
from panoply.report.report import write_report
from panoply.report.results.pairs import verdict
from panoply.report.section import Column, Curve, Curves, Row, Table
from tests.builders.contrast import LOWEST_CONTRAST
from tests.builders.example_metrics import example_metrics

HOSTILE = "<script>document.title='taken'</script>"
SECTIONS = {
    "scorers": "Against the baselines",
    "objectives": "Objective fit",
    "gate": "What the gate weighs",
    "length": "Length bias",
    "reliability": "Reliability",
    "mistakes": "Most confident mistakes",
    "left-out": "Leave one source out",
    "planted": "Planted truth",
    "board": "RM-Bench",
    "record": "Data and configuration",
}


def example_pairs(folder, num=60, num_sources=4, seed=0):
    """Pairs, three a prompt, half of them in test, with their file."""
    rng = np.random.default_rng(seed)
    prompts = [f"prompt {i // 3}" for i in range(num)]
    rows = [
        {
            "row_id": f"row {i}",
            "chosen_id": f"chosen {i}",
            "rejected_id": f"rejected {i}",
            "prompt": [
                {"role": "user", "content": f"Say {HOSTILE} again. "},
                {"role": "assistant", "content": "No."},
                {"role": "user", "content": f"{prompts[i]} " * (1 + 90 * (i % 2))},
            ],
            "chosen": f"better {HOSTILE} " * (1 + 40 * (i % 2)),
            "rejected": "worse",
        }
        for i in range(num)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    strings = {name: np.array([row[name] for row in rows], object) for name in rows[0]}
    keys = np.array(prompts, object)
    part = np.array(["test" if i // 3 % 2 else "train" for i in range(num)], object)
    source = np.array([f"source {i // 3 % (2 * num_sources) // 2}" for i in range(num)], object)
    pairs = PairTable(
        prompt_P=keys,
        chosen_P=strings["chosen_id"],
        rejected_P=strings["rejected_id"],
        source_P=source,
        domain_P=source,
        chosen_length_P=rng.integers(5, 2000, num),
        rejected_length_P=rng.integers(5, 2000, num),
        split=Split(keys, part, np.zeros(num, np.int64)),
    )
    weights = rng.dirichlet(np.full(5, 0.5), num) * 3
    return pairs, weights, rng.normal(size=(num, 5))


def finished_run(folder, metrics):
    """A run's folder as `run_armorm` leaves it, without the model."""
    pairs, weights, difference = example_pairs(folder)
    names = [*list(metrics["objectives"])[:4], HOSTILE]
    found = report_mistakes(weights, difference, names, pairs, folder / "pairs.parquet")
    write_json(folder / "mistakes.json", found)
    write_json(folder / "metrics.json", metrics)
    config = {"out": "runs/x", "gate": {"lr": 1e-3, "depths": [0.2, 0.3]}, "planted": None}
    write_json(folder / "config.json", config)
    write_report(folder)
    return folder / "report.html"


def large_metrics():
    metrics = example_metrics(50, 8) | {"git_commit": "0123456789abcdef"}
    metrics["objectives"][HOSTILE] = metrics["objectives"]["raters0-overall"]
    for found in metrics["pairs"].values():
        found["per_source"][HOSTILE] = found["per_source"]["source_0"]
    metrics["gate"]["weights_by_domain"][HOSTILE] = metrics["gate"]["weights_by_domain"]["source_0"]
    kind = {"id": "f" * 32, "rows": 10, "by_source": {HOSTILE: 10}, "parts": {"test": 10}}
    metrics["data"] = {"pairs": kind | {"quarantined": {"empty": 2}}}
    metrics["board"] = example_board()
    return metrics


def example_board(num_items=24):
    """A report of RM-Bench: one scorer wins all with a style that is no plainer, one has none."""
    domains = np.repeat(["chat", "code", "math", "safety-refuse"], num_items // 4).astype(object)
    place_N6 = np.arange(6 * num_items).reshape(num_items, 6)
    places = ItemPlaces(domains, np.full(num_items, ""), place_N6[:, :3], place_N6[:, 3:])
    table = BoardTable(
        load_board("rmbench"), places, np.arange(num_items), num_items, place_N6.ravel() * 1.0
    )
    styled = np.tile([0.5, 1.5, 2.5, 0.0, 1.0, 2.0], num_items)
    scores = {"gate": styled, HOSTILE: np.full(6 * num_items, np.nan)}
    return board_report(table, scores, dict.fromkeys(scores, np.zeros(num_items, bool)))


def test_the_mistakes_are_the_surest_wrong_test_pairs_without_repeating_a_prompt(tmp_path):
    pairs, weights, difference = example_pairs(tmp_path)
    odds = (weights * difference).sum(1)
    rows = confident_mistakes(weights, difference, pairs)
    assert 0 < len(rows) <= MOST
    assert (odds[rows] < 0).all()
    assert (np.diff(odds[rows]) >= 0).all()
    assert set(pairs.split.part_N[rows]) == {"test"}
    assert len(set(pairs.prompt_P[rows])) == len(rows)
    assert odds[rows[0]] == odds[pairs.split.of("test")].min()


def test_no_source_fills_the_list_and_a_lone_source_may(tmp_path):
    for num_sources, share in ((4, 2), (1, MOST)):
        pairs, weights, difference = example_pairs(tmp_path, num_sources=num_sources)
        rows = confident_mistakes(weights, -np.abs(difference), pairs)
        assert len(rows) == MOST
        sources = list(pairs.source_P[rows])
        assert max(map(sources.count, sources)) == share


def test_a_gate_that_states_no_confidence_has_no_confident_mistakes(tmp_path):
    pairs, weights, difference = example_pairs(tmp_path)
    assert not len(confident_mistakes(0 * weights, difference, pairs))


def test_contributions_add_up_to_the_log_odds_and_the_largest_comes_first(tmp_path):
    pairs, weights, difference = example_pairs(tmp_path)
    file = tmp_path / "pairs.parquet"
    found = report_mistakes(weights, difference, list("abcde"), pairs, file)
    odds = (weights * difference).sum(1)
    assert found["num_wrong"] == (odds[pairs.split.of("test")] < 0).sum()
    for own in found["mistakes"]:
        row = int(own["row_id"].split()[1])
        parts = [part["log_odds"] for part in own["contributions"]]
        assert sum(parts) == pytest.approx(odds[row])
        assert sum(part["weight"] for part in own["contributions"]) == pytest.approx(1)
        assert sorted(parts, key=abs, reverse=True) == parts
        assert own["chosen_length"] == pairs.chosen_length_P[row]


def test_texts_of_another_file_are_refused(tmp_path):
    pairs, weights, difference = example_pairs(tmp_path)
    table = pq.read_table(tmp_path / "pairs.parquet")
    pq.write_table(table.take(np.arange(60)[::-1]), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet"):
        report_mistakes(weights, difference, list("abcde"), pairs, tmp_path / "other.parquet")


def test_a_page_written_again_from_its_folder_is_the_same(tmp_path):
    file = finished_run(tmp_path, large_metrics())
    first = file.read_bytes()
    write_report(tmp_path)
    assert file.read_bytes() == first


def test_names_and_texts_are_text_and_the_page_has_no_script(tmp_path):
    html = finished_run(tmp_path, large_metrics()).read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 5
    assert "http" not in html.replace("http-equiv", "")


def test_what_is_not_defined_is_a_dash_and_never_nan(tmp_path):
    metrics = large_metrics()
    name = next(iter(metrics["objectives"]))
    lost = dict.fromkeys(("spearman", "r2", "n"), float("nan"))
    metrics["objectives"][name] |= lost | {"spearman_ci95": None}
    metrics["pairs"]["mlp"]["macro"] = {}
    metrics["pairs"]["gate"]["per_source"]["source_0"]["accuracy_length_balanced"] = None
    metrics["comparisons"]["gate - mlp"] = {"value": None, "ci95": [None, None]}
    metrics["debias"]["before"][name] = float("nan")
    metrics["leave_one_out"]["source_0"]["gate"] = None
    metrics["planted"] |= {"recovered": float("nan"), "oracle": None}
    metrics["gate"]["weights_by_domain"]["source_0"][name] = float("nan")
    html = finished_run(tmp_path, metrics).read_text()
    assert "<td>-</td>" in html
    assert not {"nan", "None", "null"} & set(html.replace(">", " ").replace("<", " ").split())


def test_sections_that_a_run_does_not_have_are_left_out(tmp_path):
    metrics = {k: example_metrics()[k] for k in ("pairs", "comparisons", "reliability")}
    metrics |= {"model": "runs/x/model", "num_pairs": 70, "num_seen": 4, "only_seen": False}
    write_json(tmp_path / "metrics.json", metrics)
    write_json(tmp_path / "config.json", {"model": "runs/x/model"})
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    for id, name in SECTIONS.items():
        assert (f">{name}</h2>" in html) == (id in {"scorers", "reliability", "record"})
    assert "70 pairs scored" in html


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [([0.01, 0.1], "beats"), ([-0.1, -0.01], "loses to"), ([-0.1, 0.1], "cannot be told apart")],
)
def test_the_verdict_is_what_the_interval_says(ends, outcome):
    metrics = example_metrics()
    metrics["comparisons"] = {
        f"gate - {name}": {"value": 0.02, "ci95": ends}
        for name in ("best_fixed", "mlp", "gate_source_mean")
    }
    assert outcome in verdict(metrics)
    assert "mlp" in verdict(metrics)
    assert verdict({}) == ""


def test_an_axis_runs_between_round_numbers_and_holds_what_is_drawn():
    def scale(values, origin=0.0):
        rows = [Row("r", [value]) for value in values]
        return Scale.of(
            Table("t", "f", [Column("v", mark="dot")], rows, measure="m", origin=origin)
        )

    axis = scale([0.213, None, float("nan"), 0.04])
    assert (axis.ticks[0], axis.ticks[-1]) == (0, 0.25)
    assert axis.at(0.25) == 100
    chance = scale([0.62, 0.83], origin=0.5)
    assert (chance.ticks[0], chance.ticks[-1]) == pytest.approx((0.5, 0.9))
    assert len(scale([]).ticks) > 1


def test_an_interval_and_a_bar_stand_where_their_values_say():
    columns = [Column("value", mark="bar"), Column("95 %", str, "interval")]
    rows = [Row("a", [1.0, (0.5, 1.5)]), Row("b", [-1.0, (None, 2.0)])]
    table = Table("t", "f", columns, rows, measure="m", ends=(-2.0, 2.0))
    scale = Scale.of(table)
    assert scale.items(table, rows[0]) == [("bar", 50, 25), ("interval", 62.5, 25)]
    assert scale.items(table, rows[1]) == [("bar against", 25, 25)]


def test_a_name_with_control_characters_is_drawn_as_text():
    name = "a\x1b[2J\ud800<b>&\n$x$"
    curve = Curve(name, [0, 1], [0.0, 1.0])
    curves = Curves(name, "x", "y", [curve, replace(curve, name="b")], events=[(0.5, name)])
    drawing = svg(curves)
    assert "a\\x1b[2J\\ud800&lt;b&gt;&amp; $x$" in drawing
    assert len(picture([curves])) > 1000


def test_a_drawing_has_the_page_s_colors_and_a_name_and_loads_nothing(report):
    drawing = report.read_text().split("<svg")[1].split("</svg>")[0]
    assert 'role="img"' in drawing
    assert "aria-label=" in drawing
    assert "var(--hue0)" in drawing
    assert "<metadata" not in drawing
    assert not [color for color in VARIABLES if color in drawing]
    style = report.read_text().split("<style>")[1].split("</style>")[0]
    assert all(f"--hue{k}: {color};" in style for k, color in enumerate(HUES))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("page"), large_metrics())


@pytest.fixture(scope="module")
def phone(browser, report):
    """The page on a phone in the light, with all that it said and asked for."""
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="light")
    page.set_default_timeout(120_000)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(report.as_uri())
    return page


def test_a_phone_never_scrolls_sideways_even_with_everything_unfolded(phone):
    width = "document.documentElement.scrollWidth"
    assert phone.evaluate(width) == 360
    phone.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert phone.evaluate(width) == 360


def test_every_section_has_a_heading_that_the_navigation_leads_to(phone):
    titles = phone.locator("main h2").all_inner_texts()
    assert titles == list(SECTIONS.values())
    links = phone.locator("nav a")
    assert links.all_inner_texts() == titles
    targets = links.evaluate_all("links => links.map(a => document.querySelector(a.hash).id)")
    assert targets == list(SECTIONS)
    levels = phone.locator("h1, h2, h3, h4").evaluate_all("all => all.map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_page_asks_for_nothing_says_nothing_and_runs_nothing(phone, report):
    assert phone.asked == [report.as_uri()]
    assert phone.said == []
    assert phone.title().startswith(report.parent.name)
    assert phone.locator("script").count() == 0
    assert HOSTILE in phone.locator("#scorers").inner_text()
    assert HOSTILE in phone.locator("#mistakes").inner_text()


def test_tables_have_captions_and_headers_and_scroll_under_a_name(phone):
    tables = phone.locator("table")
    assert tables.count() > 10
    assert tables.evaluate_all("all => all.every(t => t.caption && t.caption.innerText.trim())")
    heads = "all => all.every(h => ['col', 'row'].includes(h.scope))"
    assert phone.locator("th").evaluate_all(heads)
    regions = phone.locator(".scroll")
    assert regions.evaluate_all("all => all.every(r => r.tabIndex === 0 && r.ariaLabel)")
    assert phone.locator("svg").evaluate_all("all => all.every(s => s.ariaLabel)")


def test_the_board_shows_every_number_of_its_scorers_its_controls_and_what_was_published(phone):
    tables = [table.locator("tr").all() for table in phone.locator("#board table").all()]
    first, second = (
        [row.locator("th, td").all_inner_texts() for row in rows] for rows in tables[:2]
    )
    del first[0][1]  # the axis of the drawing, which stands between the names and the numbers
    assert first[0] == ["scorer", "RM-Bench", "95 %", "items", "missing"]
    assert first[1] == ["gate", "", "0.667", "[0.667, 0.667]", "24", "0"]
    assert first[2] == [HOSTILE, "", "-", "-", "0", "24"]
    assert [row[0].split()[0] for row in first[3:6]] == ["constant", "length", "random"]
    levels = ["RM-Bench", "hard", "normal", "easy", "chat", "code", "math", "safety"]
    assert second[0] == ["scorer", *levels]
    assert second[1] == ["gate", "0.667", "0.000", "1.000", "1.000", *["0.667"] * 4]
    assert second[-1][1:3] == ["0.853", "0.802"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(phone, scheme):
    phone.emulate_media(color_scheme=scheme)
    ratio, text = phone.evaluate(LOWEST_CONTRAST)
    assert ratio >= 4.5, text


def test_the_dark_has_a_dark_background(phone):
    grounds = []
    for scheme in ("light", "dark"):
        phone.emulate_media(color_scheme=scheme)
        color = phone.evaluate("getComputedStyle(document.body).backgroundColor")
        grounds.append(sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(","))) / 3)
    assert grounds[0] > 200
    assert grounds[1] < 60


def test_a_long_text_is_folded_and_whole_in_the_file(report):
    found = json.loads((report.parent / "mistakes.json").read_text())
    lengths = [len(own["chosen"]) for own in found["mistakes"]]
    assert max(lengths) > 1000
    assert f"all {max(lengths):,} characters" in report.read_text()
