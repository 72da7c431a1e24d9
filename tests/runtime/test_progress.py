"""Progress on the console, where stderr is not a terminal."""

import pytest

from sam2_3dmed_jax.runtime.progress import ConsoleProgress


def test_the_first_and_last_unit_of_each_kind_of_work_get_a_plain_line(capsys: pytest.CaptureFixture[str]):
    with ConsoleProgress() as progress:
        for done in (1, 2, 3):
            progress("cases", done, 3, "1 refused" if done == 3 else "")
        progress("slices", 5, 9)
    assert capsys.readouterr().err.splitlines() == ["cases: 1/3", "cases: 3/3 1 refused", "slices: 5/9"]
