"""Map over processes: results, exceptions, and processes that are killed."""

import warnings

import pytest

from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.runtime.worker_processes import WorkerDied, map_in_processes, number_of_workers


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


def warn_about(file: str) -> None:
    warnings.warn(f"{file} has no checksum", FileWarning, stacklevel=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_warnings_about_files_are_shown_by_the_caller_each_time(workers):
    with pytest.warns(FileWarning) as caught:
        assert len(list(map_in_processes(warn_about, ["a.nii", "b.nii", "a.nii"], workers))) == 3
    assert sorted(str(one.message) for one in caught) == [f"{name}.nii has no checksum" for name in "aab"]


def test_a_user_mistake_in_a_process_is_raised_with_its_sentence():
    with pytest.raises(UserError, match=r"^--workers: 0 is not a number of processes; give 1 or more$"):
        list(map_in_processes(number_of_workers, [0, 0], 2))
