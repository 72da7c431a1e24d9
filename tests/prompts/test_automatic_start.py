"""Prompts drawn from label maps: files, folders of masks, names, targets, protocols and earlier scans."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.prompts.automatic_start import StartSettings, middle_slices, start_prompts
from sam2_3dmed_jax.prompts.flags import PromptFlags, gather_prompts
from sam2_3dmed_jax.runtime.hashing import sha256_of_file
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import read_volume, write_nifti
from tests.helpers.dicom_files import write_series
from tests.helpers.segment_files import write_segments_by_highdicom, write_slicer_segments

SHAPE = (24, 20, 12)  # i, j, k
AFFINE = np.array([[-0.8, 0, 0, 30], [0, -0.8, 0, 20], [0, 0, 3.0, -40], [0, 0, 0, 1]])
NAMES = {1: "liver", 2: "spleen", 5: "kidney_left", 6: "kidney_right"}


@pytest.fixture
def volume() -> Volume:
    return Volume(np.zeros((12, 20, 24), np.float32), Grid(SHAPE, AFFINE, "ct.nii.gz"))


def organs() -> np.ndarray:
    """Four labels; the spleen has two components, and kidneys are on single slices."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:12, 2:10, 1:10] = 1
    labels[16:20, 2:6, 2:5] = 2
    labels[16:22, 2:6, 8:10] = 2
    labels[4, 14, 6] = 5
    labels[18:21, 14:17, 7] = 6
    return labels


