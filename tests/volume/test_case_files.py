"""Listing of folders: case ids, upper-case endings, two files of one case, and what is left out."""

import warnings
from pathlib import Path

import pytest

from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.volume.case_files import case_files, list_names
from sam2_3dmed_jax.volume.formats import case_id, case_suffixes, dataset_suffixes, suffix_of

SUFFIXES = dataset_suffixes()


def left_out(names: list[str], suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """Return the warning about a listing."""
    with pytest.warns(FileWarning) as caught:
        case_files(names, suffixes, "folder")
    (warning,) = caught
    return str(warning.message)


def test_an_ending_is_recognized_in_any_case_and_the_id_keeps_its_case():
    for name in ("Ab.1.nii.gz", "Ab.1.NII.GZ", "Ab.1.Nii.gz", "Ab.1.NRRD", "Ab.1.Mha"):
        assert case_id(name, SUFFIXES) == "Ab.1"
    assert suffix_of("A.NII.GZ", SUFFIXES) == ".nii.gz"
    assert case_id("Ab.1.nii.bz2", SUFFIXES) is None


def test_a_letter_whose_lower_case_is_longer_does_not_shift_the_ending():
    assert case_id("İ.NII", SUFFIXES) == "İ"


@pytest.mark.parametrize("other", ["c1.NII.GZ", "c1.nii", "c1.nrrd", "c1.MHA"])
def test_two_files_of_one_case_are_refused_by_their_names(other: str):
    with pytest.raises(UserError, match=rf"folder: {other} and c1\.nii\.gz are both of case c1; keep one"):
        case_files([other, "c1.nii.gz"], SUFFIXES, "folder")


def test_a_listing_without_other_files_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listing = case_files([".DS_Store", "._b.nii.gz", "a.nii", "b.NII.GZ"], SUFFIXES, "folder")
    assert listing == {"a": "a.nii", "b": "b.NII.GZ"}


def test_what_is_left_out_is_one_line_with_three_names_and_counts():
    names = ["a.nii", ".hidden.nii.gz", "b.txt", "c.nii.bz2", "d.npy", "e", "sub/"]
    line = left_out(names)
    assert line == (
        "folder: 5 files left out (not named *.nii.gz, .nii, .nrrd or .mha): b.txt, c.nii.bz2, d.npy and 2 more; "
        "1 hidden file left out"
    )
    assert len(left_out(["x" * 250] * 3)) < 300


def test_a_folder_with_the_name_of_an_image_is_left_out(tmp_path: Path):
    (tmp_path / "a.nii.gz").mkdir()
    (tmp_path / "b.nii").touch()
    assert list_names(tmp_path) == ["a.nii.gz/", "b.nii"]
    assert "a.nii.gz/" in left_out(list_names(tmp_path))


def test_the_json_file_of_an_accepted_case_is_not_left_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(case_files(["a.json", "a.nii.gz"], SUFFIXES, "folder")) == ["a"]
    assert "b.json" in left_out(["a.nii.gz", "b.json"])


def test_files_with_the_voxels_of_a_header_are_not_left_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = ["a.hdr", "a.img", "b.MHD", "b.ZRAW", "c.nhdr", "c.raw.gz"]
        assert list(case_files(names, case_suffixes(), "folder")) == ["a", "b", "c"]
    assert "d.img" in left_out(["a.nii", "d.img"], case_suffixes())
    assert "a.raw" in left_out(["a.nii", "a.raw"], case_suffixes())
