"""Damaged and hostile headers: refused in one sentence before memory is taken, and never seen by a native reader."""

import bz2
import os
import struct
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own abbreviation

from sam2_3dmed_jax.volume.image_file import LIMIT_VARIABLE
from sam2_3dmed_jax.volume.io import read_grid, read_labels, read_volume
from tests.helpers.compressed_files import WRITERS, intact, scan
from tests.helpers.nifti_files import make, refusal

ARRAY = np.arange(720, dtype=np.int16).reshape(6, 10, 12)  # k, j, i
META = {
    **{"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False"},
    **{"TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0", "ElementSpacing": "1 1 2"},
    **{"DimSize": "12 10 6", "ElementType": "MET_SHORT", "ElementDataFile": "ct.raw"},
}
NRRD = {
    **{
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "space dimension": None,
        "sizes": "12 10 6",
    },
    **{"space directions": "(1,0,0) (0,1,0) (0,0,2)", "kinds": "domain domain domain", "endian": "little"},
    **{"encoding": "raw", "space origin": "(0,0,0)", "data file": "ct.raw"},
}


def write_meta(folder, more="", **fields):
    """Write `a.mhd` with other values of fields; `more` follows the header."""
    (folder / "ct.raw").write_bytes(ARRAY.tobytes())
    changed = {**META, **fields}
    changed["ElementDataFile"] = changed.pop("ElementDataFile")  # the last field
    lines = [f"{name} = {value}" for name, value in changed.items() if value is not None]
    path = folder / "a.mhd"
    path.write_text("\n".join([*lines, more]))
    return path


def write_nrrd(folder, **fields):
    """Write `a.nhdr` with other values of fields, whose names have `_` for a space."""
    (folder / "ct.raw").write_bytes(ARRAY.tobytes())
    changed = {**NRRD, **{name.replace("_", " "): value for name, value in fields.items()}}
    path = folder / "a.nhdr"
    path.write_text("\n".join(["NRRD0004", *(f"{k}: {v}" for k, v in changed.items() if v is not None)]) + "\n\n")
    return path


def refused_cheaply(function, *arguments, most=2**25):
    """Return the message of a refusal that takes little memory."""
    tracemalloc.start()
    try:
        message = refusal(function, *arguments)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most
    return message


@pytest.mark.parametrize(
    "name",
    [
        *("%n%n%n%n 1 6 1", "%s%s%s%s%d 1 6 1", "%d 1 6 0", "slice%03d.raw 1 6 1"),
        *("%d%n 1 6 1", "%99999999d 1 6 1 2"),
    ],
)
def test_a_printf_pattern_is_not_the_name_of_a_data_file(tmp_path, name):
    for path in (write_meta(tmp_path, ElementDataFile=name), write_nrrd(tmp_path, data_file=name)):
        assert "expected the plain name of one file" in refusal(read_volume, path)


@pytest.mark.parametrize("name", ["/etc/hostname", "../ct.raw", "a\x07b.raw", "n" * 300, "x/" * 2000 + "ct.raw"])
def test_a_data_file_outside_of_the_folder_or_of_no_plain_name_is_refused(tmp_path, name):
    for path in (write_meta(tmp_path, ElementDataFile=name), write_nrrd(tmp_path, data_file=name)):
        assert "expected the plain name of one file" in refusal(read_volume, path)


def test_a_data_file_in_a_folder_below_the_header_is_read(tmp_path):
    (tmp_path / "größe").mkdir()
    (tmp_path / "größe" / "ct.raw").write_bytes(ARRAY.tobytes())
    for path in (write_meta(tmp_path, ElementDataFile="größe/ct.raw"), write_nrrd(tmp_path, data_file="größe/ct.raw")):
        assert read_volume(path).array.max() == 719


@pytest.mark.parametrize(
    "value", ["11", "1290", "30000", "2147483647", "4294967296", "99999999999999999999", "-1", "1e308", "0"]
)
def test_numbers_of_axes_that_overrun_itk_are_refused(tmp_path, value):
    assert str(tmp_path) in refused_cheaply(read_volume, write_meta(tmp_path, NDims=value))
    assert str(tmp_path) in refused_cheaply(read_volume, write_nrrd(tmp_path, dimension=value))


