"""Training in several processes: they join, wait for the first, stop at one step, and end together.

JAX finds the cluster itself (slurm, Kubernetes, Cloud TPU, Open MPI); elsewhere `JAX_COORDINATOR_ADDRESS`,
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say it, as `experiments/launch/local.py` sets them. With one process, all of
this does nothing.

A process that fails tells the others through JAX's coordination service, and a thread of each ends it with the same
sentence, wherever it waits. One that is killed tells nothing: the others see it in their next collective.
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

from sam2_3dmed_jax.errors import Stopped, UserError

# A process that is silent for so long counts as dead, and a death is to be told within 30 s. A launcher that sees
# deaths itself sets more, for a machine so busy that it stalls.
HEARTBEAT_SECONDS = 20
HEARTBEAT = "SAM2_3DMED_HEARTBEAT_SECONDS"
GRACE_SECONDS = 3.0  # for a process to end by itself when another has failed, and to hear of it before the first goes
LAST_SECONDS = 0.5  # between a process's last word and its exit
POLL_SECONDS = 10
FAILED = "sam2_3dmed/failed"  # code and sentence of the process that failed first
AGAIN = "run the same command again in all processes: it goes on from the last checkpoint"
# What the collectives of CPU (gloo), GPU (NCCL) and TPU, the coordination service and its barriers say of a lost peer.
_LOST = re.compile(r"gloo|nccl|coordination|heartbeat|barrier|by peer|unavailable|deadline_exceeded|aborted", re.I)


class _Group:
    """The processes of this run, as this one sees them."""

    def __init__(self, client: Any, index: int, count: int):
        self.client, self.index, self.count = client, index, count
        self.waits = 0  # how often the others have waited for the first
        self.ending = threading.Event()  # this process knows that it ends, and why
        threading.Thread(target=self._watch, daemon=True).start()

    def get(self, key: str) -> str | None:
        """A value that some process sets; None when nothing was set for a while."""
        import jax

        try:
            return str(self.client.blocking_key_value_get(key, POLL_SECONDS * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise

    def tell(self, code: int, sentence: str) -> None:
        """Let the others know that this process ends; who fails first is heard."""
        self.ending.set()
        with contextlib.suppress(Exception):  # another was first, or the coordinator is gone
            self.client.key_value_set(FAILED, f"{code} {sentence}")

    def end(self, code: int) -> NoReturn:
        """End at once: the exit of a JAX process waits for the others, minutes for those that hang or are dead."""
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(Exception):
            self.client.key_value_set(f"sam2_3dmed/gone/{self.index}", "")
            if self.index == 0:  # the others hear through this process
                until = time.monotonic() + 2 * GRACE_SECONDS
                for other in range(1, self.count):
                    self.client.blocking_key_value_get(
                        f"sam2_3dmed/gone/{other}", max(1, int(1000 * (until - time.monotonic())))
                    )
                # They say so just before they exit; JAX aborts one that is still there when the first goes.
                time.sleep(LAST_SECONDS)
        os._exit(code)

    def _watch(self) -> None:
        told = None
        with contextlib.suppress(Exception):  # the service ends before this thread
            while told is None and not self.ending.is_set():
                told = self.get(FAILED)
        if told is None or self.ending.wait(GRACE_SECONDS):
            return  # ends by itself
        code, _, sentence = told.partition(" ")
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        self.end(int(code))


_group: _Group | None = None


def join() -> None:
    """Join the processes of this run, if there are several. To be called before JAX computes anything.

    Raises:
        UserError: the variables do not fit, or a cluster is there but cannot be joined.
    """
    global _group
    import jax

    count = os.environ.get("JAX_NUM_PROCESSES")
    if _group or count == "1" or jax.distributed.is_initialized():
        return
    given: dict[str, Any] = {}
    if count is not None:
        if not os.environ.get("JAX_COORDINATOR_ADDRESS"):
            raise UserError("JAX_COORDINATOR_ADDRESS: JAX_NUM_PROCESSES is set without it; set it to HOST:PORT")
        given = {"num_processes": _number("JAX_NUM_PROCESSES"), "process_id": _number("JAX_PROCESS_ID")}
        if not 0 <= given["process_id"] < given["num_processes"]:
            raise UserError(f"JAX_PROCESS_ID: {given['process_id']} is none of {count} processes; count from 0")
        given["cluster_detection_method"] = "deactivate"
    silence = _number(HEARTBEAT) if HEARTBEAT in os.environ else HEARTBEAT_SECONDS
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=silence)
    except (ValueError, RuntimeError) as error:
        # JAX's ways to say that there is no cluster, and that this process has computed, so it is a script's or test's.
        if not given and re.search("coordinator_address should be defined|must be called before", str(error)):
            return
        raise UserError(
            f"this process cannot join the others ({_first_line(error)}); start all of them with one address, or set "
            "JAX_NUM_PROCESSES=1 to train in this one alone"
        ) from error
    if jax.process_count() > 1:
        from jax._src import distributed  # the key-value store has no public name

        _group = _Group(distributed.global_state.client, jax.process_index(), jax.process_count())


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Around all that processes do together: what ends one ends all, and `leave` must follow."""
    try:
        yield
    except BaseException as error:
        end_if_lost(error)
        if _group:
            where = f"process {_group.index} of {_group.count}"
            if isinstance(error, Stopped):
                pass  # all processes stop at this step
            elif isinstance(error, UserError):
                _group.tell(2, " ".join(str(error).split()))
            elif isinstance(error, KeyboardInterrupt):
                _group.tell(130, f"{where} was interrupted; {AGAIN}")
            else:
                _group.tell(1, f"{where} failed ({type(error).__name__}: {_first_line(error)}); see what it printed")
        raise


