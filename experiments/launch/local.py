"""Launcher of one `sam2-3dmed` command in several processes on this machine's CPU, as a cluster would start them.

    python experiments/launch/local.py --processes 2 [--devices-per-process N] -- train experiments/demo.py --out RUN

One process uses all accelerators of a machine, so several GPUs or TPUs of one machine do not need this launcher.
Process 0 owns the terminal; the output of the others is prefixed with `[process N]`. Ctrl-C and SIGTERM let all
processes save a checkpoint and stop; a second signal kills them. When one process dies, the others end too. The exit
code is the largest one of the processes, 128 + N for signal N.
"""

import argparse
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

COMMAND = [sys.executable, "-u", "-m", "sam2_3dmed_jax.commands.main"]
GRACE_SECONDS = 10.0  # time for the other processes to end after a death
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM}  # exit codes of processes that stopped on request
STOP_SECONDS = 120.0  # time to save a checkpoint after Ctrl-C, once the first process has stopped


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Run one sam2-3dmed command in several processes on this machine's CPU."
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--devices-per-process", type=int, default=1, metavar="N", help="virtual CPU devices")
    parser.add_argument("command", nargs="+", metavar="-- VERB ...", help="command of sam2-3dmed with its flags")
    options = parser.parse_args(words)
    if options.processes < 1 or options.devices_per_process < 1:
        parser.error("--processes and --devices-per-process are counts; give 1 or more")
    return Group(options.command, options.processes, options.devices_per_process).wait()


class Group:
    """The processes of one run."""

    def __init__(self, command: Sequence[str], count: int, devices: int):
        self._stop_signals: list[int] = []  # signals received so far
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        address = f"127.0.0.1:{_free_port()}"
        self._children: list[subprocess.Popen] = []
        for index in range(count):
            self._children.append(
                subprocess.Popen(
                    [*COMMAND, *command],
                    env=_environment(address, count, index, devices),
                    stdout=subprocess.PIPE if index else None,
                    stderr=subprocess.STDOUT if index else None,
                    start_new_session=True,  # Ctrl-C reaches the processes only through this launcher
                    preexec_fn=_exit_with_parent,
                )
            )
        self._readers = [
            threading.Thread(target=_forward_output, args=(index, child), daemon=True)
            for index, child in enumerate(self._children)
            if index
        ]
        for reader in self._readers:
            reader.start()

    def wait(self) -> int:
        """Wait until all processes have ended and return the exit code."""
        deadline, reported, killed = float("inf"), False, set()
        while any(child.poll() is None for child in self._children):
            ended = {i: child.returncode for i, child in enumerate(self._children) if child.returncode is not None}
            failed = {i: code for i, code in ended.items() if code}
            if failed and not reported:
                reported = True
                deadline = time.monotonic() + (STOP_SECONDS if self._stop_signals else GRACE_SECONDS)
                if not self._stop_signals:
                    _report(failed, len(self._children))
            if time.monotonic() > deadline or len(self._stop_signals) > 1:
                for i, child in enumerate(self._children):
                    if child.poll() is None:
                        killed.add(i)
                        child.kill()
            time.sleep(0.02)
        if not reported and not self._stop_signals:
            failed = {i: child.returncode for i, child in enumerate(self._children) if child.returncode}
            if failed:
                _report(failed, len(self._children))
        for reader in self._readers:
            reader.join()
        codes = [_exit_code(child.returncode) for i, child in enumerate(self._children) if i not in killed]
        if self._stop_signals and all(code in STOPPED for code in codes):
            return 128 + self._stop_signals[0]
        return max(codes)

    def _stop(self, number: int, frame: object) -> None:
        self._stop_signals.append(number)
        if len(self._stop_signals) == 1:
            print(
                "stopping: all processes save a checkpoint first (repeat to stop at once)", file=sys.stderr, flush=True
            )
        for child in self._children:
            if child.poll() is None:
                child.terminate()


def _report(failed: dict[int, int], count: int) -> None:
    """Report the process that failed first; the ones that follow end with an exit code or, in JAX, with SIGABRT."""
    order = {-signal.SIGABRT: 2}
    index, code = min(failed.items(), key=lambda item: order.get(item[1], 0 if item[1] < 0 else 1))
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    fix = "read its message above" if code == 2 else "the same command resumes from the last checkpoint"
    others = "; the others are ended" if count > 1 else ""
    print(f"error: process {index} of {count} {how}{others}; {fix}", file=sys.stderr, flush=True)


def _exit_code(code: int) -> int:
    return 128 - code if code < 0 else code


def _forward_output(index: int, child: subprocess.Popen) -> None:
    assert child.stdout
    for line in child.stdout:
        sys.stderr.write(f"[process {index}] {line.decode(errors='replace')}")
        sys.stderr.flush()


def _environment(address: str, count: int, index: int, devices: int) -> dict[str, str]:
    flags = re.sub(r"--xla_force_host_platform_device_count=\S+", "", os.environ.get("XLA_FLAGS", ""))
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
        "SAM2_3DMED_HEARTBEAT_SECONDS": "300",  # this launcher detects deaths; compilation delays heartbeats
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",  # otherwise each process has its own cache keys
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _exit_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, of sys/prctl.h


if __name__ == "__main__":
    sys.exit(main())
