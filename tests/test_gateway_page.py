"""The page that the gateway serves, in Chromium, against the payloads of `/v1/rewards`."""

import json
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from scipy.stats import kendalltau

from panoply.wire.request import (
    Details,
    Driver,
    JudgeVerdict,
    ModelAnswer,
    RequestError,
    Score,
    ScoreAnswer,
    scored,
)
from tests.builders.app_server import serving
from tests.builders.contrast import LOWEST_CONTRAST
from tests.builders.wire_scores import post_bytes, say

PAGE = Path(__file__).parents[1] / "web"
BASE_STYLE = Path(__file__).parents[1] / "panoply" / "report" / "base.css"
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
KEY = "open sesame"
OBJECTIVES = [f"source-objective_{i}" for i in range(10)]
WEIGHTS = [(10 - i) / 55 for i in range(10)]
"""They fall, and add up to 1."""


def listed(id, kind="scalar", state="ready", **more):
    return {"id": id, "kind": kind, "state": state, "reason": "", "objectives": [], **more}


MODELS = [
    listed(
        "gated",
        "gated",
        default=True,
        objectives=[{"name": name, "low": 0.0, "high": 4.0} for name in OBJECTIVES[:-1]]
        + [{"name": OBJECTIVES[-1], "low": None, "high": None}],
    ),
    listed("said"),
    listed("a-long-name/of-a-model-that-starts-when-it-is-asked", state="idle"),
    listed("broken", state="failed", reason=f"out of memory {HOSTILE}"),
]


def gated(text, weights):
    """Objective i is v + i/10 and adds (-1)^i w_i v to the score, where the text ends with #v."""
    v = float(text.rpartition("#")[2])
    gate = [weights.get(name, 0) for name in OBJECTIVES] if weights else WEIGHTS
    added = [(-1) ** i * w * v for i, w in enumerate(gate)]
    values = [v + i / 10 for i in range(10)]
    return scored(
        sum(added),
        objectives=dict(zip(OBJECTIVES, values, strict=True)),
        gate=dict(zip(OBJECTIVES, gate, strict=True)),
        drivers=map(Driver, OBJECTIVES, values, added),
        num_tokens=7,
    )


def score(model, text, request):
    """`said` reads the number behind the last #, the idle model the one behind the first."""
    if model == "gated":
        return gated(text, request.weights)
    return say(text if model == "said" else text.split(" #")[0], ())


def answer_to(request):
    models = tuple(
        ModelAnswer(
            model=model,
            items=tuple(
                tuple(score(model, text, request) for text in item.responses)
                for item in request.items
            ),
            provenance={"weights": "0123456789abcdef"} if model == "gated" else {},
        )
        for model in request.models
    )
    return ScoreAnswer(models=models, id="7", created=1_700_000_000)


def gateway(key="", listing=MODELS, answered=answer_to):
    """An app as the gateway is one, and the payloads that it was sent."""
    app = FastAPI()
    app.state.seen, app.state.refusal = [], None

    def locked(request):
        return key and request.headers.get("authorization") != f"Bearer {key}"

    @app.get("/v1/models")
    def models(request: Request):
        if locked(request):
            return JSONResponse({"error": "an API key is needed"}, 401)
        return {"object": "list", "data": listing}

    @app.post("/v1/rewards")
    async def rewards(request: Request):
        if locked(request):
            return JSONResponse({"error": "an API key is needed"}, 401)
        if (refusal := app.state.refusal) is not None:
            answer, headers = {"error": refusal.message}, {"Retry-After": str(refusal.retry_after)}
            return JSONResponse(answer, refusal.status, headers)
        body = await request.body()
        app.state.seen.append(json.loads(body))
        status, payload = post_bytes("/v1/rewards", body, answer_to=answered)
        return JSONResponse(payload, status)

    app.get("/")(lambda: FileResponse(PAGE / "index.html"))
    app.get("/page/base.css")(lambda: FileResponse(BASE_STYLE))
    app.mount("/page", StaticFiles(directory=PAGE))
    return app


@pytest.fixture(scope="module")
def server():
    app = gateway()
    with serving(app) as url:
        yield SimpleNamespace(url=url, state=app.state)


@pytest.fixture
def visit(browser):
    """Opens an address; what the page says on its console and asks for is kept."""
    opened = []

    def visit(url, width=1000, **settings):
        page = browser.new_page(viewport={"width": width, "height": 740}, **settings)
        page.set_default_timeout(20_000)
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(url)
        opened.append(page)
        return page

    yield visit
    for page in opened:
        page.close()