def test_two_different_values_of_one_field_are_refused(tmp_path):
    path = write_meta(tmp_path)
    path.write_text(path.read_text().replace("DimSize", "NDims = 99999999999\nDimSize"))
    assert "two fields 'ndims'" in refused_cheaply(read_volume, path)


@pytest.mark.parametrize("field", ["type", "space", "sizes", "encoding", "kinds", "endian", "space_origin"])
@pytest.mark.parametrize("length", [300, 100_000])
def test_long_fields_that_overrun_itk_are_refused(tmp_path, field, length):
    assert str(tmp_path) in refused_cheaply(read_volume, write_nrrd(tmp_path, **{field: "A" * length}))


@pytest.mark.parametrize(
    "field, value",
    [
        *[("DimSize", value) for value in ("12 10", "12 10 0", "12 10 -6", "12 10 6.5", "12 10 99999999999", None)],
        *[("ElementSpacing", value) for value in ("1 1", "1 1 nan", "1 1 inf", "1 1 1e300", "1 1 1e-320", "a b c")],
        *[("Offset", "0 0"), ("TransformMatrix", "1 0 0"), ("ElementType", "MET_STRING"), ("ObjectType", "Mesh")],
        *[("ElementNumberOfChannels", "1e9"), ("HeaderSize", "-7"), ("HeaderSize", "99999999999999999999")],
    ],
)
def test_a_field_of_a_metaimage_that_is_invalid_is_refused(tmp_path, field, value):
    assert str(tmp_path) in refused_cheaply(read_volume, write_meta(tmp_path, **{field: value}))


@pytest.mark.parametrize(
    "field, value",
    [
        *[("sizes", value) for value in ("12 10", "12 10 0", "12 10 99999999999", None)],
        *[("space_directions", value) for value in ("(1,0,0) (0,1,0)", "(1,0,0) (0,1,0) (0,0,nan)", "1 0 0")],
        ("space_directions", "none none none"),
        *[("space_origin", value) for value in ("(0,0)", "(0,0,1e300)", "(a,b,c)")],
        *[("encoding", "hex"), ("endian", None), ("type", "block"), ("space", "3D-left-handed-time")],
        ("space_directions", None),
        *[("byte_skip", "-7"), ("line_skip", "1e9"), ("kinds", "domain domain"), ("kinds", "domain complex domain")],
    ],
)
def test_a_field_of_a_nrrd_that_is_invalid_is_refused(tmp_path, field, value):
    assert str(tmp_path) in refused_cheaply(read_volume, write_nrrd(tmp_path, **{field: value}))


@pytest.mark.parametrize("listed", ["", "a0.raw\n", "a0.raw\n" * 7, "fifo\n" * 6, "none.raw\n" * 6])
def test_a_list_without_its_files_is_refused(tmp_path, listed):
    (tmp_path / "a0.raw").write_bytes(ARRAY[0].tobytes())
    os.mkfifo(tmp_path / "fifo")
    assert str(tmp_path) in refusal(read_volume, write_meta(tmp_path, listed, ElementDataFile="LIST"))
    path = write_nrrd(tmp_path, data_file=None)
    path.write_text(path.read_text().rstrip("\n") + f"\ndata file: LIST\n{listed}")
    assert str(tmp_path) in refusal(read_volume, path)


def test_a_list_of_files_has_the_voxels_that_itk_reads(tmp_path):
    for k, plane in enumerate(ARRAY):
        (tmp_path / f"a{k}.raw").write_bytes(plane.tobytes())
    names = "".join(f"a{k}.raw\n" for k in (5, 1, 2, 3, 4, 0))
    path = write_meta(tmp_path, names, ElementDataFile="LIST")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(read_volume(path).array, expected[:, :, :])
    (tmp_path / "a3.raw").write_bytes(ARRAY[3].tobytes()[:-2])
    assert "a3.raw is truncated" in refusal(read_volume, path)


