"""A function over many items in several processes, where the death of one costs one item.

Unlike `concurrent.futures`, it survives a worker that the kernel kills (out of memory), ends at once on an interrupt,
and its workers die with their parent, so that none writes on after it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Died:
    """The process that worked on an item died."""

    reason: str


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[tuple[Item, Result | Died], None, None]:
    """Work through the items, and give each with its result as soon as it is there; `close` stops the processes.

    Args:
        function: importable, as are its bound arguments. What it raises is raised here, and ends the work.
        items: can be pickled.
        workers: processes; with 1, this one.
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
                if waiting and not isinstance(result, Died):
                    worker.give(waiting.pop())
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
    """One process, and the item that it is at."""

    def __init__(self, function: Callable[[Item], Result], item: Item):
        # Spawned, since a forked child of a process that runs JAX's threads may deadlock.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs, function), daemon=True)
        resource_tracker.ensure_running()  # else `start` does it, which unblocks SIGINT again
        # A worker inherits the mask: Ctrl-C reaches the whole group, and it is the parent that stops its workers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self.give(item)

    def give(self, item: Item) -> None:
        """Send an item; a worker that has died says so at `result`."""
        self.item = item
        with contextlib.suppress(OSError):
            self.connection.send(item)

    def result(self) -> Result | Died:
        """Of the item; raises what the function raised."""
        try:
            raised, answer = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return Died(f"its process ended with {self._process.exitcode}")
        if raised:
            raise answer
        result: Result = answer
        return result

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[bool, Any] = False, function(item)
        except Exception as error:
            answer = True, error
        connection.send(answer)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
