"""The grammar of WHERE: one parser, and a class for each kind of scorer."""

import asyncio
import json
from dataclasses import asdict
from typing import get_args

import pytest

from panoply.config.doctor import DoctorConfig
from panoply.config.serve import ServedModelConfig
from panoply.scorers.endpoint import EndpointScorer
from panoply.scorers.function import FunctionScorer
from panoply.scorers.where import (
    BanditFile,
    CombinedScorers,
    LocalModel,
    PythonFunction,
    RecordedScores,
    RemoteEndpoint,
    Where,
    local_models,
    open_scorer,
    parse_where,
)
from panoply.secret import NO_KEYS
from panoply.wire.request import Chat, Score
from tests.builders.judge_server import judge_file, judging
from tests.builders.models import publish_process, save_small
from tests.builders.tokenizers import chat_tokenizer
from tests.builders.wire_server import serving
from workflows.cluster.arms import serve_arms
from workflows.cluster.evaluated import open_evaluated
from workflows.cluster.models import model_app_with_keys
from workflows.cluster.resolve_model import model_in_process, resolve_model
from workflows.doctor import find


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("runs/embedded/model", LocalModel("runs/embedded/model")),
        ("Skywork/Reward-V2", LocalModel("Skywork/Reward-V2")),
        ("models:/armorm@live", LocalModel("models:/armorm@live")),
        ("function:package.module:name", PythonFunction("package.module:name")),
        ("function:dir/file.py:name", PythonFunction("dir/file.py:name")),
        ("replay:scores.parquet", RecordedScores("scores.parquet")),
        ("combine:dir/c.yaml", CombinedScorers("dir/c.yaml")),
        ("bandit:dir/b.yaml", BanditFile("dir/b.yaml")),
        ("vllm+http://host:8000#m", RemoteEndpoint("http://host:8000", "vllm", "m")),
        ("tei+https://host/rerank", RemoteEndpoint("https://host/rerank", "tei", "")),
        ("http://host:8000", RemoteEndpoint("http://host:8000", "panoply", "")),
        (
            "vllm+https://host/x?a=b&key_variable=RM_KEY#m",
            RemoteEndpoint("https://host/x?a=b", "vllm", "m", "RM_KEY"),
        ),
        (
            "openrlhf+http://host:5000?template=chatml&key_variable=RM_KEY",
            RemoteEndpoint("http://host:5000", "openrlhf", "", "RM_KEY", "chatml"),
        ),
    ],
)
def test_each_form_of_where_names_its_kind_of_scorer(where, expected):
    assert parse_where(where) == expected


def test_every_kind_has_a_name_of_its_own():
    kinds = [kind.kind for kind in get_args(Where)]
    assert sorted(kinds) == sorted(set(kinds))
    assert {"bandit", "composite", "judge", "model"} < set(kinds)


def test_a_scorer_is_opened_by_its_where_and_a_wrong_one_is_named():
    def opened(where):
        return open_scorer(ServedModelConfig(name="m", where=where))

    assert isinstance(opened("function:panoply.serve.verifiers:length"), FunctionScorer)
    assert isinstance(opened("sglang+http://host:8000"), EndpointScorer)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        opened("replay:nowhere.parquet")
    with pytest.raises(ValueError, match=r"`dialect`.*'grpc'"):
        opened("grpc+http://host:8000")
    with pytest.raises(ValueError, match="'m' is a reward model"):
        opened("runs/embedded/model")


def test_the_key_of_an_endpoint_is_looked_up_on_the_node_that_asks_it():
    config = ServedModelConfig(name="m", where="http://host?key_variable=NOT_SET_HERE")
    assert isinstance(open_scorer(config, on_node=False), EndpointScorer)
    with pytest.raises(ValueError, match="NOT_SET_HERE"):
        open_scorer(config)


def test_an_endpoint_of_text_gets_messages_in_the_template_that_its_address_names():
    item = Chat(({"role": "user", "content": "How?"},), ("So.",))
    with serving((200, {}, {"rewards": [0.25]})) as (address, seen):
        where = f"openrlhf+{address}?template=chatml"
        scorer = open_scorer(ServedModelConfig(name="m", where=where))
        assert asyncio.run(scorer.score([item])) == ((Score(score=0.25),),)
    [(path, _, body, _)] = seen
    opening = "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n"
    assert path == "/get_reward"
    assert body["query"] == [f"{opening}So.<|im_end|>\n"]


