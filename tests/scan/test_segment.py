"""`segment`: the voxels of `predict` from files, images of nibabel and SimpleITK, and arrays."""

from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import VolumePredictor, load_model, save_model, segment
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.runtime import compilation_cache
from tests.helpers.nifti_files import make
from tests.helpers.scans import AFFINE, SHAPE, scan_array, scan_file

# Masks of random weights have all signs of wrong masks.
pytestmark = pytest.mark.filterwarnings("ignore::sam2_3dmed_jax.errors.FileWarning")
POINTS = [(5, 9, 12), (5, 16, 3, 0), (2, 4, 17, 1, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, predictor: VolumePredictor) -> Path:
    """A folder with the image, the checkpoint, and the segmentation that `predict` makes of three clicks and a box."""
    folder = tmp_path_factory.mktemp("segment")
    scan_file(folder / "ct.nii.gz")
    save_model(predictor.model, folder / "checkpoint")
    words = ["--point", "5,9,12", "--point", "5,16,3,0", "--point", "2,4,17,1,2", "--box", "7,3,5,8,12,20,2"]
    out = folder / "theirs.nii.gz"
    assert main(["predict", str(folder / "checkpoint"), str(folder / "ct.nii.gz"), "--out", str(out), *words]) == 0
    return folder


def assert_is_theirs(ours: nib.Nifti1Image, folder: Path) -> None:
    theirs = nib.load(folder / "theirs.nii.gz")
    labels = np.asarray(theirs.dataobj)
    assert set(np.unique(labels)) == {0, 1, 2}
    np.testing.assert_array_equal(np.asarray(ours.dataobj), labels)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)


def test_the_voxels_and_the_header_are_those_of_predict(folder):
    ours = segment(
        folder / "ct.nii.gz", POINTS, [(7, 3, 5, 8, 12, 20, 2)], model=str(folder / "checkpoint"), progress=False
    )
    assert_is_theirs(ours, folder)
    assert ours.header == nib.load(folder / "theirs.nii.gz").header


def test_prompts_in_millimetres_are_those_in_voxels(folder, predictor):
    def mm(voxel):
        return (AFFINE @ [*voxel, 1.0])[:3]

    points = [(*mm(point[:3]), *point[3:]) for point in POINTS]
    box = [(*mm((7, 3, 5)), *mm((8, 12, 20)), 2)]
    ours = segment(folder / "ct.nii.gz", points_mm=points, boxes_mm=box, model=predictor, progress=False)
    assert_is_theirs(ours, folder)


def as_simpleitk(folder):
    sitk = pytest.importorskip("SimpleITK")
    return sitk.ReadImage(folder / "ct.nii.gz"), {}


@pytest.mark.parametrize(
    "held",
    [
        lambda folder: (nib.load(folder / "ct.nii.gz"), {}),
        lambda folder: (nib.Nifti1Image(scan_array(), AFFINE), {}),
        lambda folder: (nib.MGHImage(scan_array().astype(np.float32), AFFINE), {}),
        lambda folder: (nib.Nifti1Image(np.stack([scan_array() * 0, scan_array()], -1), AFFINE), {"volume": 1}),
        lambda folder: (scan_array(), {"affine": AFFINE}),
        lambda folder: (np.asfortranarray(scan_array().astype(np.float64)), {"affine": AFFINE.tolist()}),
        as_simpleitk,
    ],
    ids=["loaded", "made", "mgh", "4d", "array", "float64 array", "SimpleITK"],
)
def test_images_that_a_program_holds_give_the_masks_of_the_file(folder, predictor, held):
    image, options = held(folder)
    ours = segment(image, POINTS, [(7, 3, 5, 8, 12, 20, 2)], model=predictor, progress=False, **options)
    assert_is_theirs(ours, folder)


def test_a_scaled_file_has_the_same_values_by_path_and_by_nibabel(tmp_path, predictor):
    image = nib.Nifti1Image(scan_array(), AFFINE)
    image.header.set_slope_inter(0.37, -11.5)
    nib.save(image, tmp_path / "scaled.nii")
    by_path, by_nibabel = (
        segment(held, POINTS, model=predictor, progress=False).get_fdata()
        for held in (tmp_path / "scaled.nii", nib.load(tmp_path / "scaled.nii"))
    )
    assert by_path.any()
    np.testing.assert_array_equal(by_path, by_nibabel)


