"""Interruptions before every system call of a write: afterwards the old files are there, or the new ones, whole."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sam2_3dmed_jax.runtime.delayed_signals import signals_delayed
from tests.helpers.interrupted_writes import WRITES, Write, count_calls, files_here, interrupted, prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def keyboard_interrupt() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, whatever the runner of the tests does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def states(
    write: Write, interrupt: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield the visible files and the hidden ones after an interruption before each system call of a write."""
    (tmp_path / "count").mkdir()
    total = count_calls(write, tmp_path / "count")
    assert total >= 3
    for number in range(1, total + 1):
        root = tmp_path / str(number)
        root.mkdir()
        monkeypatch.chdir(root)
        prepare(write)
        with pytest.raises(KeyboardInterrupt), interrupted(number, interrupt, write.plain):
            write.work()
        yield files_here()


@pytest.mark.parametrize("name", WRITES)
def test_ctrl_c_before_any_call_leaves_the_old_or_the_new_files_and_nothing_hidden(name, tmp_path, monkeypatch):
    write = WRITES[name]
    found = list(states(write, lambda: signal.raise_signal(signal.SIGINT), tmp_path, monkeypatch))
    assert all(shown in (write.before, write.after) and not hidden for shown, hidden in found)
    assert found[0][0] == write.before and found[-1][0] == write.after


@pytest.mark.parametrize("name", WRITES)
def test_an_error_of_any_call_leaves_the_old_or_the_new_files(name, tmp_path, monkeypatch):
    def fail() -> None:
        raise KeyboardInterrupt

    write = WRITES[name]
    assert all(shown in (write.before, write.after) for shown, _ in states(write, fail, tmp_path, monkeypatch))


def test_a_killed_process_leaves_each_file_and_folder_old_or_new():
    command = [sys.executable, "-m", "tests.helpers.interrupted_writes"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    for name, found in json.loads(run.stdout).items():
        write = WRITES[name]
        for at_once, after_next_write in found:
            if name == "several files":  # each of them is whole
                assert all(at_once[file] in ("old", "new") for file in write.old)
            elif not write.plain:
                assert at_once in (write.before, write.after)
            # Where folders cannot be exchanged in one call, the next write gives the old one its name back.
            assert after_next_write in (write.before, write.after) or name == "several files"
        assert len(found) >= 3


def test_signals_take_effect_at_the_end_of_the_block_that_delays_them():
    order = []
    with pytest.raises(KeyboardInterrupt):
        with signals_delayed():
            signal.raise_signal(signal.SIGINT)
            order.append("inside")
        order.append("after")
    assert order == ["inside"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_thread_delays_no_signals_because_it_receives_none():
    seen = []

    def work() -> None:
        with signals_delayed():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
