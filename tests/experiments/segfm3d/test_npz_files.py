"""Untrusted `.npz` files: what the challenge writes is read, and nothing else, without running it."""

import io
import os
import pickle
import pickletools
import time
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.segfm3d.npz_files import read_npz, write_npz
from experiments.segfm3d.plain_pickle import read_plain_pickle
from sam2_3dmed_jax.errors import LINE, UserError

CLICKS = [{"fg": [list(np.array([1, 2, 3])), np.array([4, 5, 6])], "bg": []}, {"fg": [], "bg": [[7, 8, 9]]}]
PLAIN = [{"fg": [[1, 2, 3], [4, 5, 6]], "bg": []}, {"fg": [], "bg": [[7, 8, 9]]}]


class Program:
    """Unpickles to a call of `os.mkdir`, which a test can see."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


class Thing:
    pass


def refusal(path: Path) -> str:
    """Return the message of the refusal of the array `boxes`."""
    with pytest.raises(UserError) as error:
        read_npz(path, ("boxes",))
    assert len(str(error.value).replace(str(path.parent), "")) <= LINE and "\n" not in str(error.value)
    return str(error.value)


def with_member(path: Path, content: bytes, name: str = "boxes.npy") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def object_member(pickled: bytes) -> bytes:
    """Return an object array of NumPy's format with any pickle in it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return file.getvalue() + pickled


def test_numbers_texts_and_objects_are_read_as_numpy_wrote_them(tmp_path: Path):
    numbers = np.random.default_rng(0).integers(0, 9, (2, 3, 4)).astype(np.uint8)
    order = [["fg", None], ["fg", "bg"]]
    arrays = {
        "imgs": numbers,
        "columns": np.asfortranarray(numbers),
        "boxes": [{"z": np.int64(-2), "f": np.float32(0.5)}],
    }
    np.savez_compressed(tmp_path / "a.npz", clicks=CLICKS, order=order, texts=[["fg"], ["bg"]], **arrays)
    found = read_npz(tmp_path / "a.npz", (*arrays, "clicks", "order", "texts", "absent"))
    assert found.pop("clicks") == PLAIN and found.pop("boxes") == [{"z": -2, "f": 0.5}]
    assert found.pop("order") == order and found.pop("texts") == [["fg"], ["bg"]]
    for name in ("imgs", "columns"):
        np.testing.assert_array_equal(found.pop(name), numbers)
    assert not found


def test_objects_that_numpy_1_wrote_are_read(tmp_path: Path):
    old = pickle.dumps(np.array(CLICKS, object), 3)
    assert b"numpy._core" in old
    old = old.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert read_npz(with_member(tmp_path / "a.npz", object_member(old)), ("boxes",)) == {"boxes": PLAIN}


def test_what_is_written_here_is_read_here(tmp_path: Path):
    write_npz(tmp_path / "new" / "a.npz", segs=np.arange(6, dtype=np.uint8), clicks=np.array(CLICKS, object))
    found = read_npz(tmp_path / "new" / "a.npz", ("segs", "clicks"))
    assert found["segs"].tolist() == list(range(6)) and found["clicks"] == PLAIN


@pytest.mark.parametrize("protocol", range(6))
def test_a_program_in_a_pickle_is_refused_and_does_not_run(protocol: int, tmp_path: Path):
    program = pickle.dumps([{"z_min": Program(tmp_path / "made")}], protocol)
    message = refusal(with_member(tmp_path / "a.npz", object_member(program)))
    assert "boxes contains" in message and "can run programs" in message
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "value",
    [Thing(), {1, 2}, 1j, eval, np.load, partial(print, 1), OrderedDict(a=1), np.datetime64("2025-01-01"), range(3)]
    + [np.array([np.int64], object), np.array([(1, 2)], "i4,i4"), {1: 2}, bytearray(b"x"), 1 << 5000],
    ids=lambda value: type(value).__name__,
)
def test_every_other_kind_of_object_is_refused(value: Any, tmp_path: Path):
    refusal(with_member(tmp_path / "a.npz", object_member(pickle.dumps([value], 4))))


def test_a_pickle_that_is_cut_is_refused(tmp_path: Path):
    whole = pickle.dumps(np.array(CLICKS, object), 4)
    for end in range(0, len(whole), 7):
        refusal(with_member(tmp_path / "a.npz", object_member(whole[:end])))


