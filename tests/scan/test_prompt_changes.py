"""Prompts of `Scan` that correct drawn masks, are stored in files, or are forgotten."""

import json

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import Scan
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.scan.history import CORRECTED_SLICES, MAX_STATES
from tests.helpers.scans import SHAPE, scan_file

INSIDE = (5, 9, 12)
DRAWN = np.zeros(SHAPE, np.uint8)
DRAWN[:, 6:12, 8:16] = 1


@pytest.fixture
def scan(tmp_path, predictor):
    return Scan(scan_file(tmp_path / "ct.nii.gz"), predictor)


def masked_slices(scan):
    return sorted(prompt.slice for prompt in scan.prompts if prompt.mask is not None)


def test_a_correction_turns_the_mask_of_its_slice_into_a_box_and_leaves_out_its_neighbours(scan):
    scan.draw(DRAWN)
    everywhere = masked_slices(scan)
    scan.click(INSIDE, corrects_masks=True)
    clicked = scan.prompts[-1].slice
    assert masked_slices(scan) == [index for index in everywhere if abs(index - clicked) > CORRECTED_SLICES]
    (box,) = [prompt.box for prompt in scan.prompts if prompt.box]
    assert (box[2] - box[0] + 1, box[3] - box[1] + 1) in ((6, 8), (8, 6))
    scan.undo()
    assert masked_slices(scan) == everywhere


def test_a_correction_of_one_object_leaves_the_masks_of_others(scan):
    scan.draw(DRAWN, object=1)
    scan.draw(DRAWN, object=2)
    before = len(masked_slices(scan))
    scan.click(INSIDE, object=2, corrects_masks=True)
    assert len(masked_slices(scan)) == before - 2 * CORRECTED_SLICES - 1


def test_without_a_correction_a_click_on_a_mask_is_a_mistake(scan):
    scan.draw(DRAWN)
    with pytest.raises(UserError, match="mask"):
        scan.click(INSIDE)
    assert len(masked_slices(scan)) == SHAPE[0]


def test_strokes_may_be_outside_only(scan):
    scan.click(INSIDE)
    outside = np.zeros(SHAPE, np.uint8)
    outside[5, 16, 3:9] = 1
    scan.scribble(outside=outside)
    assert set(scan.prompts[-1].labels) == {0}
    with pytest.raises(UserError, match="empty"):
        scan.scribble()


def test_stored_prompts_give_the_same_masks(tmp_path, scan, predictor):
    scan.name_object(2, "left kidney")
    drawn = DRAWN.copy()
    drawn[:9] = 0
    scan.draw(drawn, object=1)
    scan.click(INSIDE, object="left kidney")
    scan.box((2, 4, 5), (3, 9, 12), object="left kidney")
    scan.save_prompts(tmp_path / "prompts.json")
    again = Scan(tmp_path / "ct.nii.gz", predictor)
    again.load_prompts(tmp_path / "prompts.json")
    np.testing.assert_array_equal(again.mask(), scan.mask())
    assert again.objects[2].name == "left kidney"
    assert again.undo() and not again.prompts


def test_label_maps_of_masks_that_are_gone_are_deleted(tmp_path, scan):
    scan.draw(DRAWN)
    scan.save_prompts(tmp_path / "prompts.json")
    assert json.loads((tmp_path / "prompts.json").read_text())["objects"][0]["mask"] == "prompts.mask-1.nii.gz"
    assert (tmp_path / "prompts.mask-1.nii.gz").exists()
    scan.undo()
    scan.save_prompts(tmp_path / "prompts.json")
    assert not (tmp_path / "prompts.mask-1.nii.gz").exists()
    scan.load_prompts(tmp_path / "prompts.json")
    assert not scan.prompts


def test_only_label_maps_that_changed_are_written_again(tmp_path, scan):
    files = scan.prompt_files(tmp_path / "prompts.json")
    scan.draw(DRAWN, object=1)
    scan.draw(DRAWN, object=2)
    files.write(scan.prompt_set())
    first, second = tmp_path / "prompts.mask-1.nii.gz", tmp_path / "prompts.mask-2.nii.gz"
    before = first.stat().st_ino, second.stat().st_ino
    more = DRAWN.copy()
    more[:, :, 1] = 1
    scan.draw(more, object=2)
    files.write(scan.prompt_set())
    assert first.stat().st_ino == before[0] and second.stat().st_ino != before[1]
    first.unlink()
    files.write(scan.prompt_set())
    np.testing.assert_array_equal(np.asarray(nib.load(first).dataobj), DRAWN)


def test_files_that_a_name_with_brackets_would_match_as_a_pattern_are_kept(tmp_path, scan):
    (tmp_path / "prompts1.mask-1.nii.gz").touch()
    scan.draw(DRAWN)
    scan.save_prompts(tmp_path / "prompts[12].json")
    scan.undo()
    scan.save_prompts(tmp_path / "prompts[12].json")
    assert not (tmp_path / "prompts[12].mask-1.nii.gz").exists()
    assert (tmp_path / "prompts1.mask-1.nii.gz").exists()


def test_reset_forgets_all(scan):
    scan.click(INSIDE, object=3)
    scan.reset()
    assert not scan.prompts and not scan.objects and not scan.undo() and not scan.redo()


def test_the_number_of_steps_back_is_limited(scan):
    for _ in range(MAX_STATES + 50):
        scan.click(INSIDE)
        scan.clear()
    steps = 0
    while scan.undo():
        steps += 1
    assert steps == MAX_STATES - 1
