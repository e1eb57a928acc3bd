"""Counts that no machine moves: tokens, padding, attention calls, hops, processes, imports.

A change that makes one of them larger makes every run slower, by an amount that a busy machine's
seconds would hide. `tests/test_tree.py` counts what is planned, this file what is computed.
"""

import subprocess
import sys

import pytest

from benchmarks.counts import (
    forward_counts,
    help_counts,
    num_compiled,
    replica_counts,
    step_counts,
)
from benchmarks.served_counts import call_counts, deployed_counts, scorers


@pytest.fixture(scope="module")
def forwards():
    """The counts of scoring pairs, and 16 samples of a prompt."""
    return forward_counts()


@pytest.fixture(scope="module")
def wheres(tmp_path_factory):
    """A model, two composites and a bandit."""
    return scorers(tmp_path_factory.mktemp("scorers"))


def values(counts):
    return {name: figure["value"] for name, figure in counts.items()}


@pytest.mark.parametrize(
    ("texts", "tokens", "share"),
    [
        ("pairs", 13_315, 0.7347),
        ("n16", 3_243, 0.2665),
    ],
)
def test_a_forward_computes_what_responses_share_once_and_no_padding(
    forwards, texts, tokens, share
):
    assert values(forwards)[f"{texts}: tokens"] == tokens
    assert values(forwards)[f"{texts}: tokens over separate ones"] == pytest.approx(share, abs=5e-5)
    assert values(forwards)[f"{texts}: padding"] == 0


def test_attention_is_called_once_for_a_prompt_and_once_for_responses_of_similar_length(forwards):
    # 24 prompts, and as many pairs, none of which has a response twice as long as the other.
    assert values(forwards)["pairs: attention calls"] == 48
    # The prompt, responses of more than half the longest one's length, and the others.
    assert values(forwards)["n16: attention calls"] == 3


def test_a_training_step_computes_each_token_once_whatever_weighs_its_sources(tmp_path):
    for name, figure in step_counts(tmp_path).items():
        assert figure["value"] == figure["ideal"] > 0, name


def test_scoring_compiles_nothing(forwards):
    # Two workloads of many shapes were computed: a compiled graph would be made anew for each.
    assert len(forwards) == 8
    assert num_compiled() == 0


def test_a_request_of_one_prompt_asks_each_model_once(wheres):
    assert values(call_counts(wheres)) == {
        "calls, a model": 1,
        "calls, a composite of two models": 3,  # the composite, and each of its models
        "calls, a composite of two functions": 1,  # which it calls in its own process
    }


def test_only_models_have_processes_of_their_own_and_cost_a_hop(wheres):
    assert values(deployed_counts(wheres)) == {
        "hops, a model": 1,
        "processes, a model": 1,
        "hops, a composite of two models": 2,
        "processes, a composite of two models": 3,
        "hops, a composite of two functions": 1,
        "processes, a composite of two functions": 1,
        "hops, a bandit of two functions": 1,  # its one replica decides itself
        "processes, a bandit of two functions": 1,
    }


def test_help_of_all_commands_loads_nothing_heavy_and_few_modules():
    counts = values(help_counts())
    assert counts["help of all commands: heavy packages"] == 0
    # 399 with Python 3.11. There is room for a new release of a library, and none for a library.
    assert counts["help of all commands: modules"] < 440


@pytest.mark.slow
def test_replicas_that_need_no_model_load_neither_torch_nor_transformers():
    assert values(replica_counts()) == {"replicas without a model: heavy packages": 0}


def test_a_driver_of_servers_loads_what_trains_and_models_only_where_it_is_asked_for():
    # Half of the seconds until a server of functions answers, and 260 MB.
    heavy = {"torch", "transformers", "mlflow", "scipy.stats", "ray.train", "ray.data"}
    code = f"import workflows.serve, sys; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
