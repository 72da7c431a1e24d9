"""Clips that grow during training."""

from dataclasses import replace

import numpy as np
import pytest

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.clip_lengths import check_clip_lengths, clip_length, clip_lengths
from sam2_3dmed_jax.data.pipeline import clip_batches
from sam2_3dmed_jax.errors import UserError
from tests.helpers.prepared_files import write_prepared

GROWING = DataConfig(slices=6, slices_schedule=((0, 2), (3, 4), (5, 6)), augmentation=NO_AUGMENTATION)


def test_the_length_of_clips_follows_the_schedule_by_step():
    assert [clip_length(GROWING, step) for step in range(7)] == [2, 2, 2, 4, 4, 6, 6]
    assert clip_lengths(GROWING) == (2, 4, 6)
    assert clip_length(DataConfig(slices=5), 9) == 5 and clip_lengths(DataConfig(slices=5)) == (5,)


def test_batches_have_the_length_of_their_step_and_the_clips_of_a_run_of_that_length(tmp_path):
    labels = np.zeros((14, 32, 32), np.uint8)
    labels[4:10, 8:20, 10:26] = 1
    grey = np.broadcast_to(np.arange(14, dtype=np.int16)[:, None, None], labels.shape)
    dataset = write_prepared(tmp_path, {f"case{i}": (grey, labels) for i in range(2)}, {1: "organ"})
    reader = CaseReader(dataset, GROWING, 32)
    cases = list(dataset.cases)
    growing = clip_batches(reader, cases, GROWING, 2, seed=1)[:7]
    assert [batch["slice_valid"].shape[1] for batch in growing] == [2, 2, 2, 4, 4, 6, 6]
    for host in range(2):  # batch i does not depend on where a run resumes, nor on the number of hosts
        part = clip_batches(reader, cases, GROWING, 1, 1, host, 2)[4:7]
        for other, batch in zip(part, [growing[i] for i in (4, 5, 6)], strict=True):
            np.testing.assert_array_equal(other["labels"][0], batch["labels"][host])
    fixed = clip_batches(reader, cases, replace(GROWING, slices=4, slices_schedule=()), 2, seed=1)
    for name, value in growing[4].items():
        np.testing.assert_array_equal(value, fixed[4][name], err_msg=name)


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (((1, 3), (5, 6)), r"its steps are 1, 5; start at step 0"),
        (((0, 3), (5, 4), (5, 6)), r"its steps are 0, 5, 5; start at step 0 and let them ascend"),
        (((0, 1), (5, 6)), r"a clip of 1 slices; use 2 or more"),
        (((0, 3), (5, 7)), r"it ends with 7 slices, but data\.slices is 6"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(schedule, sentence):
    with pytest.raises(UserError, match=sentence):
        check_clip_lengths(replace(GROWING, slices_schedule=schedule))
