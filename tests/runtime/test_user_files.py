"""Small files from users: only regular ones of limited size and depth are read, and errors name file and field."""

import dataclasses
import json
import math
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any

import pytest

from sam2_3dmed_jax.config import Range
from sam2_3dmed_jax.errors import LINE, UserError
from sam2_3dmed_jax.runtime import user_files
from sam2_3dmed_jax.runtime.hashing import sha256_of_file

ROOT = Path(__file__).resolve().parents[2]
FIX = "give another file"
DEEP = "[" * 100_000
# The reader itself; messages over HTTP; and a script that runs where this project is not installed.
READERS = {"runtime/user_files.py", "server/bodies.py", "server/page/messages.py", "export/run.py"}
READERS |= {"runtime/guarded_process.py"}  # messages between a process and its child


@dataclasses.dataclass(frozen=True)
class Item:
    """A member of `Record`."""

    name: str
    share: Annotated[float, Range(0, 1)] = 0.5


@dataclasses.dataclass(frozen=True)
class Record:
    """The content of a file."""

    items: tuple[Item, ...]
    size: tuple[int, int]
    by_label: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    scale: float | None = None


def read(value: Any) -> Record:
    return user_files.typed(value, Record, "file.json", FIX)


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is a pipe, expected a file; give another file"):
        user_files.read_bytes(tmp_path / "pipe", FIX)


def test_a_link_to_a_device_a_socket_and_a_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    (tmp_path / "link").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for name, kind in (("link", "a device"), ("socket", "a socket"), (".", "a folder")):
            with pytest.raises(UserError, match=f"is {kind}, expected a file"):
                user_files.read_bytes(name, FIX)


def test_a_file_of_proc_is_refused():
    with pytest.raises(UserError, match="/proc/self/status is a file of the system"):
        user_files.read_bytes("/proc/self/status", FIX)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"has 1048576\.0 MiB, expected at most 64 MiB"):
        user_files.read_text(tmp_path / "large", FIX)


@pytest.mark.parametrize("name", ["absent", "x" * 300, "null\0", "file/in"])
def test_a_path_that_cannot_be_opened_is_one_sentence(tmp_path: Path, name: str):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"(does not exist|cannot be read .*); give another file"):
        user_files.read_bytes(tmp_path / name, FIX)


def test_the_start_of_a_file_of_any_size_is_read(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"start" + bytes(1000))
    assert user_files.read_start(tmp_path / "file", 5, FIX) == b"start"


def test_hashing_a_pipe_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe"):
        sha256_of_file(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP.encode(), "recursion limit exceeded"),
        (b'{"a": "\xe9"}', "invalid unicode"),
        (b'{"a": "\\ud800"}', "hex escape"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b"1" * 5000, "number out of range"),
        (b"", "EOF"),
    ],
)
def test_what_is_not_json_is_refused_with_the_reason(tmp_path: Path, text: bytes, reason: str):
    (tmp_path / "file.json").write_bytes(text)
    with pytest.raises(UserError, match=rf"file\.json is not JSON \(.*{reason}.*\); give another file"):
        user_files.read_json(tmp_path / "file.json", FIX)


def test_json_may_start_with_a_byte_order_mark_and_have_nan_where_the_project_wrote_it(tmp_path: Path):
    (tmp_path / "file.json").write_text("\ufeff[NaN, 2]", encoding="utf-8")
    first, second = user_files.read_json(tmp_path / "file.json", FIX, finite=False)
    assert math.isnan(first) and second == 2


