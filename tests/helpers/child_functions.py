"""Functions that `GuardedProcess` calls in tests."""

import os
import signal
import time

import numpy as np

from sam2_3dmed_jax.errors import UserError


def divide_by_zero(*arguments):
    """Die as a native library that divides by zero."""
    os.kill(os.getpid(), signal.SIGFPE)


def work(kind):
    """Return numbers, or do what a hostile file makes a decoder do."""
    if kind == "hang":
        time.sleep(60)
    if kind == "memory":
        np.ones(2**31, np.uint8)
    if kind == "refuse":
        raise UserError("a.dcm is damaged: copy it again")
    if kind == "noise":
        os.write(1, b"a library prints this\n")
    if kind == "process":
        return np.array([os.getpid()])
    return np.arange(12, dtype=">i2").reshape(3, 4)
