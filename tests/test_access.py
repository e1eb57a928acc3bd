"""Who asks is known before what is asked is read: keys, rates, origins, slow and hostile bodies."""

import asyncio
import gzip
import json
import os
import socket
import threading
import time

import httpx2
import pytest
import uvicorn

from actors import intake as intake_module
from actors.slow_clients import impatient
from panoply.serve.access import KeyRing, RateLimits
from panoply.wire.request import RequestError
from panoply.wire.routes import ENDPOINTS
from tests.builders.app_server import serving as serving_app
from tests.builders.gateway import Formula, serving

QUERY = {"query": ["x#1"]}
EVERY_PATH = sorted({path for endpoint in ENDPOINTS for path in endpoint.paths})


def ask(app, path, *, payload=None, body=None, method="POST", server=None, **headers):
    """An answer of the app; a body that is a list is sent piece by piece, and never ends."""

    async def pieces():
        for piece in body:
            yield piece
        await asyncio.sleep(60)

    async def run():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url=server or "http://t") as client:
            content = pieces() if isinstance(body, list) else body
            if payload is not None:
                content = json.dumps(payload).encode()
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(run())


@pytest.mark.parametrize("path", EVERY_PATH)
def test_no_request_without_its_key_reaches_a_model_and_no_body_is_read_for_it(path):
    formula = Formula("a")
    app, _ = serving(formula, keys={"a": "opensesame"})
    for place in (path, f"/models/a{path}".rstrip("/")):
        for headers in ({}, {"Authorization": "Bearer x"}, {"X-API-Key": "opensesam"}):
            answer = ask(app, place, body=[b"{"], **headers)  # a body that never ends
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert "opensesame" not in answer.text
    assert formula.calls == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer opensesame"},
        {"Authorization": "bearer opensesame"},
        {"Authorization": "BEARER  opensesame"},
        {"Authorization": "opensesame"},
        {"X-API-Key": "opensesame"},
        {"X-API-Key": "opensesame", "Authorization": "Basic cHJveHk6cHJveHk="},
        {"X-API-Key": "opensesame", "Authorization": "Bearer of-a-proxy"},
        {"aUTHORIZATION": "bEARER\topensesame "},
        {"x-api-key": " opensesame "},
    ],
)
def test_a_key_is_found_wherever_a_client_or_a_proxy_puts_it(headers):
    app, _ = serving(Formula("a"), keys={"a": "opensesame"})
    assert ask(app, "/get_reward", payload=QUERY, **headers).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/get_reward?api_key=opensesame&access_token=opensesame", {}, 401),
        ("/get_reward", {"Authorization": "Bearer"}, 401),
        ("/get_reward", {"Authorization": "Bearer  ", "X-API-Key": ""}, 401),
        ("/get_reward", {"Authorization": "Basic opensesame"}, 401),
        ("/get_reward", {"Authorization": "Bearer opensesame, Bearer x"}, 401),
        ("/get_reward", {"X_API_Key": "opensesame"}, 401),
        ("/get_reward", {"Cookie": "api_key=opensesame"}, 401),
        ("//models/a/get_reward", {}, 404),
        ("/models//get_reward", {}, 404),
        ("/models/a//get_reward", {}, 404),
        ("/models/%61/get_reward", {}, 401),
        ("/models/%2561/get_reward", {}, 404),
        ("/models/A/get_reward", {}, 404),
        ("/Models/a/get_reward", {}, 404),
        ("/models/a;b/get_reward", {}, 404),
        ("/models/b%2f..%2fa/get_reward", {}, 404),
        ("/models/%2e%2e/get_reward", {}, 404),
        ("/models/a%0d%0aX-API-Key:%20opensesame/get_reward", {}, 404),
        ("/get_reward%00", {}, 404),
        ("/get_reward/", {}, 401),
        ("/models/a/get_reward//", {}, 401),
        ("/models/a/", {}, 401),
    ],
)
def test_no_other_place_of_a_key_and_no_trick_of_a_path_opens_a_model(path, headers, status):
    formula = Formula("a")
    app, _ = serving(formula, Formula("b"), keys={"a": "opensesame", "b": "another"})
    answer = ask(app, path, payload=QUERY, **headers)
    assert answer.status_code == status
    assert "location" not in answer.headers
    assert formula.calls == []


