"""A thousand flipped bits in each compressed format: refused, or the same voxels."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.volume.io import read_volume
from tests.helpers.compressed_files import WRITERS, intact
from tests.volume.test_dicom_deflate import write_deflated

FLIPS = 1000


def image(shape: tuple[int, ...]) -> np.ndarray:
    """Return smooth tissue with noise, int16, which compresses to about two thirds."""
    rng = np.random.default_rng(0)
    return (ndimage.gaussian_filter(rng.normal(0, 2000, shape), 4) + rng.normal(0, 5, shape)).astype(np.int16)


def write(name: str, folder: Path) -> tuple[Path, int]:
    """Write an image, and return its path and the first byte that a checksum covers.

    The text headers of NRRD and MetaImage, and DICOM's meta information, are outside of the compressed stream.
    """
    if name == ".dcm":
        return write_deflated(folder / "01.dcm", image((48, 40)))
    path = WRITERS[name](folder, image((24, 20, 12)), intact)
    whole = path.read_bytes()
    return path, {".nii.gz": 0, ".nrrd gzip": whole.find(b"\x1f\x8b"), ".mha": whole.find(b"LOCAL\n") + 6}[name]


def outcomes(path: Path, start: int, seed: int = 0) -> Counter[str]:
    """Count the outcomes of flips of one bit, each at a random place from `start` on."""
    rng = np.random.default_rng(seed)
    whole = path.read_bytes()
    counts: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = read_volume(path)
    for _ in range(FLIPS):
        raw = bytearray(whole)
        raw[int(rng.integers(start, len(raw)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(raw)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = read_volume(path)
            except UserError:
                counts["refused"] += 1
                continue
        same = np.array_equal(found.array, first.array) and np.array_equal(found.grid.affine, first.grid.affine)
        noted = any(issubclass(warning.category, FileWarning) for warning in caught)
        counts[("same" if same else "changed") + (", with a note" if noted else "")] += 1
    print(path.name, dict(counts))
    return counts


@pytest.mark.long
@pytest.mark.parametrize("name", [".nii.gz", ".nrrd gzip", ".mha"])
def test_each_flipped_bit_of_a_checked_stream_is_refused_or_harmless(tmp_path, name):
    counts = outcomes(*write(name, tmp_path))
    assert counts.keys() <= {"refused", "same"}
    assert counts["refused"] > 0.97 * FLIPS  # the others are in fields of gzip's header such as time and system


@pytest.mark.long
def test_flipped_bits_of_deflated_dicom_are_refused_or_the_user_is_told(tmp_path):
    counts = outcomes(*write(".dcm", tmp_path))
    assert counts.keys() <= {"refused", "same, with a note", "changed, with a note"}
    assert counts["refused"] > 0.1 * FLIPS