def write(path: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    write_nifti(path, labels, affine)
    return path


def test_each_label_is_an_object_that_is_clicked_deep_inside_on_its_largest_slice(volume: Volume, tmp_path: Path):
    path = write(tmp_path / "organs.nii.gz", organs())
    found = start_prompts(path, volume, StartSettings(names=NAMES))
    assert [prompt.object_id for prompt in found.prompts] == [1, 2, 5, 6] and found.names == NAMES
    frame = organs().transpose(2, 1, 0)  # [D, H, W]: columns to the left, rows to posterior, slices to superior
    for prompt in found.prompts:
        ((x, y),) = prompt.points
        assert frame[prompt.slice, int(y), int(x)] == prompt.object_id and prompt.labels == (1,)
    assert [prompt.slice for prompt in found.prompts] == [1, 8, 6, 7]
    origin = found.prompts[1].origin
    assert (origin.path, origin.sha256) == (str(path), sha256_of_file(path))
    assert (origin.protocol, origin.follow_up, origin.labels) == ("one-click", False, (2,))


def test_targets_are_chosen_by_name_or_value_and_a_union_is_one_object(volume: Volume, tmp_path: Path):
    path = write(tmp_path / "organs.nii.gz", organs())
    settings = StartSettings("one-click-per-component", "spleen,5+6=kidneys", NAMES)
    found = start_prompts(path, volume, settings)
    assert [(prompt.object_id, prompt.slice) for prompt in found.prompts] == [(2, 2), (2, 8), (5, 6), (5, 7)]
    assert found.names == {2: "spleen", 5: "kidneys"} and found.prompts[2].origin.labels == (5, 6)
    box, click = (start_prompts(path, volume, StartSettings(name, "2")).prompts for name in ("box-mid", "one-click"))
    assert box[0].box == (16.0, 2.0, 21.0, 5.0) and box[0].slice == click[0].slice == 8


def test_masks_are_the_middle_slices_of_equal_parts_of_an_object(volume: Volume, tmp_path: Path):
    path = write(tmp_path / "organs.nii.gz", organs())
    found = start_prompts(path, volume, StartSettings("masks", "1,6", mask_slices=2))
    assert [(prompt.object_id, prompt.slice) for prompt in found.prompts] == [(1, 3), (1, 8), (6, 7)]
    frame = organs().transpose(2, 1, 0)
    for prompt in found.prompts:
        np.testing.assert_array_equal(prompt.mask, frame[prompt.slice] == prompt.object_id)
    assert middle_slices(np.arange(9), 3) == [1, 4, 7] and middle_slices(np.array([2, 3, 7]), 1) == [3]
    assert middle_slices(np.array([4, 9]), 5) == [4, 9]


def test_a_folder_with_one_mask_per_organ_is_numbered_by_name_and_empty_masks_are_left_out(
    volume: Volume, tmp_path: Path
):
    for name, value in (("spleen", 2), ("liver", 1), ("trachea", 9)):
        write(tmp_path / "organs" / f"{name}.nii.gz", (organs() == value).astype(np.uint8))
    with pytest.warns(FileWarning, match="1 object left out, because they are empty: trachea"):
        found = start_prompts(tmp_path / "organs", volume)
    assert found.names == {1: "liver", 2: "spleen"} and [prompt.slice for prompt in found.prompts] == [1, 8]
    named = start_prompts(
        tmp_path / "organs", volume, StartSettings(targets="spleen", names={52: "trachea", 1: "spleen", 5: "liver"})
    )
    assert [(prompt.object_id, prompt.slice) for prompt in named.prompts] == [(1, 8)]
    with pytest.raises(UserError, match="trachea in it is empty"):
        start_prompts(tmp_path / "organs", volume, StartSettings(targets="spleen,trachea"))


def test_names_come_from_the_extension_of_totalsegmentator(volume: Volume, tmp_path: Path):
    table = "".join(
        f'<Label Key="{key}" Red="0.5" Green="1" Blue="0" Alpha="1"><![CDATA[{name}]]></Label>\n'
        for key, name in {**NAMES, 9: "trachea"}.items()
    )
    text = f'<?xml version="1.0" encoding="UTF-8"?> <CaretExtension><LabelTable>\n{table}</LabelTable></CaretExtension>'
    image = nib.Nifti1Image(organs(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, text.encode()))
    nib.save(image, tmp_path / "organs.nii.gz")
    found = start_prompts(tmp_path / "organs.nii.gz", volume, StartSettings(targets="kidney_left,liver"))
    assert found.names == {1: "liver", 5: "kidney_left"}


def test_dicom_seg_and_slicer_files_bring_their_names_and_overlapping_segments(tmp_path: Path):
    series = write_series(tmp_path / "series", array=np.zeros((5, 20, 24), np.int16))
    image = read_volume(series)
    first, second = np.zeros((2, 24, 20, 5), bool)
    first[4:12, 4:12, 1:4], second[8:16, 8:16, 2] = True, True
    path = write_segments_by_highdicom(tmp_path / "seg.dcm", series, [first, second])
    found = start_prompts(path, image, StartSettings("box-mid"))
    assert found.names == {1: "segment 1", 2: "segment 2"}
    assert [prompt.box[2] - prompt.box[0] for prompt in found.prompts] == [7.0, 7.0]
    layers, segments = np.stack([first, second]).astype(np.uint8), [(0, 1, "Liver (right)"), (1, 1, "Cyst")]
    write_slicer_segments(tmp_path / "a.seg.nrrd", layers, image.grid.affine, segments)
    slicer = start_prompts(tmp_path / "a.seg.nrrd", image, StartSettings("box-mid"))
    assert slicer.names == {1: "Liver right", 2: "Cyst"} and len(slicer.prompts) == 2


def test_labels_of_an_earlier_scan_are_placed_by_millimetres_with_the_nearest_label(volume: Volume, tmp_path: Path):
    # The earlier scan has twice the resolution in the plane, was stored in other directions, and lacks the top slices.
    fine = organs().repeat(2, 0).repeat(2, 1)[::-1, :, :9]
    affine = np.array([[0.4, 0, 0, 30 + 0.2 - 47 * 0.4], [0, -0.4, 0, 20 + 0.2], [0, 0, 3.0, -40], [0, 0, 0, 1]])
    path = write(tmp_path / "earlier.nii.gz", np.ascontiguousarray(fine), affine)
    with pytest.raises(UserError, match=r"is not on the grid of .*, or give --follow-up for labels of an earlier scan"):
        start_prompts(path, volume)
    found = start_prompts(path, volume, StartSettings("masks", mask_slices=20, follow_up=True))
    cut = organs().transpose(2, 1, 0)
    assert {prompt.slice for prompt in found.prompts if prompt.object_id == 1} == set(range(1, 9))
    for prompt in found.prompts:
        np.testing.assert_array_equal(prompt.mask, cut[prompt.slice] == prompt.object_id)
        assert prompt.origin.follow_up


def test_an_earlier_scan_of_another_place_is_refused_and_objects_outside_are_left_out(volume: Volume, tmp_path: Path):
    away = AFFINE.copy()
    away[2, 3] += 500
    path = write(tmp_path / "earlier.nii.gz", organs(), away)
    with pytest.raises(UserError, match=r"earlier.nii.gz does not overlap with ct.nii.gz: no voxel of 1, 2, 5 and 1"):
        start_prompts(path, volume, StartSettings(follow_up=True))
    away[2, 3] = AFFINE[2, 3] + 3 * 5  # slices 7 to 11 of the earlier scan are above the image
    path = write(tmp_path / "shifted.nii.gz", organs(), away)
    with pytest.warns(FileWarning, match="1 object left out, because they are outside of ct.nii.gz: kidney_right"):
        found = start_prompts(path, volume, StartSettings(names=NAMES, follow_up=True))
    assert {prompt.object_id for prompt in found.prompts} == {1, 2, 5}
    with pytest.raises(UserError, match="no voxel of kidney_right is inside"):
        start_prompts(path, volume, StartSettings(targets="kidney_right,liver", names=NAMES, follow_up=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (StartSettings("clicks"), "--protocol: 'clicks' does not exist; choose one of one-click, box-mid"),
        (StartSettings("oracle-clip"), "--protocol: 'oracle-clip' does not exist"),
        (StartSettings(mask_slices=2), "--mask-slices is for the protocol masks"),
        (StartSettings("masks", mask_slices=0), "--mask-slices is 0; give at least 1"),
        (StartSettings(targets="heart", names=NAMES), "--targets: 'heart' is neither a label value nor one of liver"),
        (StartSettings(targets="3", names=NAMES), "--targets: .* has no voxel of '3'; choose from liver, spleen"),
        (StartSettings(targets="1+2,2"), "--targets: label 2 is in two objects"),
        (StartSettings(targets="x", as_flags=False), "^targets: 'x' is neither"),
    ],
)
def test_settings_that_do_not_fit_are_reported_by_their_flag(
    volume: Volume, tmp_path: Path, settings: StartSettings, message: str
):
    path = write(tmp_path / "organs.nii.gz", organs())
    with pytest.raises(UserError, match=message):
        start_prompts(path, volume, settings)


def test_empty_labels_an_empty_folder_and_values_that_are_no_object_ids_are_refused(volume: Volume, tmp_path: Path):
    with pytest.raises(UserError, match=r"empty.nii.gz: it is empty; give labels"):
        start_prompts(write(tmp_path / "empty.nii.gz", organs() * 0), volume)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder has no masks \(.nii.gz"):
        start_prompts(tmp_path / "folder", volume)
    with pytest.raises(UserError, match="has the label -7, which is not an object id; renumber it"):
        start_prompts(write(tmp_path / "ct.nii.gz", organs().astype(np.int16) - 7), volume)
    write(tmp_path / "masks" / "liver.nii.gz", organs())
    with pytest.raises(UserError, match=r"--names: .* has a mask liver, whose label is not declared"):
        start_prompts(tmp_path / "masks", volume, StartSettings(names={1: "spleen"}))


def test_an_object_has_prompts_of_the_label_map_or_of_the_user_and_not_both(volume: Volume, tmp_path: Path):
    path = str(write(tmp_path / "organs.nii.gz", organs()))
    flags = PromptFlags(prompts_from=path, point=("5,5,5,1,7",))
    assert {prompt.object_id for prompt in gather_prompts(flags, volume).prompts} == {1, 2, 5, 6, 7}
    with pytest.raises(UserError, match="--prompts-from: object 2 has prompts of the label map and others"):
        gather_prompts(PromptFlags(prompts_from=path, point=("5,5,5,1,2",)), volume)