def test_a_pickle_with_any_byte_changed_gives_plain_values_or_a_refusal(tmp_path: Path):
    whole = pickle.dumps(np.array(CLICKS, object), 4)
    rng = np.random.default_rng(0)

    def is_plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
        if isinstance(value, list | tuple):
            return all(map(is_plain, value))
        return value is None or isinstance(value, str | bytes | int | float)

    refused = 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] = rng.integers(256)
        try:
            assert is_plain(read_plain_pickle(bytes(changed)))
        except ValueError:
            refused += 1
    assert refused > len(whole) // 4


def test_a_large_index_of_the_memo_takes_no_memory():
    # Python's own unpickler allocates a table of this length.
    assert read_plain_pickle(b"\x80\x04K\x07r\xff\xff\xff\x7f.") == 7
    assert next(opcode.name for opcode, *_ in pickletools.genops(b"r\xff\xff\xff\x7f.")) == "LONG_BINPUT"


def test_arrays_that_repeat_one_content_are_refused_before_they_fill_the_memory():
    content = b"](" + b"K\x00" * 1000 + b"eq\x00"
    dtype = b"cnumpy\ndtype\n\x8c\x02O8\x85R(K\x03\x8c\x01|tbq\x01"
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01M\xe8\x03\x85h\x01\x89h\x00tb"
    zeros = [0] * 1000
    first, _, *arrays = read_plain_pickle(b"\x80\x04](" + content + dtype + 2 * array + b"e.")
    assert first == zeros and arrays == [zeros, zeros]
    with pytest.raises(ValueError, match="damaged"):
        read_plain_pickle(b"\x80\x04](" + content + dtype + 100 * array + b"e.")


def test_lists_that_contain_themselves_many_times_are_refused_at_once(tmp_path: Path):
    nested: Any = [0]
    for _ in range(60):
        nested = [nested, nested]  # 2^60 elements when written out
    from experiments.segfm3d.case import read_case
    from tests.helpers.segfm3d_files import write_case

    for name in ("boxes", "clicks", "spacing"):
        path = write_case(tmp_path / "a.npz", **{name: None})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{name}.npy", object_member(pickle.dumps([{"fg": [nested], "bg": []}, nested], 4)))
        begin = time.monotonic()
        with pytest.raises(UserError, match=name):
            read_case(path)
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_a_file_that_is_not_an_npz_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "a.npz").write_bytes(content)
    assert "a.npz is damaged, or is not a .npz file" in refusal(tmp_path / "a.npz")


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path):
    assert "does not exist" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1 << 20, 1 << 20), "promises the shape"), ((-1, 4), "promises the shape"), ((1000, 1000, 1000), "truncated")],
)
def test_a_header_that_promises_more_than_its_file_has_is_refused(shape: tuple[int, ...], words: str, tmp_path: Path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    assert words in refusal(with_member(tmp_path / "a.npz", file.getvalue() + bytes(100)))


def test_a_dtype_other_than_numbers_is_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", boxes=np.zeros(3, "i4,f4"))
    assert "has the dtype" in refusal(tmp_path / "a.npz")


def test_too_many_bytes_of_objects_are_refused_before_they_are_read(tmp_path: Path):
    assert "bytes of Python objects" in refusal(with_member(tmp_path / "a.npz", object_member(bytes(5 << 20))))


def test_arrays_that_are_not_asked_for_are_not_looked_at(tmp_path: Path):
    with_member(tmp_path / "a.npz", object_member(pickle.dumps([Program(tmp_path / "made")])), "text_prompts.npy")
    assert read_npz(tmp_path / "a.npz", ("boxes",)) == {} and not (tmp_path / "made").exists()


@pytest.mark.parametrize("header", ["{'shape': (1,", "{", "(" * 300, "'", "{'descr': a}"])
def test_a_header_of_numpy_that_is_not_complete_is_refused(tmp_path: Path, header: str):
    text = header.encode()
    assert " at 0x" not in refusal(
        with_member(tmp_path / "a.npz", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    )


def test_a_directory_of_members_with_wrong_offsets_is_refused(tmp_path: Path):
    path = with_member(tmp_path / "a.npz", b"x" * 100)
    content = path.read_bytes()
    path.write_bytes(content[50:])
    assert "is damaged, or is not a .npz file" in refusal(path)


def test_a_device_or_a_pipe_is_refused_before_it_is_opened(tmp_path: Path):
    (tmp_path / "a.npz").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "b.npz")
    assert "is a device" in refusal(tmp_path / "a.npz")
    assert "is a pipe" in refusal(tmp_path / "b.npz")
