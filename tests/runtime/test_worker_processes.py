"""Map over processes: results, exceptions, and processes that are killed."""

import pytest

from sam2_3dmed_jax.runtime.worker_processes import WorkerDied, map_in_processes


def test_a_killed_process_loses_its_own_item_only():
    kill = "__import__('os').kill(__import__('os').getpid(), 9)"
    results = dict(map_in_processes(eval, ["1 + 1", kill, "2 + 2", f"{kill} or 1", "3 + 3"], 2))
    assert [results[text] for text in ("1 + 1", "2 + 2", "3 + 3")] == [2, 4, 6]
    assert all(
        isinstance(results[text], WorkerDied) and "-9" in results[text].reason for text in (kill, f"{kill} or 1")
    )


def test_an_exception_in_a_process_is_raised_by_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(map_in_processes(eval, ["1 / 0", "1", "2"], 2))
