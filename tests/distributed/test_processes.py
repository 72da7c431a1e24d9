"""End of distributed processes: a user error in one, a death, a stop. Their work is one collective per step."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "experiments" / "launch" / "local.py"
DEATH_SECONDS = 30  # within which the others end
# The launcher, with another program than `sam2-3dmed`.
START = f"""
import sys
sys.path.insert(0, {str(LAUNCHER.parent)!r})
import local
local.COMMAND[:] = [sys.executable, "-u", "-c", sys.argv[1]]
sys.exit(local.main(["--processes", "2", "--", "none"]))
"""
PROGRAM = """
import sys, time
from sam2_3dmed_jax.commands.command_line import exit_code
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime import distributed

def work():
    distributed.initialize()
    with distributed.propagate_errors():
        from jax.experimental import multihost_utils
        WORK

def steps():
    from jax.experimental import multihost_utils
    for step in range(100_000):
        multihost_utils.sync_global_devices("a step")
        if step == 3 and distributed.is_first_process():
            print("running", flush=True)
        if distributed.preempted(step):
            raise KeyboardInterrupt
        time.sleep(0.02)

distributed.shutdown(exit_code(work, False, "saved"))
"""


def launch(work: str) -> subprocess.Popen:
    program = PROGRAM.replace("WORK", textwrap.indent(textwrap.dedent(work), " " * 8).strip())
    return subprocess.Popen(
        [sys.executable, "-c", START, program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def running() -> Iterator[subprocess.Popen]:
    """Two processes in the middle of their steps."""
    process = launch("steps()")
    assert process.stdout
    for line in process.stdout:
        if "running" in line:
            break
    yield process
    process.kill()
    process.communicate()


def kill(launcher: subprocess.Popen, index: int) -> None:
    """Kill the process with this index."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[index]), signal.SIGKILL)


def test_killing_the_second_process_ends_the_first_in_time_and_both_are_reported(running):
    kill(running, 1)
    output, _ = running.communicate(timeout=DEATH_SECONDS)
    assert running.returncode == 128 + signal.SIGKILL
    assert "error: another process of this run ended or cannot be reached" in output
    assert "error: process 1 of 2 was killed by SIGKILL; the others are ended; the same command resumes" in output


def test_killing_the_first_process_ends_the_second_in_time_and_the_launcher_reports_it(running):
    kill(running, 0)
    output, _ = running.communicate(timeout=DEATH_SECONDS)
    assert running.returncode >= 128
    assert "error: process 0 of 2 was killed by SIGKILL; the others are ended; the same command resumes" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_stops_all_processes_after_the_same_step(running, number):
    running.send_signal(number)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + number, output
    assert output.count("interrupted; saved") == 2


def test_a_user_error_in_one_process_ends_the_others_with_the_same_message():
    work = """
        if not distributed.is_first_process():
            raise UserError("shard 7 is damaged")
        multihost_utils.sync_global_devices("waits for the other")
    """
    process = launch(work)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert output.count("error: shard 7 is damaged") == 2


def test_a_user_error_of_the_first_process_reaches_the_processes_that_wait_for_it():
    work = """
        def prepare():
            raise UserError("no case can be prepared")
        distributed.run_on_first_process(prepare)
    """
    process = launch(work)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert output.count("error: no case can be prepared") == 2


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "JAX_COORDINATOR_ADDRESS: JAX_NUM_PROCESSES is set without",
        ),
        ({"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}, "JAX_PROCESS_ID: '' is not a number"),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID: 2 is not one of 2 processes",
        ),
    ],
)
def test_inconsistent_environment_variables_are_user_errors(monkeypatch, variables, sentence):
    from sam2_3dmed_jax.errors import UserError
    from sam2_3dmed_jax.runtime import distributed

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=sentence):
        distributed.initialize()


def test_a_single_process_connects_to_no_others_and_does_not_wait(monkeypatch):
    from sam2_3dmed_jax.runtime import distributed

    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    distributed.initialize()
    done = []
    distributed.run_on_first_process(lambda: done.append(1))
    assert done
    assert distributed.is_first_process()
    assert not distributed.preempted(1)
    distributed.shutdown(2)  # returns, because this is the only process