def test_a_slash_behind_a_path_is_taken_for_none_and_no_redirect_names_another_scheme_or_host():
    formula = Formula("a")
    app, _ = serving(formula)
    for path in ("/get_reward/", "/models/a/get_reward/", "/models/a/predict//"):
        payload = {"inputs": ["x#1"]} if "predict" in path else QUERY
        answer = ask(app, path, payload=payload, Host="rewards.example.com")
        assert answer.status_code == 200, path
    assert len(formula.calls) == 3
    assert ask(app, "/", method="GET").status_code == 200


def test_a_server_below_a_path_is_found_without_its_slash_and_takes_paths_below_it():
    formula = Formula("a")
    app, _ = serving(formula)

    async def run():
        transport = httpx2.ASGITransport(app=app, root_path="/servers/b")
        async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
            moved = await client.get("/servers/b")
            page = await client.get("/servers/b/")
            scored = await client.post("/servers/b/get_reward/", json=QUERY)
            return moved, page, scored

    moved, page, scored = asyncio.run(run())
    assert (moved.status_code, moved.headers["location"]) == (307, "b/")
    assert "text/html" in page.headers["content-type"]
    assert scored.json()["rewards"] == [1.0]


def test_white_space_around_a_key_is_none_of_it_and_a_blank_key_is_none(monkeypatch):
    monkeypatch.setenv("SECRET", " opensesame\n")
    ring = KeyRing({"m": ("SECRET",)})
    assert ring.caller({"x-api-key": "opensesame"}).opens == {"m"}
    monkeypatch.setenv("SECRET", " \n")
    with pytest.raises(ValueError, match="holds no API key"):
        KeyRing({"m": ("SECRET",)})


def test_a_compressed_body_is_not_inflated_and_says_so():
    formula = Formula("a")
    app, _ = serving(formula)
    bomb = gzip.compress(b" " * 20_000_000 + b"{}")
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        answer = ask(app, "/get_reward", body=bomb, **{"Content-Encoding": encoding})
        assert (answer.status_code, "as it is" in answer.text) == (415, True), encoding
    answer = ask(app, "/get_reward", payload=QUERY, **{"Content-Encoding": "identity"})
    assert answer.status_code == 200
    assert len(formula.calls) == 1


def test_each_of_several_keys_opens_a_model_and_only_its_own_models():
    app, _ = serving(Formula("a"), Formula("b"), keys={"a": ("one", "two"), "b": "three"})
    items = [{"prompt": [{"role": "user", "content": "q"}], "responses": ["x#1"]}]
    for key, models, status in (
        ("one", ["a"], 200),
        ("two", ["a"], 200),
        ("three", ["b"], 200),
        ("three", ["a", "b"], 401),
        ("one", ["b"], 401),
    ):
        payload = {"models": models, "items": items}
        answer = ask(app, "/v1/rewards", payload=payload, Authorization=f"Bearer {key}")
        assert answer.status_code == status, (key, models)


def test_keys_in_a_file_rotate_without_a_restart(tmp_path):
    file = tmp_path / "team-a"
    file.write_text("old\n")
    ring = KeyRing({"m": (str(file),)})
    assert ring.caller({"x-api-key": "old"}).name == "team-a"
    file.write_text("new\nold\n")
    ring.reload()
    assert all(ring.caller({"x-api-key": key}).opens == {"m"} for key in ("old", "new"))
    file.write_text("new\n")
    ring.reload()
    assert not ring.caller({"x-api-key": "old"}).opens
    file.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        ring.reload()
    assert ring.caller({"x-api-key": "new"}).opens  # what was known stays
    file.write_text("")
    ring.reload()
    assert not ring.caller({"x-api-key": "new"}).opens
    assert not ring.caller({"x-api-key": ""}).opens