def end_if_lost(error: BaseException) -> None:
    """End this process with one sentence if `error` is what the loss of another looks like; call it before tidying up.

    What tidies up would wait for the lost process.
    """
    if _group is None or isinstance(error, UserError) or not isinstance(error, Exception):
        return
    if not _LOST.search(str(error)):
        return
    if _told(_group):
        time.sleep(2 * GRACE_SECONDS)  # the thread that watches ends this process with the other's sentence
    sentence = f"another process of this run ended or cannot be reached ({_first_line(error)}); {AGAIN}"
    _group.tell(1, sentence)
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    _group.end(1)


def leave(code: int) -> None:
    """Leave the others with this exit code, after all is printed; returns only if it is 0 or there are no others."""
    global _group
    if _group is None:
        return
    if code:
        _group.ending.set()
        _group.end(code)
    import jax

    _group.ending.set()
    _group = None
    jax.distributed.shutdown()  # waits for the others


def is_first() -> bool:
    """Whether this process is the one that writes logs and files, and speaks."""
    return _group is None or _group.index == 0


def several() -> bool:
    """Whether this run has more than one process."""
    return _group is not None


def all_here(where: str) -> None:
    """Wait for all processes at a named place."""
    if _group is not None:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)


def all_done(work: str) -> None:
    """Wait, however long it takes, until all processes have done a named work, in which none waited for another."""
    if _group is None:
        return
    _group.client.key_value_set(f"sam2_3dmed/done/{work}/{_group.index}", "done")
    for other in range(_group.count):
        while _group.get(f"sam2_3dmed/done/{work}/{other}") is None:
            pass


def agreed(value: float) -> float:
    """The first process's value, in all of them."""
    if _group is None:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def first(work: Callable[[], object]) -> None:
    """Let the first process do some work while the others wait, however long it takes.

    Nothing in which all take part: no collective, and nothing of Orbax.
    """
    if _group is None:
        work()
        return
    _group.waits += 1
    key = f"sam2_3dmed/first/{_group.waits}"
    if _group.index == 0:
        work()
        _group.client.key_value_set(key, "done")
    else:
        while _group.get(key) is None:
            pass


def should_stop(step: int) -> bool:
    """Whether all processes are to save and stop after this step, since one of them has received SIGTERM.

    To be called by all of them after each step.
    """
    if _group is None:
        return False
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(step))


def _told(group: _Group) -> bool:
    try:
        group.client.key_value_try_get(FAILED)
    except Exception:  # nothing was told, or the coordinator is gone
        return False
    return True


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not re.fullmatch(r"\d{1,6}", text):
        raise UserError(f"{name}: '{text}' is no number; set it to one")
    return int(text)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
