"""Log of a run: the note that the console shows."""

import pytest

from sam2_3dmed_jax.training.log import training_note

METRICS = {"loss": 1.25, "dice": 0.5, "seconds": 0.5}


@pytest.mark.parametrize(
    "more, note",
    [
        ({}, "8.0 clips/s"),
        ({"dice_inner": 0.75}, "8.0 clips/s  inner Dice 0.750"),
        ({"mfu": 0.413}, "8.0 clips/s  MFU 41%"),
    ],
)
def test_the_note_of_training_has_loss_dice_step_time_and_speed(more, note):
    assert training_note(METRICS | more, 4) == f"loss 1.250  Dice 0.50  0.50 s/step  {note}"
