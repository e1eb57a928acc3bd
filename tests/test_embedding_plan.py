"""What is embedded side by side is planned once, and survives whatever happens to the run."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from panoply.config import BackboneConfig
from panoply.data.features import FeatureStore
from panoply.data.tables import TextFiles
from panoply.report.progress import RunLogger
from workflows.cluster import embed
from workflows.cluster.actor_pool import ActorPool
from workflows.cluster.embed import (
    NUM_SHARDS,
    SHARD_PROMPTS,
    EmbeddingJob,
    into_shards,
    one_shard,
    pending,
    plan_shards,
    shards_for,
    wanted_texts,
)
from workflows.cluster.local_pool import LocalPool

FEWEST, MOST = SHARD_PROMPTS


@pytest.fixture
def store(tmp_path):
    return FeatureStore(str(tmp_path / "store"), {"weights": "w"})


def texts(num_prompts, num_responses=2, first=0):
    prompts = [f"p{i:04d}" for i in range(first, first + num_prompts) for _ in range(num_responses)]
    ids = [f"{name}-{i % num_responses}" for i, name in enumerate(prompts)]
    return pa.table({"prompt_id": prompts, "text_id": ids})


def write(store, plan, shard):
    own = plan["text_id"].to_numpy()[plan["shard"].to_numpy() == shard]
    store.write("texts", list(own), {"last_1": np.zeros((len(own), 2), np.float32)})


def test_prompts_are_never_divided_between_shards():
    plan = into_shards(texts(2 * FEWEST + 1, 3), first=5)
    shards = plan.group_by("prompt_id").aggregate([("shard", "count_distinct")])
    assert set(shards["shard_count_distinct"].to_pylist()) == {1}
    assert plan.group_by("shard").aggregate([("prompt_id", "count")]).to_pydict() == {
        "shard": [5, 6, 7],
        "prompt_id_count": [3 * FEWEST, 3 * FEWEST, 3],
    }


@pytest.mark.parametrize(
    ("num_prompts", "expected"),
    [(90, FEWEST), (NUM_SHARDS * 30, 30), (NUM_SHARDS * 1000, MOST)],
)
def test_a_plan_has_enough_shards_to_share_and_none_too_small_or_too_large(num_prompts, expected):
    plan = into_shards(texts(num_prompts, 1))
    sizes = plan.group_by("shard").aggregate([("prompt_id", "count")])["prompt_id_count"]
    assert set(sizes.to_pylist()[:-1]) == {expected}


def test_a_run_that_goes_on_computes_whole_shards_of_its_first_plan(store, tmp_path):
    wanted, file = texts(3 * FEWEST), tmp_path / "plans" / "plan.parquet"
    plan = plan_shards(wanted, store, file, 512)
    write(store, plan, 1)
    again = plan_shards(wanted, store, file, 2048)
    assert again.equals(plan)
    assert again.schema.metadata[b"token_budget"] == b"512"
    assert set(pending(again, store)["shard"].to_pylist()) == {0, 2}


def test_a_shard_that_lacks_one_text_is_computed_whole(store, tmp_path):
    plan = plan_shards(texts(2 * FEWEST), store, tmp_path / "plan.parquet", 512)
    write(store, plan.slice(0, 2 * FEWEST - 1), 0)
    write(store, plan, 1)
    assert pending(plan, store).equals(plan.filter(pa.array(plan["shard"].to_numpy() == 0)))


def test_what_the_cache_holds_is_not_planned_again(store, tmp_path):
    held = into_shards(texts(FEWEST))
    write(store, held, 0)
    plan = plan_shards(texts(FEWEST + 2), store, tmp_path / "plan.parquet", 512)
    assert set(plan["prompt_id"].to_pylist()) == {"p0016", "p0017"}
    write(store, plan, 0)
    assert pending(plan, store).num_rows == 0


def test_texts_that_are_lost_from_the_cache_join_the_plan_as_further_shards(store, tmp_path):
    file = tmp_path / "plan.parquet"
    held = into_shards(texts(FEWEST, first=FEWEST))
    write(store, held, 0)
    wanted = texts(2 * FEWEST)
    plan_shards(wanted, store, file, 512)
    for name in store.shards("texts"):
        store.fs.delete_file(f"{store.path}/{name}")
    plan = plan_shards(wanted, store, file, 512)
    assert plan["shard"].to_pylist() == [0] * 2 * FEWEST + [1] * 2 * FEWEST
    assert plan.slice(2 * FEWEST)["text_id"].equals(held["text_id"])


def test_the_rows_of_a_shard_are_joined_in_one_order_whatever_their_own():
    rows = pa.table(
        {
            "prompt_id": ["b", "a", "b", "a"],
            "prompt": ["[B]", "[A]", "[B]", "[A]"],
            "text_id": ["b2", "a1", "b1", "a1"],
            "response": ["two", "one", "first", "one"],
        }
    )
    expected = [
        {"prompt_id": "a", "prompt": "[A]", "text_ids": ["a1"], "responses": ["one"]},
        {
            "prompt_id": "b",
            "prompt": "[B]",
            "text_ids": ["b1", "b2"],
            "responses": ["first", "two"],
        },
    ]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        assert one_shard(rows.take(order))["prompts"].to_pylist() == [expected]


def test_the_driver_divides_small_files_as_a_shuffle_would(cluster, tmp_path, monkeypatch):
    prompts = [[{"role": "user", "content": f"Question {i // 3}"}] for i in range(400)]
    ids = [f"p{i // 3:03d}" for i in range(400)]
    ratings = {
        "prompt_id": ids,
        "prompt": prompts,
        "text_id": [f"r{i}" for i in range(400)],
        "response": [f"Answer {i}" for i in range(400)],
    }
    pairs = {
        "prompt_id": ids,
        "prompt": prompts,
        "chosen_id": [f"r{i}" for i in range(400)],
        "rejected_id": [f"s{i}" for i in range(400)],
        "chosen": [f"Answer {i}" for i in range(400)],
        "rejected": [f"Worse {i}" for i in range(400)],
    }
    for name, columns in (("ratings", ratings), ("pairs", pairs)):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    files = TextFiles((f"{tmp_path}/ratings.parquet",), (f"{tmp_path}/pairs.parquet",))
    plan = into_shards(wanted_texts(files)).slice(2)  # some texts are in the cache already
    monkeypatch.setattr(embed, "SHUFFLE_PARTS", 1)  # each part starts a process
    with ActorPool(4, {"CPU": 1}, RunLogger()) as actors:  # all CPUs, which the shuffle needs
        in_driver = shards_for(actors, files, plan)
        monkeypatch.setattr(embed, "MAX_DRIVER_BYTES", 0)
        shuffled = ray.get(list(shards_for(actors, files, plan)))
    assert len(in_driver) == -(-134 // FEWEST)  # 134 prompts have 400 ratings
    assert by_first_prompt(in_driver) == by_first_prompt(shuffled)


def by_first_prompt(shards):
    rows = [shard["prompts"].to_pylist() for shard in shards]
    assert {len(row) for row in rows} == {1}
    return sorted((row[0] for row in rows), key=lambda prompts: prompts[0]["prompt_id"])


def test_the_driver_measures_a_backbone_as_a_worker_does(cluster, tiny_model_folder, tmp_path):
    rows = {
        "prompt": [[{"role": "user", "content": f"Question {i}"}] for i in range(3)],
        "response": ["Yes.", "No.", "Perhaps."],
    }
    pq.write_table(pa.table(rows), tmp_path / "ratings.parquet")
    files = TextFiles((f"{tmp_path}/ratings.parquet",))
    config = BackboneConfig(model=str(tiny_model_folder), dtype="bfloat16", token_budget=512)
    with LocalPool(1) as pool, ActorPool(1, {"CPU": 1}, RunLogger()) as actors:
        here, on_worker = (
            EmbeddingJob.open(config, "store", workers, files, tmp_path).profile
            for workers in (pool, actors)
        )
    assert here == on_worker
    assert 0 < here.drift < 0.1
