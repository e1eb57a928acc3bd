"""A secret in every place where one may be, every failure driven, and no trace of it anywhere."""

import asyncio
import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
from dataclasses import asdict

import httpx2
import pytest

from actors.function_replica import FunctionReplica
from actors.gateway import ModelStatus
from actors.server_sampler import check_server
from panoply.config import as_dict
from panoply.config.laser import ArmsConfig, LaserConfig, PromptsConfig
from panoply.config.policy import PolicyServerConfig
from panoply.config.preference import Lora, PreferenceConfig, TrainedBackboneConfig
from panoply.config.serve import ServeConfig, ServedModelConfig
from panoply.config.upgrade import UpgradeConfig
from panoply.data.locate import find_files
from panoply.scorers.endpoint import EndpointScorer
from panoply.scorers.where import parse_where
from panoply.secret import Address, Keys, authorization, without_secrets
from panoply.wire.outbound import DIALECTS
from tests.builders.gateway import serving as gateway_of
from tests.builders.wire_server import serving
from workflows.cluster.gateway import cause
from workflows.cluster.keys import endpoint_variables, handed_keys, withheld
from workflows.cluster.resolve_model import resolve_model

CANARY = "C4nary-hunter2"
SECRET_ADDRESSES = (
    f"http://svc:{CANARY}@host",
    f"http://{CANARY}@host/path",
    f"http://svc:{CANARY}/x@host",
    f"http://svc:{CANARY}#x@host",
    f"http://host:{CANARY}",
    f"https://host/score?api_key={CANARY}",
    f"https://host/score?a=b&access_token={CANARY}",
    f"https://host?X-Amz-Signature={CANARY}",
    f"https://host?key_variable={CANARY}",
    f"https://host#m?api_key={CANARY}",
    f"https://host?a=b;token={CANARY}",
    f"https://host/path;jsessionid={CANARY}",
    f"https://host?a=b%26api_key%3D{CANARY}",
    f"https://host?next=https%3A%2F%2Fu:{CANARY}%2540other",
    f"https://svc%3A{CANARY}%40host",
    f"https://host?bearer={CANARY}",
)
"""Every way to write a password or a key into an address."""
NO_ADDRESSES = (
    f"http://[{CANARY}]@host",
    f"http://svc:{CANARY}[@host",
    f"http://svc:{CANARY}\N{ACCOUNT OF}@host",
)
"""What no parser takes for an address, and would repeat in its message."""
CHAT_BODY = {
    "items": [{"prompt": [{"role": "user", "content": "q"}], "responses": ["a", "b"]}],
    "details": ["provenance", "objectives"],
}


def doors(address):
    """What takes an address, by the command or class that does."""
    model = f"{address}#m" if "#" not in address else address
    return {
        "a model": lambda: ServeConfig(models=(f"a=vllm+{model}",)).served_models(),
        "a model without a name": lambda: ServeConfig(models=(model,)).served_models(),
        "a deploy file": lambda: ServedModelConfig(name="a", where=f"tei+{model}"),
        "an upgrade": lambda: UpgradeConfig(models=(f"a={model}",)).served_models(),
        "an arm": lambda: ArmsConfig(models=(f"a=slime+{model}",)),
        "a WHERE": lambda: parse_where(f"sglang+{model}"),
        "an endpoint": lambda: EndpointScorer(model, "vllm"),
        "the policy's server": lambda: PolicyServerConfig(url=model),
    }


@pytest.mark.parametrize("address", SECRET_ADDRESSES)
def test_an_address_with_a_secret_is_refused_at_every_door_with_the_way_out(address):
    for door, call in doors(address).items():
        with pytest.raises(ValueError, match=r"\?key_variable=NAME#MODEL") as refusal:
            call()
        assert CANARY not in str(refusal.value), door
        assert refusal.value.__cause__ is None, door


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_what_is_no_address_is_refused_without_its_host(address):
    for door, call in doors(address).items():
        with pytest.raises(ValueError, match="an address that is none") as refusal:
            call()
        assert CANARY not in str(refusal.value), door
        assert refusal.value.__suppress_context__, door


