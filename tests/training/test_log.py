"""Log of a run: the note that the console shows."""

import pytest

from sam2_3dmed_jax.training.log import training_note

METRICS = {"loss": 1.25, "dice": 0.5, "seconds": 0.5}


@pytest.mark.parametrize(
    "more, steps_left, note",
    [
        ({}, 120, "8.0 clips/s  0:01:00 left"),
        ({"dice_inner": 0.75}, 0, "8.0 clips/s  inner Dice 0.750  0:00:00 left"),
        ({"mfu": 0.413}, 1, "8.0 clips/s  MFU 41%  0:00:00 left"),
    ],
)
def test_the_note_of_training_has_loss_dice_step_time_speed_and_time_left(more, steps_left, note):
    assert training_note(METRICS | more, 4, steps_left) == f"loss 1.250  Dice 0.50  0.50 s/step  {note}"
