"""Stage 1 on rows that are not in memory equals stage 1 on rows that are."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from threading import Barrier

import numpy as np
import pytest

from panoply.armorm.blocks import Block, BlockSums, fit_blocks, linked_patterns, plan_blocks
from panoply.armorm.out_of_fold import SELECT, UNUSED, fit_rows, rating_units
from panoply.config.armorm import ObjectivesConfig
from panoply.data.features import ArrayFeatures, FeatureStore

SETTINGS = ObjectivesConfig(num_folds=3, strengths=(1e-3, 1e-1, 10.0), block_rows=40)
PATTERNS = ((0, 1), (1,), (2, 3))


@pytest.fixture
def stored(tmp_path):
    """Features in two shards, with ratings of three patterns and a fold of each row."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    y = x @ rng.normal(size=(6, 4)) + rng.normal(size=(400, 4))
    for row, pattern in enumerate(rng.integers(len(PATTERNS), size=400)):
        y[row, [i for i in range(4) if i not in PATTERNS[pattern]]] = np.nan
    store, ids = FeatureStore(str(tmp_path / "store"), {}), [f"t{i}" for i in range(400)]
    for half in (slice(0, 200), slice(200, 400)):
        store.write("texts", ids[half], {"last_1": x[half]})
    return x, y, rng.integers(UNUSED, 3, size=400), store.features("texts", ids, ("last_1",))


def test_stored_blocks_give_the_fit_of_rows_in_memory(stored, tmp_path):
    x, y, fold, features = stored
    sums = BlockSums(plan_blocks(y, fold, features, SETTINGS.block_rows), str(tmp_path / "sums"))
    assert {block.pattern for block in sums.blocks} == set(PATTERNS)
    assert {block.fold for block in sums.blocks} == {SELECT, 0, 1, 2}
    assert max(len(block.labels_NP) for block in sums.blocks) <= SETTINGS.block_rows
    write_by(3, sums)
    by_blocks, by_rows = fit_blocks(sums, 4, SETTINGS), fit_rows(x, y, fold, SETTINGS)
    np.testing.assert_array_equal(by_blocks.full.strength, by_rows.full.strength)
    pairs = zip((by_blocks.full, *by_blocks.folds), (by_rows.full, *by_rows.folds), strict=True)
    for blocks, rows in pairs:
        np.testing.assert_allclose(blocks.weights, rows.weights, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(blocks.bias, rows.bias, rtol=1e-9, atol=1e-12)


def test_any_number_of_workers_and_any_kill_give_the_same_bits(stored, tmp_path):
    _, y, fold, features = stored
    blocks = plan_blocks(y, fold, features, 5)
    alone = BlockSums(blocks, str(tmp_path / "alone"))
    alone.write()
    expected = [chain.read() for chain in alone.chains()]
    for num_workers in (2, 3):
        sums = BlockSums(blocks, str(tmp_path / f"by-{num_workers}"))
        for last_turn in (1, 4, 7):  # killed where that turn begins, again and again
            with pytest.raises(Killed):
                write_by(num_workers, sums, last_turn)
        write_by(num_workers, sums)
        for chain, sum_of_chain in zip(sums.chains(), expected, strict=True):
            assert chain.num_added() == len(chain.blocks)
            for pattern, moments in chain.read().items():
                for field in fields(moments):
                    ours, theirs = (
                        getattr(m, field.name) for m in (moments, sum_of_chain[pattern])
                    )
                    np.testing.assert_array_equal(ours, theirs)


def test_beside_the_sums_two_blocks_a_worker_are_stored_at_most(stored, tmp_path):
    _, y, fold, features = stored
    sums = BlockSums(plan_blocks(y, fold, features, 5), str(tmp_path / "sums"))
    names = {f"{block.name}.npz" for block in sums.blocks}
    num_stored = []

    def look():
        num_stored.append(len(names & {file.name for file in (tmp_path / "sums").iterdir()}))

    write_by(2, sums, look=look)
    assert len(sums.blocks) > 60
    assert 0 < max(num_stored) <= 4
    assert not names & {file.name for file in (tmp_path / "sums").iterdir()}


def test_sums_that_are_written_are_not_computed_again(stored, tmp_path):
    _, y, fold, features = stored
    sums = BlockSums(plan_blocks(y, fold, features, 1000), str(tmp_path / "sums"))
    sums.write()
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "sums").iterdir()}
    assert times.keys() == {f"{chain.name}-1.npz" for chain in sums.chains()}
    sums.write()
    assert times == {f.name: f.stat().st_mtime_ns for f in (tmp_path / "sums").iterdir()}