@pytest.mark.parametrize(
    "file",
    [
        f"s3://AKIA:{CANARY}@bucket/pairs.jsonl",
        f"s3://AKIA:{CANARY}/x@bucket/pairs.jsonl",
        f"s3://bucket/pairs.jsonl?secret_key={CANARY}",
        f"https://{CANARY}@host/pairs.jsonl",
        f"https://host/pairs.jsonl?X-Amz-Signature={CANARY}",
        f"https://svc%3A{CANARY}%40host/pairs.jsonl",
    ],
)
def test_a_file_s_address_with_a_secret_is_refused_by_settings_and_readers(file):
    for call in (
        lambda: PreferenceConfig(pairs=(file,)),
        lambda: PromptsConfig(file=file),
        lambda: ServedModelConfig(name="a", where=f"replay:{file}"),
        lambda: find_files(file),
    ):
        with pytest.raises(ValueError, match="names a file with a user name, a pass") as refusal:
            call()
        assert CANARY not in str(refusal.value)
    for fine in ("hf://datasets/owner/name@main/x.jsonl", "s3://bucket/x.jsonl", "a@b:c.jsonl"):
        PreferenceConfig(pairs=(fine,))


def test_parameters_behind_the_model_s_name_are_refused_and_not_dropped():
    with pytest.raises(ValueError, match=r"behind '#': .*\?key_variable=NAME#MODEL"):
        Address.parse("http://host#m?key_variable=RM_KEY", "url")


def test_what_holds_no_secret_is_taken_as_it_is():
    for text, expected in (
        ("http://h:8000/v1?normalize=true#m", ("http://h:8000/v1?normalize=true", "", "m")),
        ("https://h?key_variable=RM_KEY&a=b%26c", ("https://h?a=b%26c", "RM_KEY", "")),
        ("http://[::1]:80", ("http://[::1]:80", "", "")),
    ):
        address = Address.parse(text, "url")
        assert (address.url, address.key_variable, address.model) == expected
    assert authorization("abc") == "Bearer abc"
    assert authorization("Basic abc") == "Basic abc"


def test_keys_print_their_names_alone_and_are_read_early(monkeypatch):
    monkeypatch.setenv("RM_KEY", CANARY)
    keys = Keys.read(["RM_KEY"])
    assert f"{keys} {keys!r} {[keys]}" == "Keys(['RM_KEY']) Keys(['RM_KEY']) [Keys(['RM_KEY'])]"
    assert CANARY not in json.dumps(asdict(ServedModelConfig(name="a", where="http://h")))
    assert pickle.loads(pickle.dumps(keys)) == keys
    assert keys.only(["OTHER"]) == Keys()
    monkeypatch.delenv("RM_KEY")
    keys.only(["RM_KEY"]).export()
    assert os.environ["RM_KEY"] == CANARY
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ValueError, match="environment variable 'EMPTY' holds no key"):
        Keys.read(["RM_KEY", "EMPTY"])


def test_processes_of_the_cluster_do_not_inherit_the_keys_that_settings_name(monkeypatch):
    for name in ("RM_KEY", "MLFLOW_TRACKING_PASSWORD", "SOMETHING_ELSE"):
        monkeypatch.setenv(name, CANARY)
    models = ServeConfig(
        models=("a=vllm+http://h?key_variable=RM_KEY#m", "b=http://h", "c=replay:x.parquet")
    ).served_models()
    assert endpoint_variables(models) == ["RM_KEY"]
    with withheld(endpoint_variables(models)):
        code = "import os; print(sorted(n for n, v in os.environ.items() if 'C4nary' in v))"
        seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert seen.stdout.strip() == "['SOMETHING_ELSE']"
    assert os.environ["RM_KEY"] == os.environ["MLFLOW_TRACKING_PASSWORD"] == CANARY
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert handed_keys(endpoint_variables(models)).values == {"RM_KEY": CANARY}
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert handed_keys(endpoint_variables(models)) == Keys()  # its nodes hold them


