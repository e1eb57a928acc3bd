"""One writer of a folder or a log, on disks and in buckets, whoever dies or goes on."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from panoply.files import write_whole
from panoply.laser.log import Log, LogDiffers
from panoply.lease import (
    LeaseHeld,
    LeaseHolder,
    LeaseLost,
    acquire,
    guarded,
    holding,
    lease_above,
    take_over,
)
from panoply.records import open_records
from tests.builders.contenders import ROUNDS, contend, rewards_by
from tests.builders.object_store import s3_bucket
from tests.builders.selector_runs import ARMS, make, outcomes_of, prompts_of


@pytest.fixture(scope="module")
def bucket():
    """The URI of a path in a bucket of a real S3 server."""
    with pytest.MonkeyPatch.context() as monkeypatch, s3_bucket(monkeypatch) as uri:
        yield uri


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, bucket):
    """The URI of an empty folder on a disk, and one in a bucket."""
    return str(tmp_path / "x") if request.param == "disk" else bucket(tmp_path.name)


def test_of_two_processes_with_contradicting_outcomes_one_is_accepted_each_round(bucket, tmp_path):
    places = {"disk": str(tmp_path / "log"), "bucket": bucket("log")}
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    writers = [
        spawn.Process(target=contend, args=(places, barrier, name, results), daemon=True)
        for name in ("ann", "bob")
    ]
    for writer in writers:
        writer.start()
    accepted, num_over = [], 0
    while num_over < 2:
        result = results.get(timeout=120)
        num_over += result is None
        accepted += [result] if result else []
    rounds = [(name, round) for name in places for round in range(ROUNDS[name])]
    assert sorted((name, round) for name, round, _ in accepted) == sorted(rounds)
    for name, round, writer in accepted:
        stored = Log(places[name], ARMS).read_segment("rewards", round)
        assert stored["failure"].to_pylist() == [writer]


def test_a_segment_may_be_written_again_if_it_is_the_same(folder):
    log = Log(folder, ARMS)
    for _ in range(2):
        log.write("rewards", 0, rewards_by("ann", 0))
    with pytest.raises(LogDiffers):
        log.write("rewards", 0, rewards_by("bob", 0))


def test_a_selector_whose_log_was_taken_over_writes_nothing_more(folder):
    first = make(folder)
    decisions = first.begin_round(0, prompts_of(0), {})
    second = make(folder)
    with pytest.raises(LeaseLost, match=r"taken over .*process \d+ on"):
        first.end_round(0, outcomes_of(0, decisions))
    second.end_round(0, outcomes_of(0, decisions))
    second.begin_round(1, prompts_of(1), {})
    assert Log(folder, ARMS).read().rewards.num_rows == 8


def test_of_many_that_create_one_record_one_succeeds(folder):
    records = open_records(folder)
    for name in ("a", "b", "c"):
        with ThreadPoolExecutor(8) as pool:
            contents = [str(i).encode() for i in range(8)]
            created = list(pool.map(lambda c, name=name: records.create(name, c), contents))
        assert created.count(True) == 1
        assert records.read(name) == contents[created.index(True)]
    assert records.names() == ["a", "b", "c"]
    records.remove("b")
    assert records.read("b") is None


# Leases


def other_machine(**changes):
    return replace(LeaseHolder.this_process(), machine="elsewhere", host="node7", **changes)


def test_a_living_process_keeps_its_lease_and_is_named(folder):
    first = acquire(folder, LeaseHolder.this_process())
    with pytest.raises(LeaseHeld, match=rf"process {os.getpid()} on .* since 20.* wait until"):
        acquire(folder, LeaseHolder.this_process())
    first.check()


def test_of_many_that_take_a_lease_at_once_one_has_it(folder):
    def attempt(_):
        try:
            return acquire(folder, LeaseHolder.this_process()).number
        except LeaseHeld:
            return 0

    with ThreadPoolExecutor(8) as pool:
        numbers = sorted(pool.map(attempt, range(8)))
    assert numbers == [0] * 7 + [1]


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"started": "1"}, {"released": True}])
def test_a_process_of_this_machine_that_is_gone_frees_its_lease_at_once(change, folder):
    first = acquire(folder, replace(LeaseHolder.this_process(), **change))
    began = time.monotonic()
    second = acquire(folder, LeaseHolder.this_process(), expiry_seconds=60)
    assert time.monotonic() - began < 10
    assert second.number == first.number + 1
    with pytest.raises(LeaseLost):
        first.check()


def test_a_holder_elsewhere_without_a_sign_of_life_is_refused_after_the_take_over(folder, caplog):
    first = acquire(folder, other_machine())
    second = acquire(folder, LeaseHolder.this_process(), expiry_seconds=0.3)
    assert second.number == 2
    assert "waiting up to 0.3 s for a sign of life of process" in caplog.text
    second.check()
    with pytest.raises(LeaseLost, match="nothing more is written here"):
        first.check()


def test_what_stands_in_a_record_is_no_command_and_breaks_no_order(tmp_path):
    records = open_records(str(tmp_path / ".lease"))
    hostile = replace(other_machine(), host="\x1b[2J", since="\x1b]8;;x\x07\u202e", released=True)
    assert str(hostile).isprintable()
    records.create("99999999.json", hostile.to_json())
    records.create("00000009.json.bak", b"")
    numbers = []
    for _ in range(3):
        lease = acquire(str(tmp_path), LeaseHolder.this_process())
        records.replace(f"{lease.number:08d}.json", hostile.to_json())
        numbers.append(lease.number)
    assert numbers == [100_000_000, 100_000_001, 100_000_002]
    for content in (b"", b'{"machine": "m', b"\x00" * 50, b"[]", b'{"unknown": 1}'):
        records.replace("100000002.json", content)
        with pytest.raises(ValueError, match=r"100000002\.json' is damaged .*: delete it when no"):
            acquire(str(tmp_path), LeaseHolder.this_process())


def test_a_holder_elsewhere_that_gives_signs_of_life_keeps_its_lease(tmp_path):
    with holding(tmp_path / "run", holder=other_machine(), beat_seconds=0.02) as lease:
        with pytest.raises(LeaseHeld, match="on 'node7'"):
            acquire(lease.uri, LeaseHolder.this_process(), expiry_seconds=20)
        lease.check()


def test_a_writer_that_lost_its_folder_is_refused_on_its_next_write_of_any_file(tmp_path):
    with holding(tmp_path) as lease:
        write_whole(tmp_path / "a.txt", "first")
        (tmp_path / "sub").mkdir()
        take_over(str(tmp_path))
        for file in (tmp_path / "a.txt", tmp_path / "sub" / "b.txt"):
            with pytest.raises(LeaseLost, match="taken over"):
                write_whole(file, "second")
        assert lease_above(tmp_path / "sub") == lease
    assert (tmp_path / "a.txt").read_text() == "first"
    assert not (tmp_path / "sub" / "b.txt").exists()
    write_whole(tmp_path / "a.txt", "by whoever")


def test_a_worker_writes_under_the_lease_of_its_driver(tmp_path):
    with holding(tmp_path) as lease:
        write_whole(tmp_path / "a.txt", "before")
    with guarded(lease):
        write_whole(tmp_path / "a.txt", "in time")
        take_over(str(tmp_path))
        with pytest.raises(LeaseLost):
            write_whole(tmp_path / "a.txt", "late")
    assert (tmp_path / "a.txt").read_text() == "in time"


def test_signs_of_life_stop_once_another_has_taken_over(tmp_path):
    with holding(tmp_path, beat_seconds=0.02):
        take_over(str(tmp_path))
        time.sleep(0.2)
        (record,) = (tmp_path / ".lease").iterdir()
        assert record.name == "00000002.json"
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]


def test_a_run_that_wrote_nothing_leaves_no_folder_and_one_that_did_keeps_its_number(tmp_path):
    with holding(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    for number in (1, 2):
        with holding(tmp_path / "run") as lease:
            write_whole(tmp_path / "run" / "a.txt", "x")
        assert lease.number == number


def test_what_a_killed_writer_left_is_removed_by_the_next_holder(tmp_path):
    (tmp_path / "sub" / ".model.0f.part").mkdir(parents=True)
    (tmp_path / "sub" / ".model.0f.part" / "weights").touch()
    (tmp_path / ".a.1f.part.json").touch()
    with holding(tmp_path):
        pass
    assert [path.name for path in tmp_path.rglob("*") if ".part" in path.name] == []


def test_a_second_start_is_told_who_holds_the_folder_and_a_kill_frees_it_at_once(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from panoply.lease import holding
with holding(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LeaseHeld, match=f"process {holder.pid} on") as told:
        acquire(str(tmp_path), LeaseHolder.this_process())
    assert "\n" not in str(told.value)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    with holding(tmp_path) as lease:
        assert lease.number == 2
    assert time.monotonic() - began < 10
