"""What the console says of training."""

import pytest

from sam2_3dmed_jax.runtime.progress import ConsoleProgress

METRICS = {"loss": 1.25, "dice": 0.5, "seconds": 0.5, "batch_size": 4}


def test_training_tells_step_time_clips_a_second_and_the_time_left_in_plain_lines(capsys: pytest.CaptureFixture[str]):
    with ConsoleProgress() as progress:
        progress.training(10, 130, METRICS)
        progress.training(130, 130, {**METRICS, "dice_inner": 0.75})
    first, last = capsys.readouterr().err.splitlines()
    assert first == "training: 10/130 loss 1.250  Dice 0.50  0.50 s/step  8.0 clips/s  0:01:00 left"
    assert last == "training: 130/130 loss 1.250  Dice 0.50  0.50 s/step  8.0 clips/s  inner Dice 0.750  0:00:00 left"