def test_a_mask_may_be_a_file_an_image_or_an_array(tmp_path, folder, predictor):
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[5, 4:14, 6:20], drawn[8, 2:9, 2:9] = 1, 2
    make(tmp_path / "drawn.nii.gz", drawn, AFFINE)
    masks = [
        np.asarray(segment(folder / "ct.nii.gz", mask=held, model=predictor, progress=False).dataobj)
        for held in (tmp_path / "drawn.nii.gz", nib.load(tmp_path / "drawn.nii.gz"), drawn)
    ]
    assert {1, 2} <= set(np.unique(masks[0]))
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def test_a_click_outside_of_its_mask_is_a_warning(folder, predictor):
    with pytest.warns(FileWarning, match=r"object 1: .* inside of the object are not in its mask \(5,9,12\)"):
        segment(folder / "ct.nii.gz", POINTS, model=predictor, progress=False)


def test_progress_is_shown_on_request_only(folder, predictor, capsys):
    for progress in (False, True):
        segment(folder / "ct.nii.gz", POINTS[:1], model=predictor, progress=progress)
        assert ("encoding slices: 14/14" in capsys.readouterr().err) == progress


def array(**options):
    return lambda folder: segment(scan_array(), POINTS, model=folder / "checkpoint", **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: segment("absent.nii.gz", model="absent"), "there are no prompts"),
        (lambda folder: segment("absent.nii.gz", POINTS), "absent.nii.gz does not exist"),
        (lambda folder: segment(folder / "ct.nii.gz", POINTS, model=folder / "absent"), "absent"),
        (lambda folder: segment(folder / "ct.nii.gz", (5, 9, 12), model=folder), r"points: 5 is not \(x, y, z"),
        (lambda folder: segment(folder / "ct.nii.gz", [(5, 9)], model=folder), r"points: \(5, 9\) is not"),
        (lambda folder: segment(folder / "ct.nii.gz", [(5, 9, 1, 2)], model=folder), "points: 2 is not a label"),
        (lambda folder: segment(folder / "ct.nii.gz", [(5, 9, 1, 1, 0)], model=folder), "points: 0 is not an object"),
        (lambda folder: segment(folder / "ct.nii.gz", boxes=[(1, 2, 3)], model=folder), "boxes: .* is not"),
        (lambda folder: segment([1, 2], POINTS), "a list is not an image"),
        (lambda folder: segment(folder / "ct.nii.gz", POINTS, affine=AFFINE), "affine: it is for NumPy arrays"),
        (array(), "affine: an array needs one"),
        (array(affine=np.eye(3)), r"affine: its shape is \(3, 3\)"),
        (array(affine=np.zeros((4, 4))), "singular affine"),
        (lambda folder: segment(scan_array()[0], POINTS, affine=AFFINE), "expected three axes"),
        (lambda folder: segment(scan_array() > 0, POINTS, affine=AFFINE), "bool"),
        (lambda folder: segment(np.stack([scan_array()] * 2, -1), POINTS, affine=AFFINE), "expected three axes"),
        (array(affine=AFFINE, modality="xray"), "modality is 'xray'"),
        (array(affine=AFFINE, order="random"), "order: 'random' does not exist"),
        (array(affine=AFFINE, mask=np.zeros(SHAPE)), "mask: the mask is empty"),
        (lambda folder: segment(folder / "ct.nii.gz", [(5, 99, 12)], model=folder / "checkpoint"), "y = 99 is outside"),
    ],
)
def test_a_mistake_is_reported_before_a_model_is_loaded(folder, monkeypatch, call, message):
    monkeypatch.setattr("sam2_3dmed_jax.scan.models.load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=message):
        call(folder)


def test_a_model_that_takes_no_prompts_is_refused(folder):
    with pytest.raises(UserError, match="takes no prompts"):
        segment(folder / "ct.nii.gz", POINTS, model=object())


@pytest.mark.parametrize("given", [None, "mine"])
def test_the_compilation_cache_is_on_unless_the_user_has_one(folder, given):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", given)
    try:
        load_model(folder / "checkpoint")
        assert jax.config.jax_compilation_cache_dir == (given or str(compilation_cache.folder()))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
