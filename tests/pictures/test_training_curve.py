"""The training curve of a run: whole steps, and an axis of losses with several numbers."""

from pathlib import Path

import pytest

from sam2_3dmed_jax.pictures import training_curve


def test_a_short_run_has_whole_steps_and_several_numbers_on_the_axis_of_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "log.csv").write_text("step,loss,loss_seg,dice\n1,0.3,0.21,0.4\n2,0.5,0.4,0.5\n3,0.6,0.3,0.6\n")
    drawn = []
    monkeypatch.setattr(training_curve, "save_figure", lambda figure, path: drawn.append(figure))
    training_curve.training_curve(tmp_path / "curve.png", tmp_path / "log.csv")
    (figure,) = drawn
    figure.canvas.draw()
    losses, dice = figure.axes

    def numbers(axis) -> list[str]:
        low, high = sorted(axis.get_view_interval())
        return [
            label.get_text()
            for label, place in zip(axis.get_majorticklabels(), axis.get_majorticklocs(), strict=True)
            if low <= place <= high
        ]

    assert numbers(losses.xaxis) == numbers(dice.xaxis) == ["1", "2", "3"]
    assert numbers(losses.yaxis) == ["0.2", "0.5"]


@pytest.mark.filterwarnings("error")
def test_a_log_without_losses_has_a_curve_and_no_warning(tmp_path: Path):
    (tmp_path / "log.csv").write_text("step,dice\n1,0.4\n2,0.5\n")
    training_curve.training_curve(tmp_path / "curve.png", tmp_path / "log.csv")
    assert (tmp_path / "curve.png").exists()
