"""Pickles of `.pt` files that would take much memory: refused before PyTorch sees them, and without PyTorch."""

import io
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict

import pytest

from sam2_3dmed_jax.errors import UserError
from weights_conversion.torch_files import OLD_FORMAT
from weights_conversion.torch_pickles import check_pickles

BYTEARRAY = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (10**10).to_bytes(5, "little") + b"\x85R."


def written(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return path


def refusal(path, is_zip=True):
    """Return the message of a refusal that takes little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            check_pickles(path, is_zip)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_deflated_member_is_refused(tmp_path):
    path = written(tmp_path / "m.pt", b"\x80\x02" + b"(" * 2**24, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**16
    assert "compressed or overlapping parts" in refusal(path)


@pytest.mark.parametrize("instruction", [b"(", b"]", b"K\x00"])
def test_millions_of_instructions_are_refused(tmp_path, instruction):
    assert "list of tensors" in refusal(written(tmp_path / "m.pt", b"\x80\x02" + instruction * 2**23))


@pytest.mark.parametrize("form", ["zip", "old format"])
def test_a_pickled_bytearray_is_refused(tmp_path, form):
    if form == "zip":
        path = written(tmp_path / "m.pt", BYTEARRAY)
    else:
        path = tmp_path / "m.pt"
        path.write_bytes(OLD_FORMAT + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + BYTEARRAY)
    assert "builtins bytearray" in refusal(path, form == "zip")


@pytest.mark.parametrize("name", ["posix\nsystem", "_codecs\nencode", "torchvision\nx", "builtins\neval"])
def test_other_functions_are_refused(tmp_path, name):
    content = b"\x80\x02c" + name.encode() + b"\n)R."
    assert "other than tensors" in refusal(written(tmp_path / "m.pt", content))


def test_a_cut_pickle_is_refused(tmp_path):
    assert "cannot be read as a PyTorch file" in refusal(written(tmp_path / "m.pt", pickle.dumps({"a": 1}, 2)[:-1]))


def test_containers_of_numbers_and_texts_pass(tmp_path):
    content = {
        "model": OrderedDict(a=[1, 2.5, None, True, (3,)]),
        "names": {"x"},
        "nested": {str(k): {} for k in range(9)},
    }
    check_pickles(written(tmp_path / "m.pt", pickle.dumps(content, 2)), True)
    old = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, content):
        pickle.dump(part, old, 2)
    (tmp_path / "old.pt").write_bytes(old.getvalue())
    check_pickles(tmp_path / "old.pt", False)
