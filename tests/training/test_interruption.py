"""Signals are requests until the step is done, and decide the exit code."""

import os
import signal
import threading

import pytest

from sam2_3dmed_jax.commands.command_line import exit_code
from sam2_3dmed_jax.errors import Stopped
from sam2_3dmed_jax.training.interruption import stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_further_terminations_are_not_and_ctrl_c_then_interrupts_at_once(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_requests() as request:
        assert request.signal == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_thread_that_gets_no_signals_trains_without():
    found = []

    def ask():
        with stop_requests() as request:
            found.append(request.signal)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_says_what_is_kept_and_ends_as_its_signal_does(number, code, capsys):
    def work():
        raise Stopped("stopped; runs/a holds step 5 of 9", number)

    assert exit_code(work, False, "the same command goes on where it can") == code
    assert capsys.readouterr().err == "stopped; runs/a holds step 5 of 9; the same command goes on where it can\n"
