"""Parallel map over worker processes in which the death of a worker costs one item.

Unlike `concurrent.futures`, the map continues when the kernel kills a worker (out of memory), it ends at once on an
interrupt, and workers die with their parent, so that none writes files after it. Warnings about files are shown by the
parent.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from sam2_3dmed_jax.errors import FileWarning, UserError

MAX_WORKERS = 8  # by default, because each worker has a case in memory, about 1 GB
Item = TypeVar("Item")
Result = TypeVar("Result")


def number_of_workers(given: int | None) -> int:
    """Return how many workers a user asks for, or one per core that this process may use, at most `MAX_WORKERS`.

    Raises:
        UserError: fewer than one are asked for.
    """
    if given is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(MAX_WORKERS, cores)
    if given < 1:
        raise UserError(f"--workers: {given} is not a number of processes; give 1 or more")
    return given


@dataclass(frozen=True)
class WorkerDied:
    """Result of an item whose worker process died."""

    reason: str


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[tuple[Item, Result | WorkerDied], None, None]:
    """Yield each item with its result as soon as it is finished; closing the generator stops the processes.

    Args:
        function: an importable function whose bound arguments are importable, too. Its exceptions are raised here and
            end the map.
        items: the arguments of the calls; they can be pickled.
        workers: number of processes; 1 calls the function in this process.
    """
    if workers == 1 or len(items) < 2:
        for item in items:
            yield item, function(item)
        return
    waiting = list(reversed(items))
    busy: dict[Any, _Worker[Item, Result]] = {}
    try:
        for _ in range(min(workers, len(items))):
            worker = _Worker(function, waiting.pop())
            busy[worker.connection] = worker
        while busy:
            for connection in wait(list(busy)):
                worker = busy[connection]
                item, result = worker.item, worker.result()
                if waiting and not isinstance(result, WorkerDied):
                    worker.send(waiting.pop())
                else:
                    worker.stop()
                    del busy[connection]
                    if waiting:
                        worker = _Worker(function, waiting.pop())
                        busy[worker.connection] = worker
                yield item, result
    finally:
        for worker in busy.values():
            worker.stop()


class _Worker(Generic[Item, Result]):
    """One process and the item that it processes."""

    def __init__(self, function: Callable[[Item], Result], item: Item):
        # The process is spawned, because a forked child of a process that runs JAX's threads may deadlock.
        context = multiprocessing.get_context("spawn")
        self.connection, other_end = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(other_end, function), daemon=True)
        resource_tracker.ensure_running()  # otherwise `start` runs it, which unblocks SIGINT
        # Ctrl-C reaches the whole process group. Workers inherit the mask and ignore it; the parent stops them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        other_end.close()
        self.send(item)

    def send(self, item: Item) -> None:
        """Send an item; if the worker has died, `result` reports it."""
        self.item = item
        with contextlib.suppress(OSError):
            self.connection.send(item)

    def result(self) -> Result | WorkerDied:
        """Return the result of the item, or raise the exception of the function."""
        try:
            is_exception, answer, notes = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return WorkerDied(f"its process ended with {self._process.exitcode}")
        for note in notes:
            warnings.warn(note, FileWarning, stacklevel=3)
        if is_exception:
            raise answer
        result: Result = answer
        return result

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer items with `(is_exception, result, warnings about files)` until the parent closes the connection."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FileWarning)
            try:
                answer: tuple[bool, Any] = False, function(item)
            except Exception as error:
                answer = True, error
        notes = [str(warning.message) for warning in caught if issubclass(warning.category, FileWarning)]
        connection.send((*answer, notes))


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
