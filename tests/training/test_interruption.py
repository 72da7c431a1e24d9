"""Signals request a stop after the current step, and decide the exit code."""

import os
import signal
import threading

import pytest

from sam2_3dmed_jax.commands.command_line import exit_code
from sam2_3dmed_jax.errors import Stopped
from sam2_3dmed_jax.training.interruption import stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request_and_a_later_ctrl_c_interrupts(number):
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


def test_a_thread_without_signals_has_no_stop_request():
    signals = []

    def record_signal():
        with stop_requests() as request:
            signals.append(request.signal)

    thread = threading.Thread(target=record_signal)
    thread.start()
    thread.join()
    assert signals == [0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_reports_its_step_and_exits_with_the_signals_code(number, code, capsys):
    def work():
        raise Stopped("stopped; runs/a holds step 5 of 9", number)

    assert exit_code(work, False, "run the same command again to resume") == code
    assert capsys.readouterr().err == "stopped; runs/a holds step 5 of 9; run the same command again to resume\n"
