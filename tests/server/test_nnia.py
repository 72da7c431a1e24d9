"""NNIA against nnInteractive's own serialization, and damaged or hostile bytes."""

import importlib
import struct

import blosc2
import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.nninteractive import nnia

MASK = np.zeros((3, 5, 7), np.uint8)
MASK[1, 2:4, 3:6] = 1


def unpack(data, limit=10**6, axes=3):
    return nnia.unpack(data, limit, nnia.IMAGE_DTYPES, axes)


def header(shape, dtype=b"uint8", version=1, codec=1):
    start = nnia.HEADER.pack(b"NNIA", version, codec, len(shape), len(dtype)) + dtype
    return start + struct.pack(f"<{len(shape)}q", *shape)


def frame_of(array):
    return blosc2.compress2(array, typesize=array.itemsize)


@pytest.mark.parametrize("dtype", sorted(nnia.IMAGE_DTYPES))
def test_an_array_is_the_same_after_pack_and_unpack(dtype):
    array = np.random.default_rng(0).integers(0, 2, (3, 5, 7)).astype(dtype)
    found = unpack(nnia.pack(array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_pack_and_unpack_are_the_inverses_of_the_clients():
    theirs = importlib.import_module("nnInteractive.inference.remote.serialization")  # reads settings when imported
    array = np.random.default_rng(1).normal(size=(1, 4, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(unpack(theirs.pack_array(array), axes=4), array)
    np.testing.assert_array_equal(theirs.unpack_array(nnia.pack(MASK)), MASK)


def test_every_truncation_is_refused():
    data = nnia.pack(MASK)
    for length in range(len(data)):
        with pytest.raises(UserError):
            unpack(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GZIP" + nnia.pack(MASK)[4:],
        header((3, 5, 7), version=2),
        header((3, 5, 7), codec=9),
        header((3, 5, 7), b"object"),
        header((3, 5, 7), b"uint8,uint8"),
        header((3, 5)),
        header((0, 5, 7)),
        header((-1, 5, 7)),
        header((2**40, 1, 1)),
        header((2**31, 2**31, 2**31)),
        header((3, 5, 7)) + struct.pack("<I", 2**32 - 1),
        header((3, 5, 7)) + struct.pack("<IQQ", 1, 105, 2**60),
        header((3, 5, 7)) + struct.pack("<IQQ", 1, 2**60, 4) + b"1234",
        header((3, 5, 7)) + struct.pack("<IQQ", 1, 105, 4) + b"1234",
        nnia.pack(MASK) + b"more",
    ],
)
def test_other_bytes_than_an_array_are_refused(data):
    with pytest.raises(UserError):
        unpack(data)


def test_a_frame_that_contains_more_than_its_chunk_promises_is_refused_before_it_is_decompressed():
    bomb = frame_of(np.zeros(2**26, np.uint8))  # 64 MiB in some bytes
    assert len(bomb) < 1000
    data = header(MASK.shape) + struct.pack("<IQQ", 1, MASK.size, len(bomb)) + bomb
    with pytest.raises(UserError, match="contradict"):
        unpack(data)


def test_an_array_beyond_the_limit_is_refused_by_its_header():
    with pytest.raises(UserError, match="allows 1 to 104"):
        unpack(header(MASK.shape), limit=104)


def test_damaged_frames_never_crash():
    data = bytearray(nnia.pack(np.arange(3000, dtype=np.int16).reshape(10, 20, 15)))
    rng = np.random.default_rng(2)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        try:
            unpack(bytes(damaged))
        except UserError:
            continue
