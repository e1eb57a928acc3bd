"""The page of a run that chooses among reward models, and of best of n."""

import numpy as np
import pytest

from panoply.report.page import choices, strategies
from panoply.report.page.charts import plot
from panoply.report.page.write import write_page
from tests.builders.contrast import LOWEST_CONTRAST
from workflows.cluster.tracking import write_json

HOSTILE = "<script>document.title='taken'</script>"
ARMS = ("long", "short", "lines", HOSTILE)
STRATEGIES = ("laser", "fixed:short", "random", "mean", "laser_verified", "oracle")
SECTIONS = {
    "strategies": "What the policies came to",
    "best-of-n": "Best of n",
    "choices": "Which arms were chosen",
    "learning": "What the bandit knew",
    "signals": "Signals and held-out quality",
    "alarms": "Alarms and failures",
    "record": "Data and configuration",
}


def correlation(value, n=100.0, width=0.1):
    ends = [value - width, value + width] if value is not None else [None, None]
    return {"spearman": value, "ci95": ends, "n": n}


def example_history(num_rounds, rng):
    """Rounds of a strategy that chose."""
    rows = []
    for step in range(num_rounds):
        share = rng.dirichlet(np.ones(len(ARMS)))
        rows.append(
            {"step": step, "loss": 2.0, "uncertainty": 1 / (1 + step), "regret": 0.1 * step}
            | {f"share/{arm}": float(s) for arm, s in zip(ARMS, share, strict=True)}
            | {f"error/{arm}": 0.3 / (1 + step) for arm in ARMS}
            | {"disagreement": None}
        )
    return rows


def example_choice():
    alarm = {"round": 3, "name": "length", "message": "mean length grew", "arm": ""}
    hacking = {"round": 5, "name": "hacking", "message": f"scores of {HOSTILE} rose", "arm": "long"}
    away = {"round": 6, "arm": "long", "reason": "hacking: scores rose", "until": 11}
    signals = {
        "negative_loss": correlation(-0.3),
        "improvement": correlation(0.25),
        "probe": correlation(None, n=0.0),
        "agreement": correlation(None),
        "verifier": correlation(0.05),
        "held_out": correlation(1.0, width=0.0),
    }
    shares = dict(zip(ARMS, (0.4, 0.3, 0.2, 0.1), strict=True))
    return {
        "shares": shares,
        "shares_by_source": {"brief": shares, HOSTILE: shares},
        "alarms": [alarm | {"action": "warn"}, hacking | {"action": "suspend"}],
        "failures": [{"round": 2, "arm": HOSTILE, "num_failed": 3, "failure": "out of order"}],
        "suspended": [away],
        "applied": "negative_loss",
        "signals": {
            "verifier": {name: correlation(None, n=0.0) for name in signals},
            "held_out": signals,
        },
    }


def example_run(num_rounds=12):
    """Metrics, configuration and history of a run; the last strategy was stopped."""
    rng = np.random.default_rng(0)
    found = {}
    for k, name in enumerate(STRATEGIES):
        after = 0.42 + 0.03 * k
        found[name] = {
            "rounds": num_rounds,
            "num_scored": 768 * (1 + 3 * (k > 2)),
            "num_pairs": 100,
            "paused": "",
            "held_out": {"0": 0.41, "6": 0.43 + 0.01 * k, "12": after},
            "before": 0.41,
            "after": after,
            "gain": after - 0.41,
            "gain_ci95": [after - 0.48, after - 0.34],
            "best_of_n": {who: {"before": 0.5, "after": 0.6} for who in (*ARMS, "mean")},
        }
    chosen = {name: example_choice() for name in STRATEGIES[:3]}
    metrics = {
        "strategies": found,
        "differences": {
            f"laser - {name}": {"value": -0.1, "ci95": [-0.2, -0.02]} for name in STRATEGIES[1:]
        },
        "choices": chosen,
        "num_prompts": 96,
        "git_commit": "0123456789abcdef",
    }
    history = {name: example_history(num_rounds, rng) for name in chosen}
    history |= {name: [{"step": i, "loss": 2.0} for i in range(num_rounds)] for name in ("mean",)}
    return metrics, {"out": "runs/x", "n": 8}, history