def fill(page, *responses, models=("gated",), prompt="Why?"):
    """Fills the form and picks the models."""
    page.locator("#models li").first.wait_for()
    page.fill("#turns textarea", prompt)
    for i, text in enumerate(responses):
        if i >= page.locator("#responses li").count():
            page.click("#add-response")
        page.fill(f"#responses-{i}", text)
    for box in page.locator("#models input:enabled").all():
        box.set_checked(box.input_value() in models)


def scores_of(page, *responses, **settings):
    fill(page, *responses, **settings)
    page.evaluate("document.querySelector('#results').replaceChildren()")
    page.click("#score")
    page.locator("#results table").first.wait_for()


def cells(page, caption):
    """The texts of a table's cells, row by row, its head first."""
    rows = page.get_by_role("region", name=caption, exact=True).locator("tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def test_a_round_goes_by_keyboard_alone_and_focus_is_seen(visit, server):
    page = visit(server.url)
    page.locator("#models li").first.wait_for()
    seen = []

    def press(*keys):
        for key in keys:
            page.keyboard.press(key)
            style = "getComputedStyle(document.activeElement).outlineStyle"
            seen.append(page.evaluate(style))

    press("Tab", "Tab")
    page.keyboard.type("Which?")
    press("Tab", "Tab")
    page.keyboard.type("first #1")
    press("Tab")
    page.keyboard.type("second #3")
    press("Tab", "Enter")
    assert page.evaluate("document.activeElement.ariaLabel") == "Text of response C"
    page.keyboard.type("third #2")
    press("Tab", "Tab", "Tab", "Tab", "Space")  # add, refresh, gated, said
    press("Control+Enter")
    page.locator("#results table").first.wait_for()
    assert page.locator("#said").inner_text().startswith("3 responses, 2 models, ")
    shown = cells(page, "Raw scores; the best of each model is marked")
    assert [row[2] for row in shown[1:4]] == ["1.000\nrank 3", "3.000\nbest", "2.000\nrank 2"]
    assert shown[4] == ["ranking", "B > C > A", "B > C > A"]
    sent = server.state.seen[-1]
    assert sent["models"] == ["gated", "said"]
    assert sent["items"][0]["prompt"] == [{"role": "user", "content": "Which?"}]
    assert set(seen) == {"solid"}
    stops = [page.evaluate("document.activeElement.value")]
    while not page.evaluate("!!document.activeElement.closest('#results')"):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id"))
        assert len(stops) < 12
    assert stops[-3:] == ["score", "link", ""]


def test_a_text_that_was_cut_says_so_beside_its_score(visit, server):
    page = visit(server.url)
    scores_of(page, "a [cut] #1", "b #2", models=("said",))
    rows = cells(page, "Raw scores; the best of each model is marked")
    assert [row[1] for row in rows[1:3]] == ["1.000\nrank 2, 3 tokens cut off", "2.000\nbest"]


def test_results_have_captions_headers_names_and_are_announced(visit, server):
    page = visit(server.url)
    scores_of(page, "a #1", "b #2", models=("gated", "said"))
    assert page.locator("#said").get_attribute("role") == "status"
    tables = page.locator("table")
    assert tables.count() == 4
    assert tables.evaluate_all("all => all.every(t => t.caption && t.caption.innerText.trim())")
    heads = "all => all.every(h => ['col', 'row'].includes(h.scope))"
    assert page.locator("th").evaluate_all(heads)
    named = "all => all.every(f => f.ariaLabel || f.labels.length)"
    assert page.locator("input:not([type=password]), select, textarea").evaluate_all(named)
    levels = page.locator("h1, h2, h3").evaluate_all(
        "all => all.filter(h => h.checkVisibility()).map(h => +h.tagName[1])"
    )
    assert levels == [1, 2, 2, 2, 2, 3, 2, 3]


@pytest.mark.parametrize("width", [320, 375])
def test_a_narrow_window_never_scrolls_sideways(visit, server, width):
    page = visit(server.url, width)
    every = [model["id"] for model in MODELS[:3]]
    long = "x" * 400 + "#1 #1"
    scores_of(page, long, "b#2 #2", "c#3 #nan", "d#4 #0", "e#nan #4", models=every)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.click("text=Show all 10")
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(visit, server, scheme):
    page = visit(server.url, color_scheme=scheme)
    scores_of(page, "good #1.5", "bad #nan", "worse #1", models=("said",))
    page.evaluate("for (const e of document.querySelectorAll('[hidden]')) e.hidden = false")
    ratio, text = page.evaluate(LOWEST_CONTRAST)
    assert ratio >= 4.5, text
    scores_of(page, "good #1.5", "bad #2", "c #1", "d #0", "e #3", models=("gated",))
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    ratio, text = page.evaluate(LOWEST_CONTRAST)
    assert ratio >= 4.5, text
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground[4:].split(",")[0]) < 60) == (scheme == "dark")