LEAKS = (
    (401, {}, {"error": f"wrong key {CANARY}"}),
    (400, {}, f"cannot parse {CANARY}".encode()),
    (404, {}, {"detail": f"http://svc:{CANARY}@10.0.0.7"}),
    (422, {}, {"detail": [{"input": CANARY}]}),
    (200, {}, f'{{"data": "{CANARY}"}}'.encode()),
    (200, {}, CANARY.encode()),
    (200, {}, {"results": [{"model": "m", "items": [[{"score": None, "error": CANARY}] * 2]}]}),
    (302, {"Location": f"http://h/?token={CANARY}"}, {}),
    (500, {}, f"Traceback: DB_PASSWORD={CANARY} at 10.0.0.7".encode()),
    (503, {"Retry-After": "1"}, {"error": CANARY}),
    "drop",
)
"""Answers of another server that tell what they should not."""
LEAKY = f'''
import os
def raises(response):
    raise ValueError("{CANARY}")
def raises_from(response):
    try:
        raises(response)
    except ValueError as error:
        raise RuntimeError(os.environ["RM_KEY"]) from error
'''


def replica(where, monkeypatch):
    """A replica that reads its key as it does in a cluster."""
    scorer = FunctionReplica(
        ServedModelConfig(name="m", where=where), Keys({"RM_KEY": f"key-{CANARY}"})
    )
    if isinstance(scorer.scorer, EndpointScorer):
        scorer.scorer.timeout = 0.5
    return scorer


class Behind:
    """A replica as the gateway knows it."""

    name = "m"

    def __init__(self, scorer):
        self.ask, self.scorer = scorer.answer, scorer

    async def about(self):
        """Returns the replica's description."""
        return self.scorer.about()


def answers(scorer, keys=None):
    """All that a client can be told of a model: scores, refusals, the list, health."""
    app, gateway = gateway_of(Behind(scorer), keys=keys)

    async def told():
        texts = []
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://test"
        ) as client:
            await gateway.learn({"m": ModelStatus("ready", "")})
            for path in ("/v1/rewards", "/classify", "/get_reward", "/models/m/v1/rewards"):
                body = CHAT_BODY if path.endswith("rewards") else {"query": ["q"], "prompts": ["q"]}
                for headers in ({}, {"Authorization": f"Bearer other-{CANARY}"}):
                    answer = await client.post(path, json=body, headers=headers)
                    texts.append(f"{answer.status_code} {answer.headers} {answer.text}")
            for path in ("/v1/models", "/health", "/info", "/openapi.json"):
                answer = await client.get(path)
                texts.append(f"{answer.headers} {answer.text}")
        return "\n".join(texts)

    return asyncio.run(told())


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: str(leak[0]))
def test_what_another_server_says_reaches_no_client_and_no_log(leak, monkeypatch, caplog):
    monkeypatch.setenv("RM_KEY", "replaced")
    with caplog.at_level(logging.DEBUG, "ray.serve"), serving(*[leak] * 30) as (url, seen):
        text = answers(replica(f"vllm+{url}/x?key_variable=RM_KEY#m", monkeypatch))
    assert {headers.get("authorization") for _, headers, *_ in seen} == {f"Bearer key-{CANARY}"}
    assert "the server behind this model" in text
    assert "127.0.0.1" not in text  # the address is not for clients
    assert CANARY not in text + caplog.text
    assert url in caplog.text  # the log names the server, for whoever mends it


@pytest.mark.parametrize("name", ["raises", "raises_from"])
def test_what_a_function_raises_reaches_no_client_and_no_log(name, tmp_path, monkeypatch, caplog):
    (tmp_path / "leaky.py").write_text(LEAKY)
    monkeypatch.setenv("RM_KEY", CANARY)
    with caplog.at_level(logging.DEBUG, "ray.serve"):
        text = answers(replica(f"function:{tmp_path}/leaky.py:{name}", monkeypatch))
    assert "leaky.py:" in text
    assert CANARY not in text + caplog.text


@pytest.mark.parametrize(
    "line",
    [
        f"raise ValueError('{CANARY}')",
        f"1 / 0 + {CANARY!r}",
        "import os; os.environ[os.environ['RM_KEY']]",
    ],
)
def test_what_a_module_raises_while_it_is_imported_is_no_reason_that_clients_are_told(
    line, tmp_path, monkeypatch
):
    (tmp_path / "leaky.py").write_text(line)
    monkeypatch.setenv("RM_KEY", CANARY)
    with pytest.raises(ValueError, match="cannot be imported on this node") as refusal:
        replica(f"function:{tmp_path}/leaky.py:fine", monkeypatch)
    told = "".join(traceback.format_exception(refusal.value))
    assert CANARY not in told