def test_voxels_as_text_are_read_to_their_end(tmp_path):
    values = np.array([-1024.5, 0, 3e4, 1e-3] * 180, np.float32)
    text = "\n".join(map(repr, values.tolist()))
    (tmp_path / "a.txt").write_text(text)
    fields = {"type": "float", "encoding": "ascii", "data_file": "a.txt"}
    meta = {"ElementType": "MET_FLOAT", "BinaryData": "False", "ElementDataFile": "a.txt"}
    expected = np.maximum(values.reshape(6, 10, 12), -1024)
    np.testing.assert_array_equal(
        np.maximum(sitk.GetArrayFromImage(sitk.ReadImage(str(write_nrrd(tmp_path, **fields)))), -1024), expected
    )
    for path in (write_nrrd(tmp_path, **fields), write_meta(tmp_path, **meta)):
        np.testing.assert_array_equal(read_volume(path).array, expected)
        for damaged in (text + " 1", text.rpartition("\n")[0], text.replace("30000", "x"), "1" * 100 + text, "1 2"):
            (tmp_path / "a.txt").write_text(damaged)
            assert "a.txt is truncated" in refusal(read_volume, path)
        (tmp_path / "a.txt").write_text(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"space": "right-anterior-superior", "space_directions": "(0,0.8,0) (0.7,0.1,0) (0,0,-2)"},
        {"space": "LAS", "space_origin": "(-3,4,5)"},
        {"space": None, "space_dimension": "3"},
        {"space": None, "space_directions": None, "space_origin": None, "spacings": "0.7 0.8 nan"},
        {"space_origin": None},
        {"type": "unsigned short int", "endian": "big"},
    ],
)
def test_the_geometry_of_a_nrrd_is_the_one_of_itk(tmp_path, fields):
    path = write_nrrd(tmp_path, **fields)
    image = sitk.ReadImage(str(path))
    grid = read_grid(path)
    for voxel in ((0, 0, 0), (11, 0, 0), (0, 9, 0), (3, 4, 5)):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(voxel)
        found = (grid.affine @ [*voxel, 1])[:3]
        np.testing.assert_allclose(found, (-left, -posterior, superior), atol=1e-9)
    stored = sitk.GetArrayFromImage(image).astype(np.float32)
    np.testing.assert_array_equal(np.sort(read_volume(path).array.ravel()), np.sort(stored.ravel()))


