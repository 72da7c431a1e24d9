"""Distributed runs: several processes start, synchronise, stop at the same step and end together.

JAX detects slurm, Kubernetes, Cloud TPU and Open MPI. Elsewhere, `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
`JAX_PROCESS_ID` describe the cluster, as `experiments/launch/local.py` sets them. With one process, nothing here has an
effect.

A process that fails announces it through JAX's coordination service; a thread in each other process then ends that
process with the same message, even while it waits in a collective. A process that is killed announces nothing: the
others fail in their next collective.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from sam2_3dmed_jax.errors import Stopped, UserError, message_line
from sam2_3dmed_jax.runtime import interrupts

# JAX declares a process dead after this time without a heartbeat, so that the others end within 30 s. A launcher that
# detects deaths itself sets a larger value, because a busy machine may delay heartbeats.
HEARTBEAT_SECONDS = 20
HEARTBEAT_VARIABLE = "SAM2_3DMED_HEARTBEAT_SECONDS"
GRACE_SECONDS = 3.0  # time for a process to end without help after another has failed
LAST_SECONDS = 0.5  # between the announcement that a process exits and its exit
POLL_SECONDS = 10
FAILED_KEY = "sam2_3dmed/failed"  # exit code and message of the process that failed first
RUN_AGAIN = "run the same command again in all processes: it resumes from the last checkpoint"
# Words in the errors that collectives on CPU (gloo), GPU (NCCL) and TPU, the coordination service and its barriers
# raise when a process is lost.
_LOST_PEER = re.compile(r"gloo|nccl|coordination|heartbeat|barrier|by peer|unavailable|deadline_exceeded|aborted", re.I)


class _Group:
    """The processes of this run, and this process's connection to their key-value store."""

    def __init__(self, client: Any, index: int, count: int):
        self.client, self.index, self.count = client, index, count
        self.first_process_tasks = 0  # number of calls of `run_on_first_process`
        self.ending = threading.Event()  # this process is ending, and has reported why
        threading.Thread(target=self._watch, daemon=True).start()

    def get(self, key: str) -> str | None:
        """Return a value that another process sets, or None if it is not set within `POLL_SECONDS`."""
        import jax

        try:
            return str(self.client.blocking_key_value_get(key, POLL_SECONDS * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise

    def announce_failure(self, code: int, message: str) -> None:
        """Tell the other processes that this one ends; only the first failure is kept."""
        self.ending.set()
        with contextlib.suppress(Exception):  # another process failed first, or the coordinator is gone
            self.client.key_value_set(FAILED_KEY, f"{code} {message}")

    def failure_is_known(self) -> bool:
        """Return whether a process has announced its failure."""
        try:
            self.client.key_value_try_get(FAILED_KEY)
        except Exception:  # the key is not set, or the coordinator is gone
            return False
        return True

    def exit_now(self, code: int) -> NoReturn:
        """End this process at once; a normal exit of JAX waits minutes for processes that hang or are dead."""
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(Exception):
            self.client.key_value_set(f"sam2_3dmed/gone/{self.index}", "")
            if self.index == 0:  # the coordination service runs in this process, so it exits last
                self._wait_for_exits()
        interrupts.clean_up()
        os._exit(code)

    def _wait_for_exits(self) -> None:
        until = time.monotonic() + 2 * GRACE_SECONDS
        for other in range(1, self.count):
            milliseconds = max(1, int(1000 * (until - time.monotonic())))
            self.client.blocking_key_value_get(f"sam2_3dmed/gone/{other}", milliseconds)
        # They set the key just before they exit; JAX aborts a process that is still there when the service ends.
        time.sleep(LAST_SECONDS)

    def _watch(self) -> None:
        """End this process when another one fails (runs in a thread)."""
        failure = None
        with contextlib.suppress(Exception):  # the service ends before this thread
            while failure is None and not self.ending.is_set():
                failure = self.get(FAILED_KEY)
        if failure is None or self.ending.wait(GRACE_SECONDS):
            return
        code, _, message = failure.partition(" ")
        print(f"error: {message}", file=sys.stderr, flush=True)
        self.exit_now(int(code))


_group: _Group | None = None


def initialize() -> None:
    """Connect to the other processes of this run, if there are any. Call it before JAX computes anything.

    Raises:
        UserError: the environment variables are inconsistent, or this process cannot connect to the cluster.
    """
    global _group
    import jax

    if _group or os.environ.get("JAX_NUM_PROCESSES") == "1" or jax.distributed.is_initialized():
        return
    cluster = _cluster_of_environment()
    timeout = _number(HEARTBEAT_VARIABLE) if HEARTBEAT_VARIABLE in os.environ else HEARTBEAT_SECONDS
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**cluster, heartbeat_timeout_seconds=timeout)
    except (ValueError, RuntimeError) as error:
        # JAX raises these errors when it detects no cluster, and when this process, a script or test, has computed.
        if not cluster and re.search("coordinator_address should be defined|must be called before", str(error)):
            return
        raise UserError(
            f"this process cannot connect to the others ({_first_line(error)}); start all of them with the same "
            "address, or set JAX_NUM_PROCESSES=1 to train in this process alone"
        ) from error
    if jax.process_count() > 1:
        from jax._src import distributed  # the key-value store has no public name

        _group = _Group(distributed.global_state.client, jax.process_index(), jax.process_count())


def shutdown(code: int) -> None:
    """Disconnect from the other processes; with a `code` other than 0, exit. Call it after everything is printed."""
    global _group
    if _group is None:
        return
    _group.ending.set()
    if code:
        _group.exit_now(code)
    import jax

    _group = None
    jax.distributed.shutdown()  # waits for the others


@contextlib.contextmanager
def propagate_errors() -> Iterator[None]:
    """End all processes when one fails inside the block, which contains all of their common work.

    `shutdown` must follow.
    """
    try:
        yield
    except BaseException as error:
        exit_if_peer_lost(error)
        if _group and not isinstance(error, Stopped):  # all processes stop at the same step
            _group.announce_failure(*_exit_code_and_message(error, _group))
        raise


def exit_if_peer_lost(error: BaseException) -> None:
    """End this process with one message if another process was lost.

    Call it before any cleanup, which would wait for the lost process.

    Args:
        error: the error in this process.
    """
    if _group is None or isinstance(error, UserError) or not isinstance(error, Exception):
        return
    if not _LOST_PEER.search(str(error)):
        return
    if _group.failure_is_known():
        time.sleep(2 * GRACE_SECONDS)  # the watching thread ends this process with the message of the other one
    message = f"another process of this run ended or cannot be reached ({_first_line(error)}); {RUN_AGAIN}"
    _group.announce_failure(1, message)
    print(f"error: {message}", file=sys.stderr, flush=True)
    _group.exit_now(1)


def is_first_process() -> bool:
    """Return whether this process is the one that writes logs and files and prints."""
    return _group is None or _group.index == 0


def is_distributed() -> bool:
    """Return whether this run has more than one process."""
    return _group is not None


def barrier(name: str) -> None:
    """Wait until all processes have reached the barrier of this name."""
    if _group is not None:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def wait_for_all(task: str) -> None:
    """Wait without a time limit until all processes have finished their independent parts of a task."""
    if _group is None:
        return
    _group.client.key_value_set(f"sam2_3dmed/done/{task}/{_group.index}", "done")
    for other in range(_group.count):
        while _group.get(f"sam2_3dmed/done/{task}/{other}") is None:
            pass


def broadcast_from_first(value: float) -> float:
    """Return the value of the first process, in all processes; float32 if there are several."""
    if _group is None:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def run_on_first_process(task: Callable[[], object]) -> None:
    """Run a task on the first process while the others wait, without a time limit.

    Args:
        task: contains no collective, and nothing of Orbax: all processes would have to take part in these.
    """
    if _group is None:
        task()
        return
    _group.first_process_tasks += 1
    key = f"sam2_3dmed/first/{_group.first_process_tasks}"
    if _group.index == 0:
        task()
        _group.client.key_value_set(key, "done")
    else:
        while _group.get(key) is None:
            pass


def preempted(step: int) -> bool:
    """Return whether all processes must save and stop after this step, because one of them has received SIGTERM.

    All processes call it after each step.
    """
    if _group is None:
        return False
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(step))


def _cluster_of_environment() -> dict[str, Any]:
    """Return the arguments of `jax.distributed.initialize` from the variables; empty: JAX detects the cluster."""
    if "JAX_NUM_PROCESSES" not in os.environ:
        return {}
    if not os.environ.get("JAX_COORDINATOR_ADDRESS"):
        raise UserError("JAX_COORDINATOR_ADDRESS: JAX_NUM_PROCESSES is set without it; set it to HOST:PORT")
    count, index = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
    if not 0 <= index < count:
        raise UserError(f"JAX_PROCESS_ID: {index} is not one of {count} processes; give 0 to {count - 1}")
    return {"num_processes": count, "process_id": index, "cluster_detection_method": "deactivate"}


def _exit_code_and_message(error: BaseException, group: _Group) -> tuple[int, str]:
    process = f"process {group.index} of {group.count}"
    if isinstance(error, UserError):
        return 2, message_line(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, f"{process} was interrupted; {RUN_AGAIN}"
    return 1, f"{process} failed ({type(error).__name__}: {_first_line(error)}); read its output"


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not re.fullmatch(r"\d{1,6}", text):
        raise UserError(f"{variable}: '{text}' is not a number; set it to one")
    return int(text)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
