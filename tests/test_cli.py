"""The console command: what runs in one process, on small models."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from transformers import AutoTokenizer

from panoply import cli
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.push import push_to_hub

ROWS = [
    {"prompt": f"Say {number}.", "chosen": f"{number}!", "rejected": f"No {number}."}
    for number in range(6)
]


@pytest.fixture
def panoply(monkeypatch, capsys):
    """Returns the exit code and the output of a command line."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["panoply", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().out

    return run


def test_scores_are_those_of_the_library(panoply, small_models, tmp_path):
    folder = small_models["scalar"]
    file = tmp_path / "items.jsonl"
    prompt = [{"role": "user", "content": "Say 1."}]
    file.write_text(json.dumps({"prompt": "Say 1.", "responses": ["1!", "No."]}) + "\n")
    code, out = panoply("score", folder, "--file", file)
    expected = load_reward_model(folder).score(prompt, ["1!", "No."]).tolist()
    assert (code, json.loads(out)) == (0, {"scores": expected})
    by_flags = panoply("score", folder, "--prompt", "Say 1.", "--responses", "1!", "No.")
    assert by_flags == (0, out)


def test_an_evaluation_counts_the_pairs_that_the_model_decides_rightly(
    panoply, small_models, tmp_path
):
    folder, pairs, out = small_models["scalar"], tmp_path / "own.jsonl", tmp_path / "out.json"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    code, text = panoply("evaluate", folder, "--pairs", pairs, "--out", out)
    assert code == 0
    assert "own" in text
    model, margins = load_reward_model(folder), []
    for row in ROWS:
        prompt = [{"role": "user", "content": row["prompt"]}]
        chosen, rejected = model.score(prompt, [row["chosen"], row["rejected"]])
        margins.append(chosen - rejected)
    report = json.loads(out.read_text())["pairs"]["score"]
    assert report["accuracy"] == pytest.approx(np.mean(np.array(margins) > 0))


def test_a_look_shows_rows_by_role_or_as_the_template_of_a_model_writes_them(
    panoply, tiny_model_folder, tmp_path
):
    pairs = tmp_path / "own.jsonl"
    rows = [*ROWS, {"prompt": "Say 7.", "chosen": "7!", "rejected": ""}]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, text = panoply("inspect", pairs, "--rows", 1)
    assert code == 0
    assert "  user: Say 0.\n  chosen: 0!\n  rejected: No 0." in text
    assert "empty response" in text
    assert "own.jsonl:7" in text
    code, text = panoply("inspect", pairs, "--rows", 1, "--model", tiny_model_folder)
    turns = [{"role": "user", "content": "Say 0."}, {"role": "assistant", "content": "0!"}]
    written = AutoTokenizer.from_pretrained(tiny_model_folder).apply_chat_template(
        turns, tokenize=False
    )
    assert code == 0
    assert f"  chosen:\n{written}" in text
    assert "user: Say 0." not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("score", "nowhere", "--prompt", "a"), "name `--file FILE`, or"),
        (("score", "nowhere", "--prompt", "a", "--responses", "b"), "nowhere"),
        (("evaluate", "nowhere", "--pairs", "none.jsonl"), "'none.jsonl' does not exist"),
        (("inspect",), "`files` must be at least one file"),
        (("inspect", "none.jsonl"), "'none.jsonl' does not exist"),
        (("inspect", __file__), "ends in none of .parquet"),
        (("push", "nowhere", "me/mine"), "has no config.json"),
        (("push", "nowhere", "mine"), "'mine' is no hub name"),
        (("export", "nowhere", "--out", "there"), "nowhere"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(panoply, words, message):
    code, out = panoply(*words)
    assert code == 2
    assert message in out
    assert out.count("\n") == 1


class Hub(BaseHTTPRequestHandler):
    """Stands in for the hub: takes a repository, files and a commit, and keeps what it was sent."""

    def answer(self, status, values):
        """Sends JSON."""
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        """Holds no repository yet."""
        self.answer(404, {"error": "not found"})

    def do_POST(self):
        """Keeps the request, and says what the hub says."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.requests.append((self.path, body))
        url = f"http://127.0.0.1:{self.server.server_port}/me/mine"
        if self.server.refuses:
            self.answer(401, {"error": "no token"})
        elif self.path.endswith("/repos/create"):
            self.answer(200, {"url": url})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            self.answer(200, {"files": [mode | {"shouldIgnore": False} for mode in modes]})
        else:
            self.answer(200, {"commitUrl": f"{url}/commit/a", "commitOid": "a" * 40})

    def log_message(self, *_):
        """Prints nothing."""


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.refuses = [], False
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", endpoint, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_and_its_card_are_uploaded_and_nothing_else_of_the_folder(hub, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "README.md", "tokenizer.json", "notes.secret", "train.parquet"):
        (folder / name).write_text("{}")
    url = push_to_hub(folder, "me/mine", private=True)
    assert url.endswith("/me/mine")
    create, *_, commit = hub.requests
    assert json.loads(create[1])["visibility"] == "private"
    lines = [json.loads(line) for line in commit[1].splitlines()]
    sent = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert sent == {"config.json", "README.md", "tokenizer.json"}
    hub.refuses = True
    with pytest.raises(OSError, match=r"the hub refused 'me/mine' \(status 401\): log in"):
        push_to_hub(folder, "me/mine", private=True)
