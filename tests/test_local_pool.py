"""Processes of one machine: what they make once, and what is left when something is killed.

That they compute the bits of actors is tested by a whole run (`tests/test_armorm.py`).
"""

import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from panoply.config import BackboneConfig
from panoply.data.tables import TextFiles
from panoply.report.progress import RunLogger
from tests.builders.pool_calls import Counter
from tests.builders.ray_head import eventually
from workflows.cluster.embed import EmbeddingJob, embed
from workflows.cluster.local_pool import LocalPool

KILLED = """
import time
from workflows.cluster.local_pool import LocalPool
with LocalPool(2) as pool:
    list(pool.map(abs, [0]))
    print(*[p.pid for p in pool._processes], flush=True)
    for _ in pool.map(time.sleep, [60] * 4):
        pass
"""


def text_files(folder, num_prompts):
    rows = {
        "prompt_id": [f"p{i // 2:04d}" for i in range(2 * num_prompts)],
        "prompt": [
            [{"role": "user", "content": f"Question {i // 2}"}] for i in range(2 * num_prompts)
        ],
        "text_id": [f"r{i}" for i in range(2 * num_prompts)],
        "response": [f"Answer {i} {'again ' * (i % 7)}" for i in range(2 * num_prompts)],
    }
    pq.write_table(pa.table(rows), folder / "ratings.parquet")
    return TextFiles((str(folder / "ratings.parquet"),)), rows["text_id"]


def features(job, texts, ids, logger=None):
    depth = job.profile.depths[0]
    store, counts = embed(texts, job, (depth,), logger or RunLogger())
    return store.features("texts", ids, (f"last_{depth}", f"mean_{depth}")).read(), counts


@pytest.mark.slow
def test_a_function_is_made_once_in_each_process_and_again_for_other_arguments():
    with LocalPool(2) as pool:
        for start, num_made in ((10, 1), (10, 1), (20, 2)):
            answers = list(pool.map_made(Counter, (start,), range(40)))
            assert [total for *_, total in answers] == [start + item for item in range(40)]
            assert len({pid for pid, *_ in answers}) == 2
            assert {made for _, made, _ in answers} == {num_made}


@pytest.mark.slow
def test_a_block_that_is_left_early_does_not_wait_for_the_work():
    begun = time.monotonic()
    with LocalPool(2) as pool:
        assert next(pool.map(time.sleep, [0, 60, 60])) is None
    assert time.monotonic() - begun < 30


@pytest.mark.slow
def test_the_processes_end_with_their_parent_when_it_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    parent.kill()
    parent.wait(30)
    eventually(lambda: not any(Path(f"/proc/{p}").exists() for p in pids), 30, "all are gone")


@pytest.mark.slow
def test_a_killed_process_costs_the_shards_that_it_had(tiny_model_folder, tmp_path):
    console = Console(file=StringIO(), width=200)
    texts, ids = text_files(tmp_path, 600)
    config = BackboneConfig(model=str(tiny_model_folder), dtype="float32", token_budget=512)
    with LocalPool(2) as pool:
        undisturbed = EmbeddingJob.open(config, f"{tmp_path}/a", pool, texts, tmp_path / "plans-a")
        expected, counts = features(undisturbed, texts, ids)
        disturbed = EmbeddingJob.open(config, f"{tmp_path}/b", pool, texts, tmp_path / "plans-b")
        store = Path(disturbed.store((disturbed.profile.depths[0],)).path)

        def kill_one():
            eventually(lambda: len([*store.glob("texts-*")]) > 3, 60, "some shards are there")
            next(iter(pool._processes)).kill()

        (killer := Thread(target=kill_one)).start()
        found, again = features(disturbed, texts, ids, RunLogger(console))
        killer.join()
    assert "embedding: worker lost, resuming with the remaining shards" in console.file.getvalue()
    assert np.array_equal(found, expected)
    assert 0 < again["texts"] <= counts["texts"] == len(ids)