def change(path, form, offset, *values):
    """Replace bytes of a header of NIfTI, and return the path."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(form, raw, offset, *values)
    path.write_bytes(raw)
    return path


def test_axes_whose_product_overflows_are_refused(tmp_path):
    path = make(tmp_path / "a.nii", kind=nib.Nifti2Image)
    change(path, "<6q", 16, 5, 4, 4, 4, 2**40, 2**40)
    assert "is truncated" in refused_cheaply(lambda: read_volume(path, index=0))
    change(path, "<6q", 16, 5, 4, 4, 4, -2, -2)
    assert "has no voxels" in refused_cheaply(lambda: read_volume(path, index=0))


@pytest.mark.parametrize("length", [1e-320, 1e-200, 1e200, np.nan])
def test_an_affine_column_of_no_length_is_refused(tmp_path, length):
    path = make(tmp_path / "a.nii", kind=nib.Nifti2Image)
    assert "singular affine" in refusal(read_volume, change(path, "<d", 400, length))


def test_a_bzip2_file_that_promises_more_than_it_can_hold_is_refused(tmp_path):
    raw = bytearray(make(tmp_path / "a.nii").read_bytes()[:352])
    struct.pack_into("<8h", raw, 40, 3, 1280, 1280, 1280, 1, 1, 1, 1)
    (tmp_path / "a.nii.bz2").write_bytes(bz2.compress(bytes(raw)))
    for read in (read_grid, read_volume):
        assert "can hold at most" in refused_cheaply(read, tmp_path / "a.nii.bz2")


def test_a_header_extension_is_neither_read_nor_of_any_size(tmp_path):
    start = bytearray(make(tmp_path / "a.nii").read_bytes())
    start[348:352] = b"\1\0\0\0"
    for size, accepted in ((2**24, True), (2**27, False)):
        struct.pack_into("<f", start, 108, 352.0 + size)
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        blocks = [packer.compress(bytes(start[:352]) + struct.pack("<2i", size, 6) + bytes(2**20 - 8))]
        blocks += [packer.compress(bytes(2**20)) for _ in range(size // 2**20 - 1)]
        (tmp_path / "a.nii.gz").write_bytes(b"".join([*blocks, packer.compress(bytes(start[352:])), packer.flush()]))
        if accepted:
            np.testing.assert_array_equal(np.sort(read_volume(tmp_path / "a.nii.gz").array.ravel()), np.arange(60))
        else:
            assert "vox_offset" in refused_cheaply(read_grid, tmp_path / "a.nii.gz")


def test_the_limit_of_a_volume_is_named_and_can_be_changed(tmp_path, monkeypatch):
    path = make(tmp_path / "a.nii")
    monkeypatch.setenv(LIMIT_VARIABLE, str(4 * 60 / 2**30))
    assert read_volume(path).array.size == 60
    monkeypatch.setenv(LIMIT_VARIABLE, str(4 * 59 / 2**30))
    assert f"or set {LIMIT_VARIABLE}" in refusal(read_volume, path)
    for wrong in ("much", "-1", "nan", "0"):
        monkeypatch.setenv(LIMIT_VARIABLE, wrong)
        assert f"{LIMIT_VARIABLE} is '{wrong}'" in refusal(read_volume, path)


def test_a_volume_beyond_the_free_memory_is_refused(tmp_path, monkeypatch):
    def no_memory(*arguments):
        raise MemoryError

    path = make(tmp_path / "a.nii")
    monkeypatch.setattr("sam2_3dmed_jax.volume.nifti.read_voxels", no_memory)
    assert "does not fit into the free memory" in refusal(read_volume, path)


@pytest.mark.parametrize("value", [2.0**31, -(2.0**31) - 256, 3e38])
def test_a_float32_label_beyond_32_bits_does_not_wrap(tmp_path, value):
    volume = read_volume(make(tmp_path / "ct.nii"))
    array = np.zeros((3, 4, 5), np.float32)
    array[0, 0, 0] = value
    assert "expected 32-bit integers" in refusal(read_labels, make(tmp_path / "label.nii", array), volume)


def test_a_pipe_is_not_an_image(tmp_path):
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.dcm"):
        os.mkfifo(tmp_path / name)
        assert "is a pipe, expected a file" in refusal(read_volume, tmp_path / name)


def test_notes_of_nibabel_about_a_header_reach_no_handler_of_logs(tmp_path, caplog):
    path = make(tmp_path / "a.nii", ARRAY)
    content = bytearray(path.read_bytes())
    content[252:254] = struct.pack("<h", 99)  # qform_code
    path.write_bytes(content)
    read_volume(path)
    assert not caplog.records


def test_refused_headers_leave_stderr_and_the_handlers_of_logs_to_the_error_line(tmp_path, capfd, caplog):
    path = change(make(tmp_path / "a.nii", ARRAY), "<h", 70, 7)  # a type of voxels that nibabel logs
    assert "a.nii cannot be read as NIfTI" in refusal(read_volume, path)
    for missing in ("DimSize", "ElementType", "NDims"):  # MetaIO prints lines about them
        assert "a.mhd" in refusal(read_volume, write_meta(tmp_path, **{missing: None}))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_quaternion_that_is_not_finite_is_refused_with_the_name_of_the_file(tmp_path):
    path = make(tmp_path / "a.nii", ARRAY)
    content = bytearray(path.read_bytes())
    content[252:256] = struct.pack("<hh", 1, 0)  # the qform counts
    content[256:260] = struct.pack("<f", 1e30)
    path.write_bytes(content)
    assert "a.nii cannot be read as NIfTI (w2 should be positive" in refusal(read_volume, path)


@pytest.mark.parametrize("name", ["a.hdr.gz", "a.img.gz"])
def test_a_pipe_in_place_of_one_file_of_a_pair_is_refused_and_not_waited_for(tmp_path, name):
    path = WRITERS[".img.gz"](tmp_path, scan(), intact)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert name in refusal(read_volume, path)


@pytest.mark.parametrize("write", [write_meta, write_nrrd, lambda folder: write_nrrd(folder, line_skip="1")])
def test_a_pipe_in_place_of_voxels_that_a_header_names_is_refused_and_not_waited_for(tmp_path, write):
    path = write(tmp_path)
    (tmp_path / "ct.raw").unlink()
    os.mkfifo(tmp_path / "ct.raw")
    assert "ct.raw" in refusal(read_volume, path)