def test_a_damaged_sum_is_named_and_made_again_where_it_is_deleted(stored, tmp_path):
    _, y, fold, features = stored
    sums = BlockSums(plan_blocks(y, fold, features, 20), str(tmp_path / "sums"))
    sums.write()
    expected = fit_blocks(sums, 4, SETTINGS)
    (file,) = sums.chains()[1].files().values()
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=file.name):
        fit_blocks(sums, 4, SETTINGS)
    file.unlink()
    sums.write()
    again = fit_blocks(sums, 4, SETTINGS)
    np.testing.assert_array_equal(again.full.weights, expected.full.weights)


class Killed(Exception):
    """A worker is gone."""


def write_by(num_workers, sums, last_turn=None, look=lambda: None):
    """Writes sums by workers at once; all are gone when they have met `last_turn` times."""
    all_here = Barrier(num_workers)
    values = {}

    def work(rank):
        num_met = 0

        def meet(value):
            nonlocal num_met
            look()
            if num_met == last_turn:
                raise Killed
            if rank == 0:
                values[num_met] = value
            all_here.wait()
            num_met += 1
            return values[num_met - 1]

        sums.write(rank, num_workers, meet)

    with ThreadPoolExecutor(num_workers) as pool:
        for future in [pool.submit(work, rank) for rank in range(num_workers)]:
            future.result(timeout=60)


def test_a_fit_that_is_stored_gives_the_space_of_its_sums_back_and_resumes(stored, tmp_path):
    _, y, fold, features = stored
    blocks = plan_blocks(y, fold, features, SETTINGS.block_rows)
    sums = BlockSums(blocks, str(tmp_path / "sums"))
    sums.write()
    expected, fitted = fit_blocks(sums, 4, SETTINGS), sums.solve(4, SETTINGS)
    assert [file.name for file in (tmp_path / "sums").iterdir()] == [
        sums.solution_file(SETTINGS).name
    ]
    again = BlockSums(blocks, str(tmp_path / "sums")).solve(4, SETTINGS)
    for folded in (fitted, again):
        for ours, theirs in zip(
            (folded.full, *folded.folds), (expected.full, *expected.folds), strict=True
        ):
            for name in ours._fields:
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    other = replace(SETTINGS, strengths=(1.0,))
    assert not sums.solution_file(other).exists()
    assert not BlockSums(blocks[1:], str(tmp_path / "sums")).solution_file(SETTINGS).exists()


def test_a_block_is_named_by_its_rows_and_labels(stored):
    _, y, fold, features = stored
    names = [block.name for block in plan_blocks(y, fold, features, 1000)]
    assert names == [block.name for block in plan_blocks(y, fold, features, 1000)]
    other = plan_blocks(y + 1, fold, features, 1000)
    assert not set(names) & {block.name for block in other}


def test_patterns_that_share_an_objective_are_solved_together():
    groups = list(linked_patterns([(0, 1), (3,), (1, 2), (2, 4), (3, 5), (6,)]))
    assert groups == [
        frozenset({(0, 1), (1, 2), (2, 4)}),
        frozenset({(3,), (3, 5)}),
        frozenset({(6,)}),
    ]


def test_a_training_row_gets_the_value_of_the_ridge_without_its_fold(stored):
    x, y, fold, features = stored
    fitted = fit_rows(x, y, fold, SETTINGS)
    values = fitted.predict(ArrayFeatures(x), fold)
    for row in (np.flatnonzero(fold == 1)[0], np.flatnonzero(fold == SELECT)[0]):
        ridge = fitted.folds[1] if fold[row] == 1 else fitted.full
        np.testing.assert_allclose(values[row], x[row] @ ridge.weights.T + ridge.bias)
    np.testing.assert_allclose(fitted.predict(features, fold), values, rtol=1e-9)
    alone = fitted.only(2).predict(features, fold)[:, 0]
    np.testing.assert_allclose(alone, values[:, 2], rtol=1e-9)


def test_units_are_deviations_and_one_where_there_is_none():
    labels = np.array([[1.0, 2.0], [3.0, 2.0], [np.nan, 2.0]])
    assert rating_units(labels).tolist() == [1, 1]


def test_threads_of_one_process_end_where_one_does_and_a_failing_one_ends_all(
    stored, tmp_path, monkeypatch
):
    from actors.fitters import write_by_threads

    _, y, fold, features = stored
    blocks = plan_blocks(y, fold, features, 10)
    alone, by_threads = (BlockSums(blocks, str(tmp_path / name)) for name in ("one", "three"))
    alone.write()
    write_by_threads(by_threads, 3)
    for name in ("weights", "bias", "strength"):
        ours, theirs = (getattr(fit_blocks(s, 4, SETTINGS).full, name) for s in (by_threads, alone))
        np.testing.assert_array_equal(ours, theirs)

    def fail(block, _):
        if block is blocks[4]:
            raise OSError("no space left")

    monkeypatch.setattr(Block, "write", fail)
    with pytest.raises(OSError, match="no space left"):
        write_by_threads(BlockSums(blocks[4:], str(tmp_path / "full")), 3)
