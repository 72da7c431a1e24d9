"""Host memory: its size, the peak of a process, and reuse of freed buffers between compiled steps.

XLA on CPU allocates a program's buffers with `malloc` at each call. With glibc's defaults, large freed buffers return
to the kernel, so that every train step maps hundreds of MiB again page by page: measured, a quarter of the time of a
small model's step.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import sys

# Limits of a container, cgroup version 2 and 1; without a limit, a file is absent or has another text.
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNKNOWN = 8 << 30  # bytes, where the system does not report its memory

# Parameters of `mallopt`, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Keep freed buffers in this process. Call it before threads start; without glibc it has no effect."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(M_MMAP_MAX, 0)  # large buffers come from the heap
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # the heap shrinks only when 2 GiB at its end are free
    mallopt(M_ARENA_MAX, 1)  # all threads share one heap


def collect_rarely() -> None:
    """Search for unreachable cycles of Python objects rarely: a tenth of a short command's time went into it.

    Tracing makes objects by the hundred thousand, hardly any of which are garbage.
    """
    gc.set_threshold(100_000, 20, 20)


def reset_peak() -> None:
    """Restart the measurement of the peak on Linux; elsewhere it has no effect."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes; on Linux, since the last `reset_peak`."""
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    except (OSError, StopIteration):
        import resource  # does not exist on Windows

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest << 10


@functools.cache
def total_bytes() -> int:
    """Return the memory of this machine in bytes, or of its container if that is less."""
    sizes = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            sizes.append(int(file.read(32)))
    return min((size for size in sizes if size > 0), default=_UNKNOWN)