def test_a_failed_model_says_why_and_cannot_be_picked(visit, server):
    page = visit(f"{server.url}/#" + quote(json.dumps(link_to("a", "b", models=["broken"]))))
    row = page.locator("#models li", has_text="broken")
    assert "failed: out of memory" in row.inner_text()
    assert row.locator("input").is_disabled()
    assert not row.locator("input").is_checked()
    page.click("#score")
    assert page.locator("#said").inner_text() == "Choose a model."
    assert page.evaluate("document.activeElement.type") == "checkbox"


def test_a_score_that_failed_is_an_error_in_words_and_never_a_number(visit, server):
    idle = MODELS[2]["id"]
    page = visit(server.url)
    scores_of(page, "x#1 #1", "x#2 #nan", "x#3 #lost", "x#3 #4", models=("said", idle))
    assert page.locator("#said").inner_text().endswith(", 2 of 8 scores missing.")
    shown = cells(page, "Raw scores; the best of each model is marked")
    assert shown[1][1:] == ["1.000\nrank 2", "1.000\nrank 4"]
    assert shown[2][1] == "no score\nthe model's score is not finite: nan"
    assert shown[3][1] == "no score\nthe replica was lost; trying again may help"
    assert shown[4][1:] == ["4.000\nbest", "3.000\nbest, tied"]
    assert shown[5][1:] == ["D > A", "C = D > B > A"]
    # Of six pairs, five lack a score; A and D are left.
    assert cells(page, "Agreement of models")[1][1:] == ["1 of 1", "1.00", "0", "5"]


def test_agreement_is_the_number_computed_by_hand(visit, server):
    idle = MODELS[2]["id"]
    page = visit(server.url)
    scores_of(page, "x#4 #4", "x#2 #3", "x#3 #2", "x#1 #1", models=("said", idle))
    # B and C change places: 5 of 6 pairs stand alike, (5 - 1) / 6.
    assert cells(page, "Agreement of models")[1][1:] == ["5 of 6", "0.67", "0", "0"]
    assert "Agreement\n5 of 6" in page.locator(".figures").inner_text()


@pytest.mark.parametrize(
    ("a", "b", "counts"),
    [
        ([1, 2, 3], [1, 2, 3], (3, 0, 0, 0)),
        ([1, 2, 2, 4], [3, 3, 1, 0], (0, 4, 2, 0)),
        ([1, None, 3, 0], [2, 5, 1, None], (0, 1, 0, 5)),
        ([1, 1], [1, 2], (0, 0, 1, 0)),
        ([None, None], [1, 2], (0, 0, 0, 1)),
    ],
)
def test_ties_and_missing_scores_are_counted_and_tau_is_kendall_s(visit, server, a, b, counts):
    page = visit(server.url)
    module = "import(new URL('page/numbers.js', document.baseURI))"
    shown = page.evaluate(f"async ([a, b]) => (await {module}).agreement(a, b)", [a, b])
    assert tuple(shown[name] for name in ("alike", "opposite", "tied", "missing")) == counts
    both = [(x, y) for x, y in zip(a, b, strict=True) if None not in (x, y)]
    tau = kendalltau(*zip(*both, strict=True)).statistic if len(both) > 1 else None
    assert shown["tau"] == (None if tau is None or tau != tau else pytest.approx(tau))