def test_plain_values_become_dataclasses_with_tuples_and_numbers_as_keys():
    value = {"items": [{"name": "a"}], "size": [1, 2], "by_label": {"7": [1, 2]}, "scale": 2}
    assert read(value) == Record((Item("a"),), (1, 2), {7: (1, 2)}, 2.0)
    assert read(user_files.plain(read(value))) == read(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "the file is 5, expected an object"),
        ({"size": [1, 2]}, "items is missing"),
        ({"items": [{"name": 5}], "size": [1, 2]}, r"items[0].name is 5, expected a text"),
        (
            {"items": [{"name": "a", "share": 2}], "size": [1, 2]},
            "items[0].share is 2.0, expected a number from 0 to 1",
        ),
        ({"items": [{"name": "a", "share": math.nan}], "size": [1, 2]}, "share is NaN, expected a number from 0 to 1"),
        ({"items": [{"name": "a", "color": 1}], "size": [1, 2]}, "items[0].color is not a known field"),
        ({"items": [], "size": [1, True]}, "size[1] is true, expected a whole number"),
        ({"items": [], "size": [1, "2"]}, 'size[1] is "2", expected a whole number'),
        ({"items": [], "size": [1, 2.5]}, "size[1] is 2.5, expected a whole number"),
        ({"items": [], "size": [1]}, "size[1] is missing"),
        ({"items": [], "size": [1, 2], "by_label": {"x": [1]}}, "by_label.x is"),
        ({"items": [], "size": [1, 2], "by_label": {"1": [[1]]}}, "by_label.1[0] is [1], expected a whole number"),
        ({"items": [], "size": [1, 2], "scale": math.inf}, "scale is not finite, expected a finite number"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_path(value: Any, message: str):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read(value)
    assert str(caught.value).startswith("file.json: ") and str(caught.value).endswith(FIX)


def test_a_message_about_a_huge_value_is_short():
    with pytest.raises(UserError) as caught:
        read({"items": "x" * 10_000, "size": [1, 2]})
    assert len(str(caught.value)) < LINE


def test_cells_of_a_table_have_their_column_and_short_rows_are_filled(tmp_path: Path):
    (tmp_path / "t.csv").write_text("\ufeffa, b\r\n1, x\n\n2\n", encoding="utf-8")
    table = user_files.read_table(tmp_path / "t.csv", FIX, strip=True)
    assert table.columns == ("a", "b")
    assert table.rows == ((2, {"a": "1", "b": "x"}), (4, {"a": "2", "b": ""}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a,a\n1,2\n", "has two columns 'a'"),
        (b"a\n1,2\n", "line 2: it has more cells than columns"),
        (b"a\n\xff\n", r"is not a CSV table in UTF-8 \(byte 2\)"),
        (b"a\n" + b"x" * 200_000, "is not a CSV table"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: bytes, message: str):
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(UserError, match=message):
        user_files.read_table(tmp_path / "t.csv", FIX)


@pytest.mark.parametrize("text", ["inf", "-inf", "1e308", "1e400", "x", "0x1"])
def test_a_cell_that_is_no_finite_number_is_refused(text: str):
    with pytest.raises(UserError, match=f"t.csv, line 2: dice is '{text}', expected a number"):
        user_files.number(text, "t.csv, line 2: dice", FIX)


@pytest.mark.parametrize("text", ["", "-1", "1.0", "²", "1" * 5000, "1000000001"])
def test_a_cell_that_is_no_whole_number_is_refused(text: str):
    with pytest.raises(UserError, match="expected a whole number from 0 to 1000000000"):
        user_files.whole_number(text, "t.csv, line 2: step", FIX)


def test_no_other_module_parses_json_or_csv():
    parsing = re.compile(r"\bjson\.loads?\(|\bcsv\.(Dict)?[rR]eader\(|pydantic_core\.from_json\(")
    found = {
        str(file.relative_to(ROOT / package))
        for package in ("sam2_3dmed_jax", "weights_conversion")
        for file in (ROOT / package).rglob("*.py")
        if parsing.search(file.read_text(encoding="utf-8"))
    }
    assert found == READERS


def test_values_are_plain_after_writing_them_as_json():
    assert user_files.plain(Item("a")) == json.loads('{"name": "a", "share": 0.5}')
    with pytest.raises(TypeError, match="set is not a value of JSON"):
        user_files.plain({1, 2})
