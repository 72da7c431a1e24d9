"""Keep the host's memory between compiled steps: glibc hands large buffers back to the kernel and asks anew.

XLA on CPU takes a program's buffers from `malloc` at each call. With glibc's defaults every train step then faults in
hundreds of MiB page by page: a quarter of the time of a small model's step, measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

# Of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep() -> None:
    """Let freed buffers stay in this process. To be called before threads start; elsewhere than glibc, nothing."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(M_MMAP_MAX, 0)  # large buffers come from the heap
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # which is not cut before 2 GiB are free at its end
    mallopt(M_ARENA_MAX, 1)  # and is one for all threads


def forget_peak() -> None:
    """Count the peak of this process from here on; elsewhere than Linux, nothing."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak() -> int:
    """Peak resident memory of this process in bytes, since `forget_peak` where there is that, else ever."""
    try:
        with open("/proc/self/status") as file:
            told = next(line for line in file if line.startswith("VmHWM:"))
        return int(told.split()[1]) << 10
    except (OSError, StopIteration):
        import resource  # which Windows lacks

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest << 10
