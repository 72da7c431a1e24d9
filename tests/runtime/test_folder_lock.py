"""One process writes into a folder: others are refused, and the locks of ended processes are taken over."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime import folder_lock
from sam2_3dmed_jax.runtime.folder_lock import FolderLock, is_lock, one_job, one_writer

FIX = "give another --out"
# Holds a folder until its stdin is closed; `HOLD` and further code may change how it ends.
HOLDER = """
import sys
from sam2_3dmed_jax.runtime import folder_lock, interrupts
folder_lock.HEARTBEAT_SECONDS = 0.05
with folder_lock.one_writer(sys.argv[1], "give another --out"):
    print("held", flush=True)
    {then}
    print("done", flush=True)
"""
WAIT = "sys.stdin.read()"
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc of Linux")


def start(folder: Path, then: str = WAIT) -> subprocess.Popen:
    """A process that holds the folder."""
    words = [sys.executable, "-c", HOLDER.format(then=then), str(folder), "--colour", "blue green"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def of_another_machine(folder: Path, **changes) -> Path:
    """The lock of a process on another machine."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {"machine": "boot 7", "host": "node07", "pid": 4711, "command": "sam2-3dmed train e.py"}
    file = folder / folder_lock.LOCK
    file.write_text(json.dumps(asdict(replace(folder_lock._this_process(), **{**there, **changes}))))
    return file


@contextmanager
def heartbeat(file: Path):
    """Touch a lock as its owner does."""
    stop = threading.Event()

    def beat():
        while not stop.wait(0.05):
            os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def impatient(monkeypatch):
    """Locks of other machines are stale after half a second."""
    monkeypatch.setattr(folder_lock, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(folder_lock, "POLL_SECONDS", 0.02)


def dead_owner(folder: Path) -> Path:
    """The lock of a process of this machine that has ended."""
    return of_another_machine(folder, machine=folder_lock._machine(), pid=os.getpid(), started="1")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@linux
def test_a_second_process_is_refused_with_the_identity_of_the_first_which_goes_on(tmp_path):
    first = start(tmp_path / "run")
    with pytest.raises(UserError) as refused, one_writer(tmp_path / "run", FIX):
        pass
    message = str(refused.value)
    assert f"in use by process {first.pid} on {os.uname().nodename} since 20" in message
    assert "--colour 'blue green'" in message and message.endswith(f"wait for it, stop it, or {FIX}")
    assert len(message) <= 300
    assert first.communicate("")[0] == "done\n" and first.returncode == 0
    with one_writer(tmp_path / "run", FIX):
        pass


def test_the_lock_and_folders_that_stay_empty_are_removed_at_the_end(tmp_path):
    with one_writer(tmp_path / "runs" / "a", FIX):
        assert files(tmp_path / "runs" / "a") == [folder_lock.LOCK]
    assert files(tmp_path) == []
    with pytest.raises(ZeroDivisionError), one_writer(tmp_path / "runs" / "a", FIX):
        (tmp_path / "runs" / "a" / "config.json").touch()
        raise ZeroDivisionError
    assert files(tmp_path / "runs" / "a") == ["config.json"]


def test_a_folder_that_exists_is_kept_although_it_is_empty(tmp_path):
    with one_writer(tmp_path, FIX):
        pass
    assert tmp_path.is_dir() and files(tmp_path) == []


@linux
def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path):
    first = start(tmp_path)
    first.kill()  # nobody waits for it yet, as in a container without an init process
    while Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert files(tmp_path) == [folder_lock.LOCK]
    with one_writer(tmp_path, FIX):
        pass
    assert files(tmp_path) == []
    first.communicate()


@linux
def test_a_later_process_with_the_same_id_does_not_keep_the_lock(tmp_path):
    dead_owner(tmp_path)
    with one_writer(tmp_path, FIX):
        pass


def test_a_process_cannot_hold_a_folder_twice(tmp_path):
    with one_writer(tmp_path, FIX), pytest.raises(UserError, match="in use by"), one_writer(tmp_path, FIX):
        pass


def test_of_the_processes_of_one_job_the_first_holds_the_lock_for_all(tmp_path, monkeypatch):
    with one_job(tmp_path, FIX):
        with monkeypatch.context() as other:
            other.setattr(folder_lock.distributed, "run_on_first_process", lambda task: None)
            with one_job(tmp_path, FIX):
                pass
        assert files(tmp_path) == [folder_lock.LOCK]
        with pytest.raises(UserError), one_job(tmp_path, FIX):
            pass


