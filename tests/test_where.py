"""The grammar of WHERE: one parser, and a class for each kind of scorer."""

import asyncio
from typing import get_args

import pytest

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
    open_scorer,
    parse_where,
)
from panoply.wire.request import Chat, Score
from tests.builders.wire_server import serving


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
