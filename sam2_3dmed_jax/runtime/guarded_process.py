"""Child process for native code that reads data of unknown origin, with limits of memory and time.

A native decoder that crashes, hangs or fills the memory ends the child, and costs an error message. Answers are plain
numbers and texts, never pickles, so that a child whose memory was overwritten cannot run code in this process. It is no
sandbox: the child has the rights of the user.

Unlike `multiprocessing`, starting the child does not import the main module again, so that scripts without
`if __name__ == "__main__"` can read files.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any

import numpy as np

from sam2_3dmed_jax.errors import UserError

_HEADER = 2**16  # bytes; limit of the line before the numbers
_BLOCK = 2**20  # bytes that are read at once
_GRACE = 30  # seconds of the processor on top of the limit of a call, which the parent enforces
_START = 60.0  # seconds to start Python and to import the function


class ChildError(Exception):
    """The child crashed, or exceeded its limit of memory or time; the message is the reason."""


class GuardedProcess:
    """A child that calls one function of texts, which returns an array of numbers; a context manager.

    The child starts with the first call, and again after a failure.
    """

    def __init__(self, function: str):
        """Remember the function.

        Args:
            function: `module:name`. It may raise `UserError`, which is raised here too.
        """
        self._function = function
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> GuardedProcess:
        """Return the process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the child."""
        self._stop()

    def call(self, arguments: Sequence[str], most_bytes: int, memory: int, seconds: float) -> np.ndarray:
        """Call the function in the child.

        Args:
            arguments: of the function.
            most_bytes: limit of the size of the result.
            memory: bytes that the child may take on top of what it has after its start; enforced on Linux.
            seconds: limit of the time of the call, without the start of the child.

        Raises:
            ChildError: the child crashed or exceeded a limit.
            UserError: from the function.
        """
        try:
            return self._call(arguments, most_bytes, memory, seconds)
        except BaseException as error:
            if not isinstance(error, UserError):  # the child may still be at work
                self._stop()
            raise

    def _call(self, arguments: Sequence[str], most_bytes: int, memory: int, seconds: float) -> np.ndarray:
        child = self._started()
        request = {"arguments": list(arguments), "memory": memory, "seconds": seconds}
        assert child.stdin and child.stdout
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
        except OSError:
            raise ChildError(self._end()) from None
        answer = self._answer(child.stdout, time.monotonic() + seconds)
        if "refused" in answer:
            raise UserError(str(answer["refused"])[:1000])
        if "failed" in answer:
            raise ChildError(str(answer["failed"])[:200])
        try:
            dtype, shape = np.dtype(str(answer["dtype"])), tuple(int(length) for length in answer["shape"])
        except (KeyError, TypeError, ValueError):
            raise ChildError("its answer is damaged") from None
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "iuf" or min(shape, default=0) < 0 or size > most_bytes:
            raise ChildError(f"it returned {size} bytes of {dtype}, expected at most {most_bytes}")
        array = np.empty(size, np.uint8)
        self._fill(child.stdout, array, time.monotonic() + seconds)
        return array.view(dtype).reshape(shape)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({self._function!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # native libraries print what the parent reports
            start_new_session=True,  # Ctrl-C reaches the parent alone, which stops the child
        )
        assert self._process.stdout
        if self._answer(self._process.stdout, time.monotonic() + _START) != {"ready": True}:
            raise ChildError("its answer is damaged")
        return self._process

    def _answer(self, stream: IO[bytes], deadline: float) -> dict[str, Any]:
        """Return the line that starts an answer."""
        line = bytearray()
        while not line.endswith(b"\n"):
            self._wait(stream, deadline)
            byte = os.read(stream.fileno(), 1)
            line += byte
            if not byte:
                raise ChildError(self._end())
            if len(line) > _HEADER:
                raise ChildError("its answer is damaged")
        try:
            answer = json.loads(line)
        except ValueError:
            raise ChildError("its answer is damaged") from None
        return answer if isinstance(answer, dict) else {}

    def _fill(self, stream: IO[bytes], array: np.ndarray, deadline: float) -> None:
        at = 0
        while at < len(array):
            self._wait(stream, deadline)
            data = os.read(stream.fileno(), min(_BLOCK, len(array) - at))
            if not data:
                raise ChildError(self._end())
            array[at : at + len(data)] = np.frombuffer(data, np.uint8)
            at += len(data)

    def _wait(self, stream: IO[bytes], deadline: float) -> None:
        if not hasattr(select, "poll"):
            return  # Windows cannot wait for pipes
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ChildError("it took too long")

    def _end(self) -> str:
        """Return how the child ended."""
        assert self._process
        code = self._process.wait(10)
        if code == -signal.SIGKILL:
            return "it was killed, perhaps for its memory"
        return f"it crashed with {signal.Signals(-code).name}" if code < 0 else f"it ended with {code}"

    def _stop(self) -> None:
        if self._process is None:
            return
        child, self._process = self._process, None
        with contextlib.suppress(OSError):
            child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()


def serve(function: str) -> None:
    """Answer the calls of the parent, until it closes the pipe; runs in the child.

    Args:
        function: `module:name`.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print to the descriptor of the answers
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)

    def answer(header: dict[str, Any], array: np.ndarray | None = None) -> None:
        answers.write(json.dumps(header).encode() + b"\n")
        if array is not None:
            answers.write(array.reshape(-1).view(np.uint8).data)
        answers.flush()

    answer({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            _limit_this_process(request["memory"], request["seconds"])
            array = np.ascontiguousarray(call(*request["arguments"]))
            header = {"dtype": array.dtype.str, "shape": array.shape}
        except UserError as error:
            answer({"refused": str(error)})
        except MemoryError:
            answer({"failed": "it needs more memory than such a file may take"})
        except Exception as error:
            answer({"failed": " ".join(str(error).split())[:200] or type(error).__name__})
        else:
            answer(header, array)


def _limit_this_process(memory: int, seconds: float) -> None:
    """Limit what this process may take from now on, where the system can do it.

    Args:
        memory: bytes of address space on top of what it has.
        seconds: of the processor, so that a child in an endless loop ends if its parent has been killed.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # does not exist on Windows

        usage = resource.getrusage(resource.RUSAGE_SELF)
        _lower(resource, resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime + seconds) + _GRACE)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        _lower(resource, resource.RLIMIT_AS, used + memory)


def _lower(resource: Any, kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
