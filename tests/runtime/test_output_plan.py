"""The plan of outputs: none is an input, another output, of another kind, or in a place that cannot be written."""

import os
from pathlib import Path

import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.local_paths import check_local
from sam2_3dmed_jax.runtime.output_plan import Input, OutputFile, OutputFolder, check_outputs


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file, two links to it, and a folder of data."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name in ("ct", "data/a", "data/b"):
        Path(name).write_text("mine")
    os.link("ct", "hard")
    Path("soft").symlink_to("ct")
    return tmp_path


@pytest.mark.parametrize("path", ["ct", "./data/../ct", "hard", "soft"])
def test_an_output_that_is_an_input_is_refused_under_any_name(path):
    with pytest.raises(UserError, match=r"^--out: .* is IMAGE itself, which would be replaced; give another file$"):
        check_outputs([OutputFile("--out", path)], [Input("IMAGE", "ct")])


def test_two_outputs_of_one_file_are_refused():
    for first, second in (("new", "./new"), ("hard", "soft")):
        with pytest.raises(UserError, match=r"^--overlay: .* is the same file as --out; give another file$"):
            check_outputs([OutputFile("--out", first), OutputFile("--overlay", second)])


def test_an_output_inside_another_output_is_refused():
    with pytest.raises(UserError, match=r"^--planes: model/x is in DST, another output"):
        check_outputs([OutputFolder("DST", "model"), OutputFile("--planes", "model/x")])


def test_a_folder_that_contains_an_input_is_refused():
    with pytest.raises(UserError, match=r"^data contains the source, which would be replaced; give another folder$"):
        check_outputs([OutputFolder("", "data")], [Input("the source", "data/a")])


def test_a_file_of_an_input_folder_is_refused_only_if_the_command_reads_it():
    only_a = Input("DATA", "data", lambda: ["data/a"])
    with pytest.raises(UserError, match=r"^--save: data/a is a file of DATA, which would be replaced"):
        check_outputs([OutputFile("--save", "data/a")], [only_a])
    check_outputs([OutputFile("--save", "data/b"), OutputFile("--out", "data/new")], [only_a])
    with pytest.raises(UserError, match="is a file of DATA"):
        check_outputs([OutputFile("--save", "data/b")], [Input("DATA", "data")])


def test_a_folder_may_hold_other_things_than_those_that_the_command_writes():
    check_outputs([OutputFolder("--out", "data", owns=("index.json",))], [Input("the image", "data/a")])
    with pytest.raises(UserError, match=r"^--out: data/a is the image itself"):
        check_outputs([OutputFolder("--out", "data", owns=("a",))], [Input("the image", "data/a")])


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (OutputFile("", "data"), "data is a folder; give the name of a file"),
        (OutputFolder("", "ct"), "ct is a file; give a folder"),
        (OutputFile("", "ct/x"), "because .*ct is a file; give another path"),
        (OutputFolder("", "/dev/null/x"), "because /dev/null is a file; give another path"),
        (OutputFile("", "/dev/null"), "/dev/null is a device or pipe"),
        (OutputFile("", "x" * 300), "cannot be written .File name too long."),
        (OutputFile("", "loop"), "cannot be written .Too many levels of symbolic links."),
        (OutputFile("", "gs://bucket/x"), "remote address"),
        (OutputFile("", "~/x"), "starts with '~', which only a shell expands; write /"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(output, reason):
    Path("loop").symlink_to("loop")
    with pytest.raises(UserError, match=reason):
        check_outputs([output])


def test_a_folder_without_write_access_is_refused(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: "data" not in str(path))  # root may write anywhere
    with pytest.raises(UserError, match=r"^--out: data/x/y cannot be written, because .*data is not writable"):
        check_outputs([OutputFile("--out", "data/x/y")])


def test_an_input_that_cannot_be_read_is_left_to_its_reader():
    def damaged() -> list[str]:
        raise UserError("damaged")

    check_outputs([OutputFile("", "data/b")], [Input("the image", "data/a", damaged), Input("--mask", "absent")])


def test_only_a_name_that_a_shell_would_expand_is_refused():
    for name in ("~backup.nii.gz", "a/~/b", "x~"):
        check_local(name)
