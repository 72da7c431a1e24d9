"""Compressed images and label maps: read to their end, or refused by name, in every format and by every reader."""

import gzip
import tracemalloc

import numpy as np
import pytest

from sam2_3dmed_jax.volume.io import check_readable, open_labels, read_labels, read_volume
from sam2_3dmed_jax.volume.voxel_stream import StoredVoxels, read_voxels, verify
from tests.helpers.compressed_files import DAMAGES, WRITERS, intact, labels, padded, scan, two_streams
from tests.helpers.nifti_files import make, refusal

CONCATENATED = [name for name in WRITERS if name not in (".mha", ".mhd")]


def written(folder, name, array, change=intact):
    folder.mkdir(exist_ok=True)
    return WRITERS[name](folder, array, change)


@pytest.mark.parametrize("name", WRITERS)
def test_an_intact_compressed_image_has_the_voxels_that_were_written(tmp_path, name):
    volume = read_volume(written(tmp_path, name, scan()))
    whole = read_volume(make(tmp_path / "whole.nii", scan(), volume.grid.affine))
    np.testing.assert_array_equal(volume.array, whole.array)
    np.testing.assert_array_equal(np.sort(volume.array.ravel()), np.sort(scan().ravel()))


@pytest.mark.parametrize("name", CONCATENATED)
def test_concatenated_streams_are_one_image(tmp_path, name):
    one, two = (written(tmp_path / str(k), name, scan(), change) for k, change in enumerate((intact, two_streams)))
    np.testing.assert_array_equal(read_volume(one).array, read_volume(two).array)


@pytest.mark.parametrize("name", WRITERS)
def test_zeros_after_the_stream_are_padding(tmp_path, name):
    one, two = (written(tmp_path / str(k), name, scan(), change) for k, change in enumerate((intact, padded)))
    np.testing.assert_array_equal(read_volume(one).array, read_volume(two).array)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_image_is_refused_by_name(tmp_path, name, damage):
    path = written(tmp_path, name, scan(), damage)
    assert str(path.parent / "a.") in refusal(read_volume, path)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_label_map_is_refused_as_mask_reference_and_prediction(tmp_path, name, damage):
    image = written(tmp_path / "image", name, scan())
    path = written(tmp_path / "labels", name, labels(), damage)
    volume = read_volume(image)
    for read in (
        lambda: read_labels(path, volume),  # predict --mask, prompt files, evaluate CKPT, prepare, sweep
        lambda: open_labels(path).read(volume.grid),  # evaluate --predictions --references
        lambda: check_readable([(image, path)]),  # before a model runs
    ):
        assert str(tmp_path / "labels" / "a.") in refusal(read)


def test_the_header_of_a_compressed_pair_is_verified_too(tmp_path):
    path = written(tmp_path, ".img.gz", scan())
    header = bytearray((tmp_path / "a.hdr.gz").read_bytes())
    header[-8] ^= 1
    (tmp_path / "a.hdr.gz").write_bytes(header)
    assert str(path) in refusal(read_volume, path)


@pytest.mark.parametrize("index", [0, 1])
def test_a_flip_in_another_volume_of_a_4d_file_is_refused(tmp_path, index):
    path = make(tmp_path / "a.nii.gz", np.stack([scan(0), scan(1)], -1))
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
    assert "checksum" in refusal(lambda: read_volume(path, index=index))


def test_an_uncompressed_file_with_further_data_is_refused(tmp_path):
    path = make(tmp_path / "a.nii", scan())
    path.write_bytes(path.read_bytes() + b"further")
    assert "more than the" in refusal(read_volume, path)


def test_a_compressed_image_in_several_files_is_refused(tmp_path):
    path = written(tmp_path, ".mhd", scan())
    path.write_text(path.read_text().replace("a.zraw", "LIST\na.zraw\na.zraw\n"))
    assert "expected one: save it as one file" in refusal(read_volume, path)


def test_a_stated_size_beyond_the_end_of_the_file_is_refused(tmp_path):
    path = written(tmp_path, ".mha", scan())
    raw = path.read_bytes()
    size = int(raw.split(b"CompressedDataSize = ")[1].split()[0])
    path.write_bytes(raw.replace(f"Size = {size}".encode(), f"Size = {size + 1}".encode()))
    assert f"{size} of {size + 1} compressed bytes" in refusal(read_volume, path)


def test_skipped_lines_and_bytes_of_a_nrrd_are_no_voxels(tmp_path):
    path = written(
        tmp_path, ".nrrd gzip", scan(), lambda data, encoding: b"one\ntwo\n" + intact(b"x" * 7 + data, encoding)
    )
    path.write_bytes(path.read_bytes().replace(b"endian:", b"line skip: 2\nbyte skip: 7\nendian:"))
    expected = read_volume(written(tmp_path / "b", ".nrrd gzip", scan())).array
    np.testing.assert_array_equal(read_volume(path).array, expected)


def test_a_stream_that_grows_without_end_takes_little_memory(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(2**26)))
    tracemalloc.start()
    verify(StoredVoxels(path, "gzip"))
    message = refusal(read_voxels, StoredVoxels(path, "gzip"), (2, 2, 2), np.dtype(np.int16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more than the 16 bytes" in message
    assert peak < 2**22  # far below the 64 MiB that the stream decompresses to
