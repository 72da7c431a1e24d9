"""A child process for native code: its answers, and its end by a crash or at a limit."""

import os
import time

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.guarded_process import ChildError, GuardedProcess

MIB = 2**20


def call(child, kind, most=MIB, seconds=30.0):
    return child.call([kind], most, 256 * MIB, seconds)


@pytest.fixture(scope="module")
def child():
    with GuardedProcess("tests.helpers.child_functions:work") as process:
        yield process


@pytest.mark.parametrize("kind", ["numbers", "noise"])
def test_an_array_comes_back_with_its_dtype_and_shape(child, kind):
    array = call(child, kind)
    np.testing.assert_array_equal(array, np.arange(12).reshape(3, 4))
    assert array.dtype == np.dtype(">i2")


def test_one_child_answers_all_calls_and_is_another_process(child):
    first, second = int(call(child, "process")[0]), int(call(child, "process")[0])
    assert first == second != os.getpid()


def test_a_mistake_of_the_user_is_raised_in_the_parent(child):
    with pytest.raises(UserError, match=r"a\.dcm is damaged"):
        call(child, "refuse")


def test_memory_beyond_the_limit_is_an_error_and_not_taken(child):
    with pytest.raises(ChildError, match="memory"):
        call(child, "memory")


def test_a_larger_result_than_expected_is_refused(child):
    with pytest.raises(ChildError, match="expected at most 10"):
        call(child, "numbers", most=10)


def test_a_child_that_hangs_is_stopped_and_the_next_call_starts_another(child):
    start = time.monotonic()
    with pytest.raises(ChildError, match="took too long"):
        call(child, "hang", seconds=0.2)
    assert time.monotonic() - start < 50  # the child sleeps for 60 s, and may take seconds to start
    assert call(child, "numbers").shape == (3, 4)


def test_a_child_that_dies_by_a_signal_is_an_error_with_its_name():
    with (
        GuardedProcess("tests.helpers.child_functions:divide_by_zero") as process,
        pytest.raises(ChildError, match="SIGFPE"),
    ):
        call(process, "anything")
