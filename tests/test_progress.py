"""What a run tells: text as text, whoever wrote it, and never the end of what it tells of."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from panoply.report.progress import RunLogger, visible

OUTSIDE = "[/INST] [bold]x[/] :smile: \x1b[2J\ud800 é"
AS_TEXT = "[/INST] [bold]x[/] :smile: \\x1b[2J\\ud800 é"
"""What models, data and other servers may say, and how it is printed."""


@pytest.mark.parametrize(
    "command",
    [
        "\x1b[31m",
        "\x1b]8;;http://evil\x07",
        "\x9b31m",
        "\x00",
        "\x08",
        "\r",
        "\x7f",
        "\u2028",
        "\u202e",
        "\u2066",
        "\u2069",
    ],
)
def test_no_command_to_a_terminal_and_no_mark_that_turns_a_line_around_is_printed(command):
    printed = visible(f"model {command}x")
    assert printed.isprintable()
    assert printed.endswith("x")
    assert (
        visible("\u05e9\u05dc\u05d5\u05dd\u200f!\n\tok") == "\u05e9\u05dc\u05d5\u05dd\u200f!\n\tok"
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_and_a_bar_print_text_as_text(terminal):
    file = io.StringIO()
    watch = RunLogger(Console(file=file, force_terminal=terminal, width=200, color_system=None))
    watch.info(OUTSIDE)
    with watch.bar("scoring with [/INST] [bold]", 2) as advance:
        advance(2)
    assert AS_TEXT in file.getvalue()
    assert not terminal or "scoring with [/INST] [bold]" in file.getvalue()


def run(code, stdout=subprocess.PIPE, **settings):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | settings,
    )


PRINTS = """
from panoply.report.progress import RunLogger, Terminal, exit_if_unusable
from panoply.report.terminal import add_row, empty_table
outside = {outside!r}
console = Terminal()
console.print(f"results: {{outside}}")
table = empty_table("title [/t]", "first [/f]", ["second"])
add_row(table, outside, "b[/b]")
table.add_row(outside, "b")  # as text that no `Text` was made of
console.print(table)
RunLogger(console).info(outside)
with exit_if_unusable(console):
    raise ValueError(outside)
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_a_command_prints_is_text_in_lines_tables_and_errors(encoding):
    code = PRINTS.format(outside=OUTSIDE)
    process = run(code, PYTHONIOENCODING=encoding, COLUMNS="200")
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    expected = AS_TEXT if encoding == "utf-8" else AS_TEXT.replace("é", "\\xe9")
    assert told.count(expected) == 3, told  # the table is as wide as the text was before
    assert told.count(expected[:30]) == 5, told
    assert "title [/t]" in told
    assert "first [/f]" in told
    assert "\x1b" not in told


def test_a_reader_who_goes_away_and_a_full_disk_end_no_run():
    goes_on = """
import sys, time
from panoply.report.progress import RunLogger, Terminal
logger = RunLogger(Terminal())
for second in range(20):
    logger.info("many words " * 200)
    with logger.bar("b", 2) as advance:
        advance(1)
print("to the end", file=sys.stderr)
"""
    process = run(goes_on)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert "to the end" in process.stderr.read()
    with open("/dev/full", "w") as full:
        process = run(goes_on, full)
        process.wait(60)
        assert "to the end" in process.stderr.read()


STOPS = """
import os, signal, time
from panoply.report.progress import RunLogger, Terminal, exit_if_unusable
console = Terminal()
logger = RunLogger(console)
with exit_if_unusable(console):
    with exit_if_unusable(console, logger), logger.heartbeat():
        logger.stage(2, 3, "train")
        logger.resume_point = {point}
        os.kill(os.getpid(), signal.{signal})
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("name", "point", "line"),
    [
        (
            "SIGINT",
            "lambda: 'step 10 of 99'",
            "stopped; the same command goes on from step 10 of 99",
        ),
        ("SIGTERM", "logger.resume_point", "stopped; the same command goes on from stage 2 of 3"),
        ("SIGINT", "None", "stopped"),
    ],
)
def test_a_command_that_is_stopped_says_once_from_where_it_goes_on(name, point, line):
    process = run(STOPS.format(signal=name, point=point))
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    assert not errors
    stage, *rest = told.splitlines()
    assert stage.endswith("stage 2 of 3: train")
    assert len(rest) == 1
    assert rest[0].startswith(line)
    assert point != "None" or rest == ["stopped"]


def test_a_run_error_is_one_sentence_and_a_fault_of_ours_is_not_hidden():
    code = "from panoply.report.progress import *\nwith exit_if_unusable(Terminal()): raise {}('x')"
    process = run(code.format("RunError"))
    told, errors = process.communicate(timeout=60)
    assert (process.returncode, told, errors) == (2, "error: x\n", "")
    process = run(code.format("RuntimeError"))
    assert "Traceback" in process.communicate(timeout=60)[1]


def test_a_log_is_never_silent_for_long(monkeypatch):
    monkeypatch.setattr("panoply.report.progress.HEARTBEAT_SECONDS", 0.5)
    file = io.StringIO()
    logger = RunLogger(Console(file=file, width=200))
    logger.stage(1, 2, "fit")
    with logger.heartbeat():
        time.sleep(1.8)
    assert 2 <= file.getvalue().count("fit: at work for 0 min") <= 5
    file.truncate(0)
    with logger.heartbeat():
        for _ in range(20):
            time.sleep(0.05)
            logger.info("a line")
        logger.end_stages()  # as a server that waits for requests
        time.sleep(1.0)
    assert "at work" not in file.getvalue()


def test_a_run_tells_at_its_end_where_its_seconds_went(monkeypatch):
    console = Console(file=io.StringIO(), width=200)
    now = iter([0.0, 3.0, 3.0, 10.0, 10.0, 12.4, 12.4])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    logger = RunLogger(console)
    logger.stage(1, 2, "embed")
    logger.stage(2, 2, "fit")
    logger.tell_seconds()
    assert console.file.getvalue().endswith("took 12 s: starting 3, embed 7, fit 2\n")


def test_a_run_without_stages_tells_no_seconds():
    console = Console(file=io.StringIO())
    RunLogger(console).tell_seconds()
    assert console.file.getvalue() == ""


def test_lines_with_commands_are_not_broken():
    process = run("from panoply.report.progress import *\nwith exit_if_unusable(Terminal()):"
                  " raise ValueError('give --pairs ' * 30)", COLUMNS="80")  # fmt: skip
    assert process.communicate(timeout=60)[0].count("\n") == 1


def test_a_notice_of_native_code_is_dropped_and_every_other_line_kept(capfd):
    from workflows.cluster.ray_cluster import stderr_without

    def fail():
        with stderr_without(b"a notice"):
            os.write(2, b"before\nsome.cc:3: a notice of no use\n")
            raise OSError("inner")

    with pytest.raises(OSError, match="inner"):
        fail()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nafter\n"
