"""Progress on the console, where stderr is not a terminal."""

import pytest

from sam2_3dmed_jax.runtime import progress as progress_module
from sam2_3dmed_jax.runtime.progress import ConsoleProgress, console_stages


def test_the_first_and_last_unit_of_each_kind_of_work_get_a_plain_line(capsys: pytest.CaptureFixture[str]):
    with ConsoleProgress() as progress:
        for done in (1, 2, 3):
            progress("cases", done, 3, "1 refused" if done == 3 else "")
        progress("slices", 5, 9)
    assert capsys.readouterr().err.splitlines() == ["cases: 1/3", "cases: 3/3 1 refused", "slices: 5/9"]


def test_later_lines_show_the_time_left_at_the_mean_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    times = iter([0.0, 20.0, 40.0, 60.0, 80.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(times))
    with ConsoleProgress() as progress:
        for done, total in ((100, 220), (120, 220), (220, 220), (1, 9), (3, 9)):  # resumed at 100; then the next run
            progress("training", done, total, "loss 1.250")
    assert capsys.readouterr().err.splitlines() == [
        "training: 100/220 loss 1.250",
        "training: 120/220 loss 1.250  0:01:40 left",
        "training: 220/220 loss 1.250",
        "training: 1/9 loss 1.250",
        "training: 3/9 loss 1.250  0:01:00 left",
    ]


def test_each_stage_gets_a_line_with_the_time_since_the_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    times = iter([5.0, 7.0, 80.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(times))
    with console_stages("plan") as stage:
        stage("tracing")
        stage("compiling")
    assert capsys.readouterr().err.splitlines() == ["plan: tracing  0:00:02", "plan: compiling  0:01:15"]