def best_of_n(sizes=(1, 2, 4, 8, 16)):
    names = (*ARMS, "mean", "any right")
    return {
        name: {
            str(n): {"value": 0.4 + 0.02 * i * k, "ci95": [0.3 + 0.02 * i * k, 0.5 + 0.02 * i * k]}
            for i, n in enumerate(sizes)
        }
        for k, name in enumerate(names)
    }


def page_of(folder, metrics, config=None, history=None):
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "config.json", config or {"out": "runs/x"})
    if history:
        write_json(folder / "history.json", history)
    return write_page(folder)


def test_a_page_holds_what_the_run_measured_and_takes_names_for_text(tmp_path):
    html = page_of(tmp_path, *example_run()).read_text()
    for id, name in SECTIONS.items():
        assert (f'<h2 id="{id}-title">{name}</h2>' in html) == (id != "best-of-n")
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 5
    assert "cannot be told to have changed: 0.410 before, 0.420 after" in html
    assert "It loses to the best of the others, mean: -0.100 [-0.200, -0.020]" in html
    assert "3,072" in html  # scores paid where all arms were asked
    assert "out of order" in html
    assert "long was set aside until round 11" in html
    assert "a warning: the run went on" in html
    assert not {"nan", "None", "null"} & set(html.replace(">", " ").replace("<", " ").split())


def test_what_a_run_did_not_measure_is_left_out(tmp_path):
    metrics, config, history = example_run()
    for found in metrics["strategies"].values():
        for key in ("held_out", "before", "after", "gain", "gain_ci95", "best_of_n"):
            del found[key]
    html = page_of(tmp_path, metrics | {"differences": {}}, config, history).read_text()
    assert "Held-out quality" not in html
    assert "Differences" not in html
    assert "Right choices" not in html
    assert ">Uncertainty<" in html
    assert "Disagreement" not in html  # no curve without a value
    bare = {"strategies": metrics["strategies"], "choices": {}, "differences": {}}
    html = page_of(tmp_path, bare).read_text()
    for id, name in SECTIONS.items():
        assert (f">{name}</h2>" in html) == (id in ("strategies", "record"))


def test_a_run_without_a_verifier_claims_no_quality(tmp_path):
    metrics, config, history = example_run()
    nothing = dict.fromkeys(("before", "after", "gain"))
    for found in metrics["strategies"].values():
        found |= nothing | {"gain_ci95": [None, None], "held_out": {"0": None, "12": None}}
        found["best_of_n"] = {who: {"before": None, "after": None} for who in ARMS}
    html = page_of(tmp_path, metrics, config, history).read_text()
    assert 'class="verdict"' not in html
    assert "Held-out quality" not in html
    assert "Right choices" not in html
    assert "Scores paid" in html


def test_a_page_of_best_of_n_shows_right_choices_by_n_with_intervals(tmp_path):
    metrics = {"best_of_n": best_of_n(), "num_prompts": 10, "arms_routed": {"long": 7, "short": 3}}
    html = page_of(tmp_path, metrics).read_text()
    for id, name in SECTIONS.items():
        assert (f">{name}</h2>" in html) == (id in ("best-of-n", "record"))
    assert "Right choices among 16 samples" in html
    assert "any right" in html
    assert "Prompts that the bandit gave to each arm" in html
    chart = strategies.at_most_n(metrics["best_of_n"])
    assert chart.rows[0].label == "any right"
    assert chart.rows[0].cells == ("0.800", "[0.700, 0.900]")


def test_what_signals_mean_is_what_their_intervals_say():
    found = example_choice()["signals"]
    said = choices.meaning(found["held_out"], "held_out", "negative_loss")
    assert "rewarded with negative_loss, which goes against how far the round raised" in said
    assert "improvement goes with it." in said
    said = choices.meaning(found["held_out"], "held_out", "verifier")
    assert "of which 100 decisions cannot tell if it goes with" in said
    assert "negative_loss goes against it." in said
    said = choices.meaning(found["held_out"], "held_out", "agreement")
    assert "has no correlation with how far the round raised held-out quality here" in said
    assert "(does not vary)" in said
    said = choices.meaning(found["verifier"], "verifier", "negative_loss")
    assert said.startswith("No signal can be held against")
    by_chance = {"improvement": correlation(0.05), "held_out": correlation(1.0)}
    said = choices.meaning(by_chance, "held_out", "verifier")
    assert said == "No signal can be told from chance: every interval holds 0."