def test_a_server_does_not_start_with_a_key_that_nobody_has(tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("\n")
    os.mkfifo(tmp_path / "pipe")
    places = ("NO_SUCH_VARIABLE", str(empty), str(tmp_path / "missing"), str(tmp_path / "pipe"))
    for place in (*places, str(tmp_path), "/dev/zero"):
        with pytest.raises(ValueError, match="key"):
            KeyRing({"m": (place,)})


def test_nothing_that_is_printed_of_a_ring_holds_a_key(tmp_path):
    file = tmp_path / "keys"
    file.write_text("opensesame")
    ring = KeyRing({"m": (str(file),)})
    assert "opensesame" not in repr(vars(ring)) + repr(ring.caller({"x-api-key": "opensesame"}))


def test_a_key_s_rate_is_counted_in_characters_and_by_key():
    now = [0.0]
    rates = RateLimits(10.0, lambda: now[0])
    ring = KeyRing({})
    caller = ring.caller({})
    rates.check(caller)
    rates.charge(caller, 130)  # a burst of a hundred passes, and is overdrawn by one request
    with pytest.raises(RequestError) as refused:
        rates.check(caller)
    assert (refused.value.status, refused.value.retry_after) == (429, 3.0)
    now[0] = 3.0
    rates.check(caller)
    app, _ = serving(Formula("a"), keys={"a": ("one", "two")}, rate=1.0, clock=lambda: now[0])
    statuses = []
    for key in ("one", "one", "two"):
        payload = {"query": ["x" * 50 + "#1"]}
        answer = ask(app, "/get_reward", payload=payload, Authorization=f"Bearer {key}")
        statuses.append(answer.status_code)
    assert statuses == [200, 429, 200]
    assert "retry-after" not in answer.headers


def test_a_stranger_s_body_is_small_unless_the_path_names_an_open_model(monkeypatch):
    monkeypatch.setattr(intake_module, "STRANGER_BYTES", 100)
    app, _ = serving(Formula("a"), Formula("b"), keys={"b": "opensesame"})
    payload = {"query": ["x" * 200 + "#1"]}
    assert ask(app, "/get_reward", payload=payload).status_code == 413
    assert ask(app, "/models/a/get_reward", payload=payload).status_code == 200
    key = {"Authorization": "Bearer opensesame"}
    assert ask(app, "/get_reward", payload=payload, **key).status_code == 200


def test_a_body_that_does_not_come_is_given_up_and_its_connection_closed(monkeypatch):
    monkeypatch.setattr(intake_module, "BODY_SECONDS", 0.1)
    app, _ = serving(Formula("a"))
    answer = ask(app, "/get_reward", body=[b'{"query": ["x'])
    assert answer.status_code == 408
    assert answer.headers["connection"] == "close"
    assert "not sent within 0.1 s" in answer.json()["error"]


def test_half_heads_and_half_bodies_are_closed_and_whole_requests_are_answered(monkeypatch):
    monkeypatch.setattr(intake_module, "BODY_SECONDS", 0.3)
    app, _ = serving(Formula("a"))
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    protocol = impatient(AutoHTTPProtocol, 0.3)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=protocol, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        address = server.servers[0].sockets[0].getsockname()
        starts = (b"POST / HTTP/1.1\r\nHost: ", b"", b"POST /get_reward HTTP/1.1\r\n"
                  b"Host: localhost\r\nContent-Length: 99\r\n\r\n{")  # fmt: skip
        halves = [socket.create_connection(address) for _ in starts]
        for half, start in zip(halves, starts, strict=True):
            half.settimeout(20)
            half.sendall(start)
        with httpx2.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
            assert client.post("/get_reward", json=QUERY).status_code == 200
            answers = [half.recv(9999) for half in halves]
            assert answers[:2] == [b"", b""]
            assert answers[2].startswith(b"HTTP/1.1 408")
            assert halves[2].recv(9999) in (b"", answers[2])
            time.sleep(0.4)  # an idle connection that was used is kept
            assert client.post("/get_reward", json=QUERY).status_code == 200
    finally:
        server.should_exit = True
        thread.join()


HOSTILE = {
    "details": b'{"items":[],"details":[' + b'"x",' * 3_900_000 + b'"x"]}',
    "lists": b'{"items":[' + b"[]," * 5_000_000 + b"[]]}",
    "keys": b"{" + b",".join(b'"k%d":1' % i for i in range(900_000)) + b"}",
    "numbers": b'{"input_ids":[' + b"1," * 7_500_000 + b"1]}",
    "texts": b'{"query":[' + b'"a",' * 3_700_000 + b'"a"]}',
    "quotes": b'{"query":["' + b'\\"' * 7_500_000 + b'"]}',
    "commas": b'{"query":["' + b"a, {[b]}" * 1_900_000 + b'"]}',
}


def answered_in(client):
    """Seconds until the server says that it lives."""
    start = time.monotonic()
    assert client.get("/health").status_code == 200
    return time.monotonic() - start


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_body_of_fifteen_megabytes_leaves_the_gateway_answering(kind):
    app, _ = serving(Formula("a"))
    path = "/classify" if kind == "numbers" else "/get_reward"
    with serving_app(app) as url, httpx2.Client(base_url=url, timeout=60) as client:
        usual = max(answered_in(client) for _ in range(20))
        done = threading.Event()
        sent = []

        def send():
            sent.append(httpx2.post(f"{url}{path}", content=HOSTILE[kind], timeout=60))
            done.set()

        threading.Thread(target=send).start()
        slowest = 0.0
        while not done.is_set():
            slowest = max(slowest, answered_in(client))
        assert sent[0].status_code == 413
        assert len(sent[0].content) < 1000
    assert slowest < 0.5 + 5 * usual, slowest


def test_the_longest_name_is_not_sent_back():
    app, _ = serving(Formula("a"))
    long = "n" * 900_000
    for path, payload in (
        ("/classify", {"model": long, "input": "x#1"}),
        ("/v1/rewards", {"items": [], "models": [long]}),
        ("/get_reward", {"query": ["x"], long: 1}),
        ("/v1/rewards", {"items": [], "models": ["a"] * 60}),
    ):
        answer = ask(app, path, payload=payload)
        assert 400 <= answer.status_code < 500
        assert len(answer.content) < 5000, path


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Content-Type": "text/plain"}, 200),  # no browser without an Origin
        ({"Content-Type": "application/x-www-form-urlencoded"}, 200),  # curl -d
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "rebound.evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Origin": "http://[localhost"}, 403),
        ({"Host": "127.0.0.1@evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "2130706433"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": "LOCALHOST.:8000"}, 200),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        (
            {
                "Host": "localhost:1",
                "Origin": "http://localhost:1",
                "Content-Type": "application/json",
            },
            200,
        ),
        (
            {"Host": "localhost:1", "Origin": "http://localhost:1", "Content-Type": "text/plain"},
            403,
        ),
    ],
)
def test_pages_of_other_origins_and_rebound_names_are_refused_and_clients_are_not(headers, status):
    formula = Formula("a")
    app, _ = serving(formula)
    answer = ask(app, "/get_reward", payload=QUERY, server="http://127.0.0.1", **headers)
    assert answer.status_code == status
    assert len(formula.calls) == (status == 200)


GETS = ["/", "/docs", "/openapi.json", "/v1/models", "/no", "/health"]


@pytest.mark.parametrize("path", [*GETS, "/ready", "/info", "/metrics", "/page/page.js"])
def test_a_page_behind_a_rebound_name_reads_nothing_of_a_server_on_loopback(path):
    app, _ = serving(Formula("a"))
    server = "http://127.0.0.1"
    assert ask(app, path, method="GET", server=server).status_code in (200, 404)
    answer = ask(app, path, method="GET", server=server, Host="rebound.evil.example")
    assert answer.status_code == 421
    assert "is no name of this server" in answer.json()["error"]["message"]
    assert ask(app, path, method="GET", Host="rewards.example.com").status_code in (200, 404)


@pytest.mark.parametrize("path", GETS)
def test_every_answer_says_that_its_type_holds_and_no_page_runs_a_script_of_others(path):
    app, _ = serving(Formula("a"))
    answer = ask(app, path, method="GET")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "http://" not in answer.text.replace("http://www.w3.org", "")
    assert "https://" not in answer.text
    if path == "/docs":
        assert "<script" not in answer.text
        assert "/v1/rewards" in answer.text
        assert "RewardsPayload" in answer.text