@linux
def test_a_forked_process_does_not_release_the_lock(tmp_path):
    # In a process of its own, because a forked child of a process with JAX's threads may deadlock.
    script = """
import os, sys
from sam2_3dmed_jax.runtime import folder_lock
with folder_lock.one_writer(sys.argv[1], "wait"):
    if not (child := os.fork()):
        folder_lock._release_all()
        os._exit(0)
    os.waitpid(child, 0)
    print(os.listdir(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{[folder_lock.LOCK]}\n", done.stderr


def test_locks_of_different_names_are_held_at_the_same_time(tmp_path):
    with one_writer(tmp_path, FIX, ".lock-1-of-2"), one_writer(tmp_path, FIX, ".lock-2-of-2"):
        assert all(is_lock(path) for path in tmp_path.iterdir()) and len(files(tmp_path)) == 2


def test_a_live_process_of_another_machine_is_refused_as_soon_as_it_gives_a_sign(tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(folder_lock, "STALE_SECONDS", 30.0)
    start = time.monotonic()
    named = "process 4711 on node07 since .* \\(sam2-3dmed train e.py\\)"
    with heartbeat(of_another_machine(tmp_path)), pytest.raises(UserError, match=named), one_writer(tmp_path, FIX):
        pass
    assert time.monotonic() - start < 10


def test_a_silent_process_of_another_machine_is_taken_over_whatever_its_clock(tmp_path, impatient):
    os.utime(of_another_machine(tmp_path), (2e9, 2e9))  # its clock is years ahead
    start = time.monotonic()
    with one_writer(tmp_path, FIX):
        assert time.monotonic() - start >= 0.5


def test_a_lock_that_is_damaged_is_taken_over_if_nobody_touches_it(tmp_path, impatient):
    (tmp_path / folder_lock.LOCK).write_bytes(b"\xff{" * 4000)
    with heartbeat(tmp_path / folder_lock.LOCK), pytest.raises(UserError, match="left no name"):
        FolderLock(tmp_path, FIX).acquire()
    with one_writer(tmp_path, FIX):
        pass


@linux
@pytest.mark.parametrize("links", [True, False])
def test_of_several_that_take_over_at_once_one_wins(tmp_path, links, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for number in range(40):
        folder = tmp_path / str(number)
        dead_owner(folder)
        barrier, won, refused = threading.Barrier(6), [], []

        def take(folder=folder, barrier=barrier, won=won, refused=refused):
            lock = FolderLock(folder, FIX)
            barrier.wait()
            try:
                lock.acquire()
                won.append(lock)
            except UserError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=take) for _ in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(won) == 1 and len(refused) == 5, refused
        won[0].release()
        assert files(folder) == []


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@linux
def test_of_several_processes_that_take_over_at_once_one_wins(tmp_path):
    dead_owner(tmp_path / "run")
    code = HOLDER.format(then=WAIT).replace("with", "sys.stdin.readline()\nwith", 1)
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", code, str(tmp_path / "run")]
    processes = [subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    losers = [process for process in processes if process.stdout.readline() != "held\n"]
    assert len(losers) == 3
    assert all("is in use by process" in process.communicate()[1] for process in losers)
    (winner,) = set(processes) - set(losers)
    assert winner.communicate("")[0] == "done\n"
    assert files(tmp_path / "run") == []


@linux
def test_a_takeover_that_was_killed_halfway_is_finished_by_the_next_process(tmp_path):
    file = dead_owner(tmp_path)
    guard = file.with_name(f"{file.name}.{folder_lock._read(file).name}")
    guard.write_text(file.read_text().replace("4711", "4712"))
    with one_writer(tmp_path, FIX):
        pass
    assert files(tmp_path) == []


@linux
def test_a_process_whose_lock_was_taken_stops_with_one_sentence(tmp_path):
    first = start(tmp_path)
    content = of_another_machine(tmp_path.with_name("other")).read_text()
    (tmp_path / folder_lock.LOCK).write_text(content)
    output, errors = first.communicate(timeout=30) if first.wait(30) else ("", "")
    assert first.returncode == 2 and "done" not in output
    assert errors.startswith(f"error: {tmp_path} was taken over by process 4711 on node07")
    assert (tmp_path / folder_lock.LOCK).read_text() == content


@linux
def test_a_lock_that_was_removed_by_hand_comes_back(tmp_path):
    first = start(tmp_path)
    before = (tmp_path / folder_lock.LOCK).read_text()
    (tmp_path / folder_lock.LOCK).unlink()
    deadline = time.monotonic() + 20
    while not (tmp_path / folder_lock.LOCK).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (tmp_path / folder_lock.LOCK).read_text() == before
    first.communicate("")
    assert files(tmp_path) == []


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, 0])
def test_the_lock_is_removed_on_ctrl_c_and_when_the_process_is_ended_at_once(tmp_path, number):
    if number:
        interruptible = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        first = start(tmp_path, f"{interruptible}; print('ready', flush=True); {WAIT}")
        assert first.stdout.readline() == "ready\n"
        first.send_signal(number)
    else:
        first = start(tmp_path, "interrupts.end_process('ended')")
    first.communicate(timeout=30)
    assert first.returncode != 0 and files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run cannot be written"), one_writer(tmp_path / "file" / "run", FIX):
        pass
