"""Audits of real pairs: halves of a source, and differences of swapped pairs."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evidence.audit import EmbeddedSource, write_halves


def test_no_prompt_is_in_both_halves_and_no_pair_is_lost(tmp_path):
    prompts = [f"{i % 40}?" for i in range(200)]
    file = tmp_path / "source.parquet"
    pq.write_table(pa.table({"prompt": prompts, "chosen": list(map(str, range(200)))}), file)
    halves = [pq.read_table(half).to_pydict() for half in write_halves(file, 0, tmp_path)]
    assert not set(halves[0]["prompt"]) & set(halves[1]["prompt"])
    assert sorted(halves[0]["chosen"] + halves[1]["chosen"], key=int) == [*map(str, range(200))]
    assert min(len(half["prompt"]) for half in halves) > 60


def test_a_swapped_pair_has_the_opposite_difference(tmp_path):
    source = EmbeddedSource(tmp_path, {("a", "b"): np.array([1.0, -2.0], np.float32)})
    pairs = SimpleNamespace(chosen_N=["a", "b"], rejected_N=["b", "a"])
    assert source.of(pairs).tolist() == [[1.0, -2.0], [-1.0, 2.0]]