def test_bars_stand_on_the_source_s_scale_beside_the_weight(visit, server):
    page = visit(server.url)
    scores_of(page, "a #3", "b #1")
    table = page.get_by_role("region", name="Objectives of gated")
    heads, *rows = cells(page, "Objectives of gated")
    assert heads[1] == "gate weight"
    assert len(rows) == 8
    assert [row[0] for row in rows] == OBJECTIVES[:8]
    assert [float(row[1]) for row in rows] == pytest.approx(WEIGHTS[:8], abs=5e-4)
    assert rows[1][2].split() == ["A", "3.10", "B", "1.10", "0", "4"]
    widths = table.locator("td.plot s").evaluate_all("all => all.map(s => s.style.width)")
    shares = [float(width.removesuffix("%")) for width in widths[:4]]
    assert shares == pytest.approx([75, 25, 77.5, 27.5])
    assert rows[1][3].split() == ["-0.491", "-0.164"]
    page.click("text=Show all 10")
    rows = cells(page, "Objectives of gated")[1:]
    assert "no known scale" in rows[9][0]
    assert rows[9][2].split() == ["A", "3.90", "B", "1.90", "0", "3.9"]
    page.select_option("#results select >> nth=0", "contribution")
    assert [row[0].split("\n")[0] for row in cells(page, "Objectives of gated")[1:]] == OBJECTIVES


def test_a_rating_beyond_its_scale_is_marked_wherever_it_is_shown(visit, server):
    page = visit(server.url)
    scores_of(page, "a #3.55", "b #1")
    page.click("text=Show all 10")
    for caption in ("Objectives of gated", "Contributions to B less those to A"):
        notes = {
            name: text
            for name, _, text in (row[0].partition("\n") for row in cells(page, caption)[1:])
        }
        beyond = [name for name in OBJECTIVES if notes.get(name) == "beyond its scale 0..4"]
        assert beyond == [name for name in OBJECTIVES[5:9] if name in notes]


def test_why_one_won_adds_up_to_the_difference_of_the_scores(visit, server):
    page = visit(server.url)
    scores_of(page, "a #1", "b #3", "c #2")
    rows = cells(page, "Contributions to B less those to C")[1:]
    moved = [float(row[2]) for row in rows]
    assert [row[0] for row in rows] == [*OBJECTIVES[:8], "2 others", "difference of scores"]
    expected = [(-1) ** i * w for i, w in enumerate(WEIGHTS)]
    assert moved[:8] == pytest.approx(expected[:8], abs=1e-3)
    assert moved[8] == pytest.approx(sum(expected[8:]), abs=1e-3)
    assert moved[9] == pytest.approx(1 / 11, abs=1e-3)
    assert rows[0][3:] == ["3.00", "2.00"]
    page.get_by_label("over").select_option("A")
    rows = cells(page, "Contributions to B less those to A")[1:]
    assert float(rows[9][2]) == pytest.approx(2 / 11, abs=1e-3)


def test_weights_of_one_s_own_take_the_gate_s_place(visit, server):
    page = visit(server.url)
    scores_of(page, "a #1", "b #3")
    assert "weights" not in server.state.seen[-1]
    page.click("#steer summary")
    page.click("#from-gate")
    assert float(page.input_value("#weight-0")) == pytest.approx(WEIGHTS[0], rel=1e-2)
    page.click("#unsteer")
    page.fill("#weight-1", "2")
    assert page.locator("#stale").is_visible()
    page.click("#score")
    page.get_by_role("columnheader", name="your weight").wait_for()
    assert server.state.seen[-1]["weights"] == {OBJECTIVES[1]: 2}
    rows = cells(page, "Raw scores; the best of each model is marked")
    assert [row[1] for row in rows[1:3]] == ["-2.000\nbest", "-6.000\nrank 2"]
    assert not page.locator("#stale").is_visible()


def test_a_key_is_asked_for_and_kept_in_memory_alone(visit):
    with serving(gateway(KEY)) as url:
        page = visit(url)
        page.locator("#locked").wait_for()
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("guess")
        page.keyboard.press("Enter")
        page.get_by_text("The server refused this key").wait_for()
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        scores_of(page, "a #1", "b #2")
        assert not page.locator("#locked").is_visible()
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
        assert page.evaluate("document.cookie") == ""
        assert "sesame" not in page.url
        page.reload()
        page.locator("#locked").wait_for()
        page.close()


def test_markup_is_text_wherever_it_comes_from(visit, server):
    page = visit(server.url)
    scores_of(page, f"{HOSTILE} #1", f"<script>{HOSTILE}</script> #2", prompt=HOSTILE)
    assert HOSTILE in page.locator("#results").inner_text()
    assert HOSTILE in page.locator("#models").inner_text()
    assert page.locator("img").count() == 0
    assert page.title() == "Score responses: Panoply"
    assert all(address.startswith(server.url) for address in page.asked if address != "data:,")
    assert page.said == []


