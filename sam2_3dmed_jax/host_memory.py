"""Keep the host's memory between compiled steps: glibc hands large buffers back to the kernel and asks anew.

XLA on CPU takes a program's buffers from `malloc` at each call. With glibc's defaults every train step then faults in
hundreds of MiB page by page: a quarter of the time of a small model's step, measured.
"""

from __future__ import annotations

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
