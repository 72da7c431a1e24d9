"""Table of file formats: one entry and one reader are enough for a new format, and each entry is complete."""

import os
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.prompts.case_table import read_cases
from sam2_3dmed_jax.volume import formats
from sam2_3dmed_jax.volume.formats import FileFormat
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.image_file import ImageFile
from sam2_3dmed_jax.volume.io import read_labels, read_volume

VALUES = np.arange(24).reshape(2, 3, 4)


def read_text(path: str | os.PathLike[str], index: int | None, resample: bool, skip_unreadable: bool) -> ImageFile:
    """A dummy format: voxels as text."""
    array = np.loadtxt(path).reshape(VALUES.shape)
    return ImageFile(Grid(VALUES.shape, np.eye(4), str(path)), lambda dtype: array.astype(dtype or array.dtype))


@pytest.fixture
def text_format(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = FileFormat("text", (".voxels",), "tests.volume.test_formats:read_text", datasets=True, cases=True)
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, entry))


def write_text(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, VALUES.reshape(-1))
    return path


@pytest.mark.usefixtures("text_format")
def test_an_entry_with_a_reader_is_enough_to_read_images_and_label_maps(tmp_path: Path):
    volume = read_volume(write_text(tmp_path / "a.VOXELS"))
    expected = VALUES.transpose(2, 1, 0)[:, ::-1, ::-1]
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_array_equal(read_labels(write_text(tmp_path / "labels.voxels"), volume), expected)


@pytest.mark.usefixtures("text_format")
def test_an_entry_for_datasets_is_listed_in_a_dataset_folder(tmp_path: Path):
    for folder in ("imagesTr", "labelsTr"):
        write_text(tmp_path / folder / "a.voxels")
    assert [case.image for case in read_dataset(tmp_path).cases] == [str(tmp_path / "imagesTr" / "a.voxels")]


@pytest.mark.usefixtures("text_format")
def test_an_entry_for_cases_is_listed_in_a_folder_of_cases(tmp_path: Path):
    image = write_text(tmp_path / "a.voxels")
    (tmp_path / "a.prompts.json").touch()
    assert [case.image for case in read_cases(tmp_path)] == [str(image)]


@pytest.mark.parametrize(
    ("reader", "suffix", "message"),
    [
        ("", ".x", "the format x has no reader"),
        ("module", ".x", "give `module:function`"),
        (":f", ".x", "give `module:function`"),
        ("m:f", "x", "use lower case"),
        ("m:f", ".X", "use lower case"),
    ],
)
def test_an_entry_without_a_reader_or_with_a_wrong_suffix_is_refused(reader: str, suffix: str, message: str):
    with pytest.raises(ValueError, match=message):
        FileFormat("x", (suffix,), reader)


def test_every_function_in_the_table_can_be_imported_and_no_suffix_occurs_twice():
    for entry in formats.FORMATS:
        for function in filter(None, (entry.reader, entry.detector, entry.label_reader, entry.writer)):
            assert callable(formats._imported(function))
    assert len(set(formats.all_suffixes())) == len(formats.all_suffixes())


def test_the_suffixes_that_each_list_accepts():
    assert formats.dataset_suffixes() == (".nii.gz", ".nii", ".nrrd", ".mha")
    assert formats.case_suffixes() == (".nii.gz", ".nii", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
    assert formats.label_folder_suffixes() == (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".rtstruct.dcm", ".dcm")
    assert formats.segmentation_suffixes() == (".nii.gz", ".nii", ".rtstruct.dcm", ".dcm")
    assert formats.dicom_suffixes() == (".rtstruct.dcm", ".dcm", ".dicom", ".ima")
    assert formats.compressed_suffixes() == (".nii.gz", ".nii.bz2")
