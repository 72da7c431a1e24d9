"""Output of `prepare`: voxels in canonical order, geometry, and the entries of the index."""

import hashlib

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import PrepareConfig
from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.phantom import write_phantom_dataset
from tests.helpers.source_files import (
    add_case,
    canonical,
    contents,
    link_case,
    run,
    some_cases,
    stored,
    values_and_labels,
)

REAL = {
    "abdomen": ("abdomen/ct.nii.gz", "abdomen/organs6_from_v1.nii.gz"),
    "chest": ("chest/ct.nii.gz", "chest/lung.nii.gz"),
    "nodule": ("nodule/ct.nii.gz", "nodule/label.nii.gz"),
}


def test_the_command_stores_real_volumes_voxel_for_voxel(realdata, tmp_path, capsys):
    names = {"0": "background", **{str(value): f"organ {value}" for value in range(1, 7)}}
    for name, (image, label) in REAL.items():
        link_case(tmp_path / "real", name, realdata / image, realdata / label, labels=names)
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path / "real"), str(out)]) == 0
    output = capsys.readouterr().out
    assert "3 cases, 239 slices" in output and "label 6 (organ 6): 1 case" in output and "refused" not in output
    assert "spacing (dz, dy, dx): 3-5 x 0.5703-4.172 x 0.5703-4.172 mm" in output
    for name, files in REAL.items():
        entry, values, labels = stored(out, name)
        hu, affine = canonical(realdata / files[0])
        np.testing.assert_array_equal(values, np.clip(hu, -1024, 3071))
        np.testing.assert_array_equal(labels, canonical(realdata / files[1])[0])
        np.testing.assert_allclose(entry.affine, affine, atol=1e-4)  # nibabel multiplies in another order
        assert entry.modality == "CT" and (entry.slope, entry.intercept) == (1.0, 0.0)
        assert entry.orientation == "".join(nib.aff2axcodes(nib.load(realdata / files[0]).affine))
        for part, file in zip(("image", "label"), files, strict=True):
            data = (realdata / file).read_bytes()
            expected = {"file": f"{name}.nii.gz", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            assert entry.source[part] == expected


def test_several_processes_write_the_same_files_as_one(tmp_path):
    source = write_phantom_dataset(tmp_path / "phantom", 3, 4, "pancreas", matrix=48)
    run(source, tmp_path / "one")
    report = run(source, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert report.dataset == read_prepared(tmp_path / "two")
    assert report.dataset.labels == {1: "pancreas", 2: "cancer"} and report.dataset.source["licence"] == "CC0"
    for case in report.dataset.cases:
        _, values, labels = stored(tmp_path / "two", case.id)
        np.testing.assert_array_equal(values, canonical(source / "imagesTr" / f"{case.id}.nii.gz")[0])
        assert case.areas == {value: tuple((labels == value).sum((1, 2)).tolist()) for value in (1, 2)}


@pytest.mark.parametrize("code", ["RAS", "LAS", "LPS", "ASL", "PIR", "SRP"])
@pytest.mark.parametrize("oblique", [False, True])
def test_every_order_of_axes_is_stored_in_canonical_order_with_its_affine(code, oblique, tmp_path):
    values, labels = values_and_labels()
    affine = AFFINE_OBLIQUE if oblique else np.array([[0.8, 0, 0, 5], [0, 0.9, 0, -7], [0, 0, 2.5, 100], [0, 0, 0, 1]])
    image, marks = (nib.Nifti1Image(array, affine) for array in (values, labels))
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(code))
    turned, turned_marks = image.as_reoriented(turn), marks.as_reoriented(turn)
    add_case(tmp_path / "data", "x", np.asarray(turned.dataobj), np.asarray(turned_marks.dataobj), turned.affine)
    run(tmp_path / "data", tmp_path / "out")
    entry, stored_values, stored_labels = stored(tmp_path / "out", "x")
    assert entry.orientation == code
    np.testing.assert_array_equal(stored_values, values.transpose(2, 1, 0)[:, ::-1, ::-1])
    np.testing.assert_array_equal(stored_labels, labels.transpose(2, 1, 0)[:, ::-1, ::-1])
    i, j, k = 2, 3, 4
    position = np.array(entry.affine) @ [k, values.shape[1] - 1 - j, values.shape[0] - 1 - i, 1]
    np.testing.assert_allclose(position, affine @ [i, j, k, 1], atol=1e-4)  # NIfTI's sform is float32
    np.testing.assert_allclose(entry.spacing, np.linalg.norm(np.array(entry.affine)[:3, :3], axis=0))


AFFINE_OBLIQUE = np.array(
    [[0.75, -0.25, 0.3, 5.0], [0.2, 0.8, 0.6, -7.0], [-0.1, -0.2, 2.4, 100.0], [0.0, 0.0, 0.0, 1.0]]
)


def test_hu_are_rounded_and_clipped_to_the_range_of_a_scanner(tmp_path):
    values, labels = values_and_labels()
    values = values.astype(np.float32)
    values[0, 0, :5] = -3024, 4000.4, 12.4, -12.6, np.nan
    add_case(tmp_path / "data", "x", values, labels)
    run(tmp_path / "data", tmp_path / "out")
    _, voxels, _ = stored(tmp_path / "out", "x")
    np.testing.assert_array_equal(voxels[:5, -1, -1], [-1024, 3071, 12, -13, -1024])


@pytest.mark.parametrize("field", [{"modality": {"0": "MRI"}}, {"channel_names": {"0": "T2"}}, {"modality": "MRI"}])
def test_integers_of_other_modalities_are_stored_unchanged(field, tmp_path):
    values, labels = values_and_labels()
    values = (values * 7 - 4000).astype(np.int16)
    add_case(tmp_path / "data", "x", values, labels, **field)
    run(tmp_path / "data", tmp_path / "out")
    entry, voxels, _ = stored(tmp_path / "out", "x")
    assert entry.modality in ("MR", "T2") and (entry.slope, entry.intercept) == (1.0, 0.0) and voxels.min() < -1024
    np.testing.assert_array_equal(voxels, values.transpose(2, 1, 0)[:, ::-1, ::-1])


@pytest.mark.parametrize(
    ("scale", "shift", "exact"), [(26.0, 27000.0, True), (1 / 300, 2.0, False), (1e4, -3e6, False)]
)
def test_other_values_are_scaled_by_their_range_and_not_clipped(scale, shift, exact, tmp_path):
    values, labels = values_and_labels()
    values = (values * scale + shift).astype(np.float32)
    add_case(tmp_path / "data", "x", values, labels, modality={"0": "MRI"})
    run(tmp_path / "data", tmp_path / "out")
    entry, voxels, _ = stored(tmp_path / "out", "x")
    expected = values.transpose(2, 1, 0)[:, ::-1, ::-1].astype(np.float64)
    # Half a step of 1 / 65,535 of the range, and the rounding of float32 on reading.
    tolerance = 0 if exact else np.ptp(expected) / 65535 * 0.5 + 1e-6 * np.abs(expected).max()
    assert np.abs(voxels - expected).max() <= tolerance
    assert entry.slope == 1.0 if exact else entry.slope == pytest.approx(np.ptp(expected) / 65535)


def test_labels_of_a_dataset_without_declaration_are_named_by_their_value(tmp_path):
    values, labels = values_and_labels()
    source = add_case(tmp_path / "data", "x", values, labels * 100)
    (source / "dataset.json").unlink()
    assert run(source, tmp_path / "out").dataset.labels == {100: "label 100", 200: "label 200"}


def test_the_command_resamples_the_given_axes_and_updates_the_affine(tmp_path, capsys):
    source = some_cases(tmp_path / "data", 1, (20, 20, 12))
    assert main(["prepare", str(source), str(tmp_path / "out"), "--spacing", "-,1.6,0", "--workers", "1"]) == 0
    entry, values, labels = stored(tmp_path / "out", "case_0")
    assert entry.shape == values.shape == labels.shape == (12, 10, 20)
    assert entry.spacing == pytest.approx((2.5, 1.6, 0.8))
    np.testing.assert_allclose(
        np.array(entry.affine) @ [5.5, 4.5, 9.5, 1], [7.6, 7.6, 13.75, 1]
    )  # the centre does not move
    assert read_prepared(tmp_path / "out").settings == {"spacing": [None, 1.6, None]}


def test_settings_can_be_passed_in_python(tmp_path):
    source = some_cases(tmp_path / "data", 1, (20, 20, 12))
    report = run(source, tmp_path / "out", PrepareConfig(spacing=(5.0, None, None)))
    assert report.dataset.cases[0].shape == (6, 20, 20)