def test_an_unknown_family_of_templates_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"`template` of 'sglang\+http://h' .*'chatml'.*'nothing'"):
        parse_where("sglang+http://h?template=nothing")


ITEM = Chat(({"role": "user", "content": "Why?"},), ("Because it is so.", "No."))
COMPOSITE = """
parts:
  model: {where: model}
  length: {where: "function:panoply.serve.verifiers:length"}
rule: {kind: sum}
scale: raw
"""


def replied(body):
    """A judge's verdict to messages, else the scores of our own protocol: lengths."""
    if "messages" in body:
        return json.dumps({"reason": "", "score": 7})
    items = [[{"score": len(text)} for text in item["responses"]] for item in body["items"]]
    return 200, {}, {"id": "1", "created": 0, "results": [{"model": "m", "items": items}]}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A WHERE of each kind, by its kind; the servers among them run."""
    folder = tmp_path_factory.mktemp("places")
    save_small(folder / "model", chat_tokenizer())
    publish_process(folder / "process")
    rows = [{"prompt": "Why?", "response": text, "score": len(text)} for text in ITEM.responses]
    (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "both.yaml").write_text(COMPOSITE)
    with judging(replied) as (address, _):
        judge = judge_file(folder, address, prompt="{{ response }}", cache=False)
        yield {
            "model": str(folder / "model"),
            "process": f"{folder / 'process'}?steps=product",
            "function": "function:panoply.serve.verifiers:length",
            "remote": f"{address.removesuffix('/v1')}#m",
            "replay": f"replay:{folder / 'scores.jsonl'}",
            "judge": f"judge:{judge}",
            "composite": f"combine:{folder / 'both.yaml'}",
        }


def test_every_kind_is_taken_by_every_command_that_scores(places):
    kinds = {parse_where(where).kind for where in places.values()}
    assert kinds == {kind.kind for kind in get_args(Where)} - {"bandit"}
    resolved = {
        name: resolve_model(ServedModelConfig(name=name, where=where))
        for name, where in places.items()
    }
    for name, config in resolved.items():
        opened = open_evaluated(places[name])  # jobs.evaluate, cross_eval and calibrate
        assert (opened.folder is not None) == (name in ("model", "process"))
        assert model_app_with_keys(asdict(config), NO_KEYS)  # jobs.serve
        [row] = asyncio.run(open_scorer(config, open_model=model_in_process).score([ITEM]))
        assert [score.error for score in row] == ["", ""], name
    # jobs.laser and jobs.best_of_n; those with models run as applications of a cluster
    arms = [config for config in resolved.values() if not local_models(config)]
    with serve_arms(arms, 20.0, "where") as asked:
        lengths = [float(len(text)) for text in ITEM.responses]
        for config in arms:
            scores = asked.ask(config.name, ITEM).result()
            assert not scores.failure
            expected = [7.0, 7.0] if config.name == "judge" else lengths
            assert list(scores.score_n) == expected


@pytest.mark.parametrize(
    ("kind", "checks"),
    [
        ("function", ["answers", "asked again", "alone", "good above poor", "time"]),
        ("remote", ["answers", "asked again", "alone", "good above poor", "time"]),
        ("replay", ["table", "scale"]),
        ("judge", ["verdicts", "good above poor", "cost", "injection"]),
        (
            "composite",
            ["fitted numbers", "part model", "part length", "composite", "good above poor"],
        ),
    ],
)
def test_the_doctor_examines_every_kind(places, kind, checks):
    findings = find(DoctorConfig(model=places[kind]))
    assert [finding["check"] for finding in findings] == checks
    assert "fail" not in [finding["verdict"] for finding in findings]


def test_the_doctor_tells_a_scorer_that_fails_or_changes_its_mind(tmp_path):
    (tmp_path / "odd.py").write_text(
        "import itertools\n"
        "calls = itertools.count()\n"
        "def moody(response):\n    return float(next(calls))\n"
        "def silent(response):\n    return None\n"
    )
    moody, silent = (
        {each["check"]: each for each in find(DoctorConfig(model=f"function:{file}"))}
        for file in (f"{tmp_path / 'odd.py'}:moody", f"{tmp_path / 'odd.py'}:silent")
    )
    assert moody["asked again"]["verdict"] == moody["alone"]["verdict"] == "warning"
    assert moody["asked again"]["finding"] == "12 of 12 scores differ"
    assert silent["answers"]["verdict"] == "fail"
    with pytest.raises(ValueError, match="password"):
        DoctorConfig(model="http://user:password@host:8000")