def test_a_signal_that_is_not_defined_has_no_mark_and_says_why():
    rows = choices.signals(example_choice()["signals"]["held_out"], "held_out", "probe").rows
    own = {row.label: row for row in rows}
    assert "held_out" not in own  # against itself
    assert [row.label for row in rows[:2]] == ["improvement", "verifier"]
    assert own["probe"].cells == ("-", "-", "0")
    assert not own["probe"].marks + own["probe"].spans
    assert own["probe"].note == "applied, not measured"
    assert own["agreement"].note == "does not vary"


@pytest.mark.parametrize(
    ("alarm", "strategy", "followed"),
    [
        ({"action": "stop"}, {"rounds": 4, "paused": "round 4: kl: too far"}, "before round 4"),
        ({"action": "stop"}, {"rounds": 9, "paused": ""}, "the run was continued"),
        ({"action": "warn"}, {"rounds": 9}, "the run went on"),
        ({"action": "warn"}, {"rounds": 4}, "no round came after"),
        ({"action": "suspend"}, {"rounds": 4}, "long was to be set aside; no round came after"),
    ],
)
def test_what_followed_an_alarm_is_what_the_run_did(alarm, strategy, followed):
    own = {"round": 3, "name": "kl", "arm": "long"} | alarm
    assert choices.followed(own, [], strategy).endswith(followed)


def test_rounds_of_a_long_run_share_bars_whose_shares_are_means():
    history = [{"step": i, "share/a": float(i % 2), "share/b": float(1 - i % 2)} for i in range(50)]
    choice = {"shares": {"a": 0.5, "b": 0.5}, "alarms": [{"round": 4, "name": "length"}]}
    rows = choices.by_round(history, choice).rows
    assert [row.label for row in rows[:2]] == ["0 to 2", "3 to 5"]
    assert len(rows) == 17
    assert rows[0].cells == ("0.33", "0.67")
    assert [row.note for row in rows[:3]] == ["", "length", ""]
    for row in rows:
        assert sum(span.width for span in row.spans) == pytest.approx(100)


def test_curves_stand_where_their_numbers_say_and_an_empty_one_keeps_no_place():
    drawn = plot("c", "n", "m", {"a": {1: 0.0, 16: 1.0, 4: None}, "b": {}}, evenly=True)
    (trace,) = drawn.traces
    assert trace.points == ((0, 0), (100, 100))
    assert [label for _, label in drawn.places] == ["1", "4", "16"]
    assert [at for at, _ in drawn.places] == [0, 50, 100]
    assert [[cell.text for cell in cells] for _, cells in drawn.numbers.rows] == [
        ["0.000"],
        ["-"],
        ["1.000"],
    ]
    assert not plot("c", "n", "m", {"a": {}}).traces


@pytest.fixture(scope="module")
def phone(browser, tmp_path_factory):
    """The largest page on a phone."""
    metrics, config, history = example_run(50)
    file = page_of(
        tmp_path_factory.mktemp("page"), metrics | {"best_of_n": best_of_n()}, config, history
    )
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="light")
    page.set_default_timeout(120_000)
    page.goto(file.as_uri())
    return page


def test_a_phone_never_scrolls_sideways_and_every_section_is_led_to(phone):
    phone.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    assert phone.locator("main h2").all_inner_texts() == list(SECTIONS.values())
    assert phone.locator("nav a").all_inner_texts() == list(SECTIONS.values())


def test_tables_and_drawings_have_names_and_text_stands_out(phone):
    assert phone.locator("script").count() == 0
    named = "all => all.every(t => t.caption && t.caption.innerText.trim())"
    assert phone.locator("table").evaluate_all(named)
    assert phone.locator("svg").count() > 3
    assert phone.locator("svg").evaluate_all("all => all.every(s => s.ariaLabel)")
    for scheme in ("light", "dark"):
        phone.emulate_media(color_scheme=scheme)
        ratio, text = phone.evaluate(LOWEST_CONTRAST)
        assert ratio >= 4.5, text