def test_the_page_forbids_code_that_is_not_its_own(visit, server):
    page = visit(server.url)
    script = "document.body.append(Object.assign(document.createElement('script'), {textContent: "
    with pytest.raises(Exception, match="TrustedScript"):
        page.evaluate(script + "'document.title = 1'}))")
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")


def link_to(*responses, **more):
    prompt = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": f"Why? {HOSTILE}"},
    ]
    return {"items": [{"prompt": prompt, "responses": responses}], **more}


def test_a_link_brings_the_form_back(visit, server):
    page = visit(server.url)
    fill(page, "a #1", "b #2", "c é #3", models=("gated", "said"), prompt=f"Why? {HOSTILE}")
    page.click("#steer summary")
    page.fill("#weight-2", "0.5")
    page.click("#link")
    page.get_by_text("it holds the texts").wait_for()
    other = visit(page.url)
    other.locator("#models li").first.wait_for()
    other.click("#score")
    other.locator("#results table").first.wait_for()
    sent = server.state.seen[-1]
    assert sent["models"] == ["gated", "said"]
    assert sent["items"][0]["responses"] == ["a #1", "b #2", "c é #3"]
    assert sent["items"][0]["prompt"][0]["content"] == f"Why? {HOSTILE}"
    assert sent["weights"] == {OBJECTIVES[2]: 0.5}


@pytest.mark.parametrize("hash", ["%", "1", "null", quote('{"items": [{"prompt": 3}]}')])
def test_a_broken_link_gives_an_empty_form(visit, server, hash):
    page = visit(f"{server.url}/#{hash}")
    assert page.locator("#said").inner_text() == "The link cannot be read."
    assert page.locator("#responses textarea").count() == 2
    assert page.said == []


def test_turns_are_added_and_removed_and_the_last_one_is_no_assistant_s(visit, server):
    page = visit(server.url)
    fill(page, "a #1", "b #2")
    page.click("#add-turn")
    page.keyboard.type("Because.")
    page.click("#score")
    assert "last turn" in page.locator("#said").inner_text()
    page.click("#add-turn")
    page.click("#score")
    assert page.locator("#said").inner_text() == "Text of turn 3 is empty."
    assert page.evaluate("document.activeElement.getAttribute('aria-invalid')") == "true"
    page.keyboard.type("And then?")
    page.get_by_role("button", name="Remove turn 1").click()
    page.get_by_label("Role of turn 1").select_option("system")
    page.click("#score")
    page.locator("#results table").first.wait_for()
    assert server.state.seen[-1]["items"][0]["prompt"] == [
        {"role": "system", "content": "Because."},
        {"role": "user", "content": "And then?"},
    ]


def test_a_refusal_is_said_in_the_server_s_words(visit, server):
    page = visit(server.url)
    fill(page, "a #1", "b #2")
    server.state.refusal = RequestError("the queue is full", 503, 5)
    try:
        page.click("#score")
        page.get_by_text("503").wait_for()
    finally:
        server.state.refusal = None
    message = "The server refused (503): the queue is full: try again in 5 s"
    assert page.locator("#said").inner_text() == message
    assert page.locator("#results table").count() == 0


def test_it_works_under_a_route_prefix(visit):
    app = FastAPI()
    app.mount("/rewards", gateway())
    with serving(app) as url:
        page = visit(f"{url}/rewards/")
        scores_of(page, "a #1", "b #2")
        assert all(f"{url}/rewards/" in address for address in page.asked if address != "data:,")
        page.close()


KINDS = [
    listed("pairs", "judge", limits={"seconds": 120.0}, cost={"for_a_million_tokens_read": 2.5}),
    listed(
        "both",
        "composite",
        parts={"model": {"kind": "model"}, "length": {"kind": "function"}},
        objectives=[{"name": name, "low": None, "high": None} for name in ("model", "length")],
    ),
    listed("math", "process", limits={"response_tokens": 192}, cost={"parameters": 1_500_000}),
]


def verdict(*shown, text="Both are short.", **values):
    return JudgeVerdict(text, values, shown)


