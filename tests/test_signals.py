"""What Ctrl-C and `ray job stop` do while Ray Train runs, and afterwards."""

import signal

import pytest

from workflows.cluster.ray_cluster import aborts_when_stopped


def test_a_stopped_job_is_told_what_ctrl_c_tells_and_signals_are_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    told = []
    with aborts_when_stopped():
        signal.signal(signal.SIGINT, lambda number, _: told.append(number))  # as Ray Train does
        signal.raise_signal(signal.SIGTERM)
    assert told == [signal.SIGINT]
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_run_in_the_background_of_a_script_which_ignores_ctrl_c_can_be_stopped():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), aborts_when_stopped():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_aborted_run_is_no_success():
    with pytest.raises(SystemExit) as ended, aborts_when_stopped():
        raise SystemExit(0)  # as Ray Train does
    assert ended.value.code == 130  # as after Ctrl-C
