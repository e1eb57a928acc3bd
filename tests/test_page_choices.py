"""The page of a run that chooses among reward models, and of best of n."""

import numpy as np
import pytest

from panoply.files import write_json
from panoply.report.page import Scale
from panoply.report.report import write_report
from panoply.report.results import alarms, laser, signals
from panoply.report.results.best_of_n import right_choices
from tests.builders.contrast import LOWEST_CONTRAST

HOSTILE = "<script>document.title='taken'</script>"
ARMS = ("long", "short", "lines", HOSTILE)
STRATEGIES = ("laser", "fixed:short", "random", "mean", "laser_verified", "oracle")
SECTIONS = {
    "strategies": "What the policies came to",
    "best-of-n": "Best of n",
    "choices": "Which arms were chosen",
    "learning": "What the bandit knew",
    "off-policy": "Beside the best fixed arm",
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
    chosen["laser"]["off_policy"] = example_off_policy()["laser"]
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
    write_report(folder)
    return folder / "report.html"


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
    assert "Over-optimization" not in html
    turn = {"value": -0.04, "ci95": [-0.07, -0.01]}
    kl = {str(n): float(n) for n in (1, 2, 4, 8, 16)}
    fit = {"alpha": {"value": 0.3}, "beta": {"value": -0.1}, "holds": True}
    entry = {"proxy": dict.fromkeys(kl, 0.5) | {"16": 1.25}, "peak": 4, "turn": turn, "fit": fit}
    optimization = {"kl": kl, "strategies": {"long": entry}}
    shown = right_choices(metrics["best_of_n"], {}, optimization).blocks[2]
    assert "n = 16, at most 16.000 nats" in shown.title
    texts = ["+1.250", "4", "-0.040", "[-0.070, -0.010]"]
    assert shown.texts(shown.rows[0]) == [*texts, "+0.300", "-0.100"]
    optimization["strategies"]["long"]["fit"]["holds"] = False
    shown = right_choices(metrics["best_of_n"], {}, optimization).blocks[2]
    assert shown.texts(shown.rows[0]) == [*texts, "-", "-"]
    table = right_choices(metrics["best_of_n"], {}, {}).blocks[1]
    assert table.rows[0].name == "any right"
    assert table.texts(table.rows[0])[-2:] == ["0.800", "[0.700, 0.900]"]


def test_what_signals_mean_is_what_their_intervals_say():
    correlations = example_choice()["signals"]

    def meaning(values, target, applied):
        return signals.meaning({n: v for n, v in values.items() if n != target}, target, applied)

    text = meaning(correlations["held_out"], "held_out", "negative_loss")
    assert "rewarded with negative_loss, which goes against how far the round raised" in text
    assert "improvement goes with it." in text
    text = meaning(correlations["held_out"], "held_out", "verifier")
    assert "of which 100 decisions cannot tell if it goes with" in text
    assert "negative_loss goes against it." in text
    text = meaning(correlations["held_out"], "held_out", "agreement")
    assert "has no correlation with how far the round raised held-out quality here" in text
    assert "(does not vary)" in text
    text = meaning(correlations["verifier"], "verifier", "negative_loss")
    assert text.startswith("No signal can be compared with")
    by_chance = {"improvement": correlation(0.05), "held_out": correlation(1.0)}
    text = meaning(by_chance, "held_out", "verifier")
    assert text == "No signal can be told from chance: every interval holds 0."


def test_a_signal_that_is_not_defined_has_no_mark_and_says_why():
    blocks = signals.signals({"laser": example_choice() | {"applied": "probe"}}).blocks
    table = next(block for block in blocks if not isinstance(block, str))
    own = {row.name: row for row in table.rows}
    assert "held_out" not in own  # against itself
    assert [row.name for row in table.rows[:2]] == ["improvement", "verifier"]
    assert table.texts(own["probe"]) == ["-", "-", "0"]
    assert not Scale.of(table).items(table, own["probe"])
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
    assert alarms.followed(own, [], strategy).endswith(followed)


def test_shares_by_round_are_bars_upon_each_other_with_alarms_where_they_were_raised():
    history = [{"step": i, "share/a": float(i % 2), "share/b": float(1 - i % 2)} for i in range(50)]
    choice = {"shares": {"a": 0.5, "b": 0.5}, "shares_by_source": {}}
    choice["alarms"] = [{"round": 4, "name": "length"}]
    by_round = laser.shares({"laser": choice}, {"laser": history}).blocks[0]
    assert by_round.stacked
    assert by_round.events == [(4, "length")]
    assert len(by_round.numbers().rows) == 50
    for row in by_round.numbers().rows:
        assert sum(row.cells) == pytest.approx(1)


def example_off_policy():
    arms = {
        "a": {"value": 0.3, "ci95": [0.1, 0.5], "ess": 12.0, "support": 1.0, "bandit_value": 0.5},
        "b": {"value": 0.6, "ci95": [0.5, 0.7], "ess": 40.4, "support": 0.9, "bandit_value": 0.45},
        "c": {
            "value": None,
            "ci95": [None, None],
            "ess": 0.0,
            "support": 0.0,
            "bandit_value": None,
        },
    }
    return {"laser": {"mean": 0.5, "ci95": [0.4, 0.6], "num": 96, "arms": arms}}


def test_an_off_policy_estimate_stands_beside_what_the_bandit_got():
    estimates = example_off_policy()
    sentence, table = laser.off_policy(estimates).blocks
    assert sentence == (
        "laser did worse than the best fixed arm by estimate, b: 0.450 a decision, "
        "b 0.600 [0.500, 0.700]."
    )
    assert [row.name for row in table.rows] == ["laser", "b", "a", "c"]
    assert [table.texts(row) for row in table.rows] == [
        ["0.500", "[0.400, 0.600]", "-", "96", "-"],
        ["0.600", "[0.500, 0.700]", "0.450", "40", "0.90"],
        ["0.300", "[0.100, 0.500]", "0.500", "12", "1.00"],
        ["-", "-", "-", "0", "0.00"],
    ]
    assert table.origin == 0.5


@pytest.mark.parametrize(
    ("bandit_value", "outcome"),
    [(0.45, "did worse than"), (0.75, "did better than"), (0.6, "cannot be told apart from")],
)
def test_whether_the_bandit_beat_the_best_arm_is_what_the_interval_says(bandit_value, outcome):
    estimates = example_off_policy()
    estimates["laser"]["arms"]["b"]["bandit_value"] = bandit_value
    assert outcome in laser.off_policy(estimates).blocks[0]


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