def answer_of_each_kind(request):
    """A judge of two pairs, of which the order decides one; a composite; a model of steps."""
    firm = [verdict(0, 1, better=0.9), verdict(1, 0, text=HOSTILE, better=0.25)]
    torn = [verdict(0, 2, better=0.75), verdict(2, 0, text="word " * 60, better=1.0)]
    judged = [
        Details(verdicts=(*firm, *torn), usage={"calls": 1.5, "cost": 0.004}),
        Details(verdicts=tuple(firm), usage={"calls": 1.0, "cost": 0.002}),
        Details(verdicts=tuple(torn), usage={"calls": 1.5, "cost": 0.004}),
    ]
    rows = {
        "pairs": [Score(score=1 - i / 2, details=each) for i, each in enumerate(judged)],
        "both": [
            scored(i, objectives={"model": i + 0.5, "length": 3.0}, spread=i / 3) for i in range(3)
        ],
        "math": [
            scored(0.25, steps=(0.5, 0.25)),
            Score(error="step 2 has no score", details=Details(steps=(0.75, None))),
            scored(1.0, steps=(1.0,)),
        ],
    }
    provenance = {"steps": "min of steps that end at 'blank_lines'"}
    answers = [
        ModelAnswer(model=model, items=(tuple(rows[model]),), provenance=provenance)
        for model in request.models
    ]
    return ScoreAnswer(models=tuple(answers), id="7", created=1_700_000_000)


def test_what_stands_behind_a_score_is_shown_for_each_kind_of_scorer(visit):
    with serving(gateway(listing=KINDS, answered=answer_of_each_kind)) as url:
        page = visit(url)
        scores_of(page, "One.\n\nTwo.", "One.\n\nTwo.", "One.", models=("pairs", "both", "math"))
        terms = page.locator("#models li").all_inner_texts()
        assert "limits: 120 seconds; cost: 2.5 for a million tokens read" in terms[0]
        assert "of model (model), length (function)" in terms[1]
        assert "limits: 192 response tokens; cost: 1,500,000 parameters" in terms[2]

        shown = cells(page, "Verdicts of pairs")[1:]
        assert [row[0].split() for row in shown] == [["A", "B"], ["B", "A"], ["A", "C"], ["C", "A"]]
        outcomes = [" ".join(row[1].split()) for row in shown]
        assert outcomes[:2] == ["A wins, 0.90", "A wins, 0.75"]
        assert outcomes[2:] == ["A wins, 0.75 the order decides", "C wins, 1.00 the order decides"]
        assert shown[1][2] == HOSTILE
        assert page.get_by_text("they agree on 1 of 2").count() == 1
        page.locator("details", has_text="word word").locator("summary").click()
        assert "word " * 59 in page.locator(".words").nth(3).inner_text()

        parts = cells(page, "Objectives of both")
        assert parts[0] == ["part", "score of the part"]
        assert {row[0].split("\n")[0] for row in parts[1:]} == {"model", "length"}

        steps = cells(page, "Steps of math")[1:]
        assert [row[0].split() for row in steps] == [
            *(["A", "1", "One."], ["A", "2", "Two."], ["B", "1", "One."], ["B", "2", "Two."]),
            ["C", "1", "One."],
        ]
        assert [row[2] for row in steps] == ["0.500", "0.250", "0.750", "cut", "1.000"]
        assert page.get_by_text("The score is the min of steps").count() == 1
        costs = {
            row[0]: row[1:] for row in cells(page, "Raw scores; the best of each model is marked")
        }
        assert costs["judge's answers"] == ["4", "-", "-"]
        assert costs["cost"] == ["0.01", "-", "-"]
        assert page.get_by_text("members deviate by").all_inner_texts() == [
            "rank 3, members deviate by 0",
            "rank 2, members deviate by 0.333",
            "best, members deviate by 0.667",
        ]
        assert page.said == []
        page.set_viewport_size({"width": 320, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_the_choice_of_a_bandit_is_shown_with_its_propensity_and_id(visit):
    with serving(gateway(listing=[listed("chooser", "bandit", default=True)])) as url:
        page = visit(url)
        entry = {"score": 0.5, "arm": "skywork", "propensity": 0.625, "decision": "d-17"}
        answer = {
            "id": "7",
            "created": 0,
            "results": [{"model": "chooser", "items": [[entry] * 2]}],
        }
        page.route("**/v1/rewards", lambda route: route.fulfill(json=answer))
        scores_of(page, "a", "b", models=("chooser",))
        assert cells(page, "Arms of chooser")[1:] == [
            ["A", "skywork", "0.625", "d-17"],
            ["B", "skywork", "0.625", "d-17"],
        ]
