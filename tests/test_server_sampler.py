"""A policy that a server holds is sampled as one that is here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from actors.dpo_trainer import DPOTrainer
from actors.sampler import Response
from actors.server_sampler import ServerSampler, check_server, read_response
from panoply.config.policy import PolicyServerConfig, SamplingConfig
from panoply.data.tasks import Task
from panoply.hub.policy.policy import load_policy
from panoply.laser.log import Log
from panoply.model.sampling import stream
from panoply.preference.distributed import Group
from panoply.report.progress import RunLogger
from panoply.wire.retry import RewardServerError
from tests.builders.app_server import serving
from tests.builders.laser_runs import laser_config
from tests.builders.policy_rounds import configured, policy_task
from tests.builders.policy_server import BASE, policy_app
from workflows.laser import run_laser

SHORT = SamplingConfig(max_tokens=20, batch_size=4, temperature=2.0, top_p=0.98)
QUESTIONS = [Task(f"q{i}", [{"role": "user", "content": "say " + "a" * i}]) for i in range(3)]


@pytest.fixture(scope="module")
def adapter(tiny_policy_folder, tmp_path_factory):
    """Adapters that a round of training left."""
    folder = tmp_path_factory.mktemp("round")
    DPOTrainer(configured(policy_task(tiny_policy_folder, folder), folder, lr=0.05), Group()).run()
    return str(folder / "adapter")


def drawn_here(folder, adapter="", n=3):
    """What the policy itself draws with the numbers that a server is told."""
    policy = load_policy(str(folder), adapter, dtype="float32")
    tokens = {q.prompt_id: policy.renderer.opening(q.prompt) for q in QUESTIONS}
    found = {}
    for id, opening in tokens.items():
        for number in range(n):
            own = stream(7, 2, id, number) >> 1
            ((_, (one,)),) = policy.sample([opening], [[own]], SHORT)
            said = policy.text(one), len(one.tokens), one.log_prob, one.ended
            found.setdefault(id, []).append(Response(*said))
    return found


def same(found, wanted):
    assert sorted(one.prompt_id for one in found) == sorted(wanted)
    for one in found:
        for ours, theirs in zip(one.responses, wanted[one.prompt_id], strict=True):
            assert ours == replace(theirs, log_prob=pytest.approx(theirs.log_prob, abs=1e-4))


def sampler_at(url, folder, bucket=""):
    server = PolicyServerConfig(url=f"{url}#{BASE}", adapters=bucket, timeout=20.0)
    return ServerSampler(str(folder), SHORT, None, server)


def test_samples_of_a_server_are_the_policys_own(tiny_policy_folder):
    with serving(policy_app(tiny_policy_folder)) as url:
        found = list(sampler_at(url, tiny_policy_folder).sample(QUESTIONS, 3, 7, 2))
    wanted = drawn_here(tiny_policy_folder)
    same(found, wanted)
    every = [one for samples in wanted.values() for one in samples]
    assert {one.ended for one in every} == {True, False}  # so both were seen


def test_vllm_takes_the_adapters_of_a_round_once(tiny_policy_folder, adapter):
    app = policy_app(tiny_policy_folder)
    with serving(app) as url:
        first, second = (sampler_at(url, tiny_policy_folder) for _ in range(2))
        wanted = drawn_here(tiny_policy_folder, adapter)
        assert wanted != drawn_here(tiny_policy_folder)
        for sampler in (first, first, second):
            same(list(sampler.sample(QUESTIONS, 3, 7, 2, adapter)), wanted)
        assert app.state.seen.loads == 2  # the second sampler is told that it is there
        same(list(first.sample(QUESTIONS, 3, 7, 2)), drawn_here(tiny_policy_folder))


def test_ray_serve_llm_finds_the_adapters_of_a_round_in_its_bucket(
    tiny_policy_folder, adapter, tmp_path
):
    with serving(policy_app(tiny_policy_folder, tmp_path / "bucket")) as url:
        sampler = sampler_at(url, tiny_policy_folder, f"file://{tmp_path}/bucket/")
        found = list(sampler.sample(QUESTIONS, 3, 7, 2, adapter))
    same(found, drawn_here(tiny_policy_folder, adapter))
    (folder,) = (tmp_path / "bucket").iterdir()
    for file in folder.iterdir():
        assert file.read_bytes() == (Path(adapter) / file.name).read_bytes()


def test_a_busy_server_is_asked_again(tiny_policy_folder):
    app = policy_app(tiny_policy_folder, num_busy=2)
    with serving(app) as url:
        found = list(sampler_at(url, tiny_policy_folder).sample(QUESTIONS, 1, 7, 2))
    same(found, drawn_here(tiny_policy_folder, n=1))
    assert len(app.state.seen.asked) == 5


def test_what_a_server_refuses_is_told_with_what_to_do(tiny_policy_folder, adapter, tmp_path):
    with serving(policy_app(tiny_policy_folder, tmp_path)) as url:
        with pytest.raises(ValueError, match=r"did not take .*--enable-lora.*`server.adapters`"):
            list(sampler_at(url, tiny_policy_folder).sample(QUESTIONS, 1, 0, 0, adapter))
        check_server(PolicyServerConfig(url=f"{url}/#{BASE}"))
        with pytest.raises(ValueError, match=rf"names the model 'other'; .* has \['{BASE}'\]"):
            check_server(PolicyServerConfig(url=f"{url}#other"))
        other = PolicyServerConfig(url=f"{url}#other", timeout=5.0)
        with pytest.raises(RewardServerError, match=r"HTTP 404: .*`other` does not exist"):
            list(
                ServerSampler(str(tiny_policy_folder), SHORT, None, other).sample(
                    QUESTIONS, 1, 0, 0
                )
            )
    with pytest.raises(ValueError, match="cannot be asked to load adapters: ConnectError"):
        list(sampler_at(url, tiny_policy_folder).sample(QUESTIONS, 1, 0, 0, adapter))
    with pytest.raises(ValueError, match="lists no models"):
        check_server(PolicyServerConfig(url=f"{url}#{BASE}", timeout=2.0))


@pytest.mark.parametrize(
    "change",
    [
        {"choices": []},
        {"choices": [{"text": "a", "finish_reason": "abort"}]},
        {"choices": [{"text": None, "finish_reason": "stop"}]},
        {"usage": {}},
    ],
)
def test_an_answer_that_is_none_is_no_sample(change):
    answer = {
        "choices": [{"text": "a", "finish_reason": "stop"}],
        "usage": {"completion_tokens": 2},
    }
    assert read_response(answer).num_tokens == 2
    with pytest.raises(ValueError, match="validation error"):
        read_response(answer | change)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "localhost:8000#m"},
        {"url": "http://localhost:8000"},
        {"adapters": "s3://bucket"},
        {"url": "http://localhost:8000#m", "adapters": "/folder"},
        {"timeout": 0.0},
    ],
)
def test_a_server_that_is_named_wrong_is_refused(wrong):
    with pytest.raises(ValueError, match=r"`server\.(url|adapters|timeout)` must be"):
        PolicyServerConfig(**wrong)


@pytest.mark.ray
def test_a_loop_samples_from_a_server_by_the_adapters_of_each_round(
    cluster, tiny_policy_folder, tmp_path
):
    app = policy_app(tiny_policy_folder)
    with serving(app) as url:
        config = laser_config(tiny_policy_folder, tmp_path / "run", num_rounds=2)
        first = run_laser(
            replace(config, server=PolicyServerConfig(url=f"{url}#{BASE}")), RunLogger()
        )
        asked = [request.model for request in app.state.seen.asked]
    per_round, held_out = 4 * 3, 4 * 3
    names = list(dict.fromkeys(asked))
    assert names[0] == BASE
    assert [asked.count(name) for name in names] == [held_out + per_round, per_round, held_out]
    # A run that is over is only read, so a strategy may be added without the server.
    more = replace(config, strategies=("laser", "laser_verified"))
    second = run_laser(more, RunLogger())
    kept = [json.dumps(run["strategies"]["laser"], sort_keys=True) for run in (first, second)]
    assert kept[0] == kept[1]
    assert second["choices"]["laser_verified"]["applied"] == "verifier"
    rewards = (
        Log(str(tmp_path / "run" / "laser_verified" / "log"), ("long", "short")).read().rewards
    )
    assert rewards["reward"].equals(rewards["verifier"])
    with pytest.raises(ValueError, match="other first strategy"):
        run_laser(replace(more, strategies=more.strategies[::-1]), RunLogger())