def test_a_wrong_key_and_the_right_one_are_in_no_answer(tmp_path, monkeypatch):
    (tmp_path / "leaky.py").write_text("def fine(response):\n    return 1.0\n")
    scorer = replica(f"function:{tmp_path}/leaky.py:fine", monkeypatch)
    text = answers(scorer, keys={"m": f"right-{CANARY}"})
    assert "401" in text
    assert CANARY not in text


def test_reasons_of_failures_that_clients_see_hold_no_address_with_a_secret():
    message = f"Traceback\nOSError: no answer of http://svc:{CANARY}@host/x?token={CANARY} in 3 s\n"
    assert cause(message) == "OSError: no answer of http://host/x in 3 s"
    for text, expected in (
        (f'{{"api_key": "{CANARY}"}}', '{"api_key": "***"}'),
        (f"Authorization: Bearer {CANARY} was refused", "Authorization: Bearer *** was refused"),
        (f"AWS_SECRET_ACCESS_KEY={CANARY}", "AWS_SECRET_ACCESS_KEY=***"),
        (
            f"could not connect: host=db password={CANARY}",
            "could not connect: host=db password=***",
        ),
        (f"http://host/x#token={CANARY}", "http://host/x#token=***"),
    ):
        assert without_secrets(text) == expected
    for text in ("mail me? a@b.c", "KeyError: 'scalar'", "pad_token=None, num_key_value_heads=8"):
        assert without_secrets(text) == text


def test_a_registry_that_is_down_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://alice:{CANARY}@127.0.0.1:9")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9") as refusal:
        resolve_model(ServedModelConfig(name="m", where="models:/m@live"))
    assert CANARY not in str(refusal.value)


def test_records_of_a_run_hold_the_names_of_its_variables_alone(monkeypatch):
    monkeypatch.setenv("RM_KEY", CANARY)
    monkeypatch.setenv("VLLM_KEY", CANARY)
    config = LaserConfig(
        arms=ArmsConfig(models=("a=tei+http://h?key_variable=RM_KEY",)),
        backbone=TrainedBackboneConfig(trained=Lora()),
        server=PolicyServerConfig(url="http://h?key_variable=VLLM_KEY#base"),
    )
    record = json.dumps(as_dict(config))  # config.json, the parameters in MLflow, the page
    assert "RM_KEY" in record
    assert "VLLM_KEY" in record
    assert CANARY not in record + repr(config)


def test_the_policys_server_gets_its_key_and_one_that_is_missing_is_told_early(monkeypatch):
    monkeypatch.delenv("VLLM_KEY", raising=False)
    with serving() as (url, _):
        server = PolicyServerConfig(url=f"{url}?key_variable=VLLM_KEY#base", timeout=2.0)
        assert (server.address, server.model) == (url, "base")
        with pytest.raises(ValueError, match="variable 'VLLM_KEY' holds no key"):
            check_server(server)
        monkeypatch.setenv("VLLM_KEY", CANARY)
        with pytest.raises(ValueError, match="lists no models") as refusal:
            check_server(server)
    assert CANARY not in str(refusal.value)


def test_every_dialect_keeps_the_words_of_a_server_that_fails_to_itself():
    for dialect in DIALECTS:
        refusals = [(status, {}, {"error": CANARY}) for status in (401, 500)]
        told = {"results": [{"items": [[{"score": None, "error": CANARY, "transient": False}]]}]}
        for script in (refusals, [(200, {}, told)]):
            with serving(*script) as (url, _):
                [[score]] = asyncio.run(one_score(url, dialect))
            assert score.error.startswith("the server behind this model")
            assert CANARY not in score.error


async def one_score(url, dialect):
    from panoply.wire.request import Chat

    scorer = EndpointScorer(url, dialect, template="chatml", timeout=0.5)
    try:
        return await scorer.score([Chat(({"role": "user", "content": "q"},), ("r",))])
    finally:
        await scorer.close()
