"""Atomic files and folders: complete under their names, or absent, with nothing left behind after an error."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import (
    UNFINISHED,
    atomic_folder,
    atomic_path,
    atomic_paths,
    write_errors,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_concurrent_writers_of_one_file_leave_the_text_of_one_of_them(tmp_path: Path):
    texts = [f"{number}" * 100_000 for number in range(8)]

    def write(text: str) -> None:
        for _ in range(50):
            write_text(tmp_path / "record.json", text)

    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(write, texts))
    assert (tmp_path / "record.json").read_text() in texts
    assert names(tmp_path) == ["record.json"]


def test_an_unchanged_file_is_not_touched_on_request(tmp_path: Path):
    file = tmp_path / "a.json"
    write_text(file, "text")
    before = file.stat().st_ino
    write_text(file, "text", keep_unchanged=True)
    assert file.stat().st_ino == before
    write_text(file, "other", keep_unchanged=True)
    assert file.read_text() == "other"


def test_a_temporary_file_is_hidden_and_has_the_suffix_that_was_asked_for(tmp_path: Path):
    with atomic_path(tmp_path / "new" / ("x" * 250), ".nii.gz") as temporary:
        temporary.write_text("scan")
        assert temporary.name.startswith(".") and temporary.name.endswith(f"{UNFINISHED}.nii.gz")
    assert names(tmp_path / "new") == ["x" * 250]


def test_after_an_error_neither_the_file_nor_the_folders_made_for_it_are_left(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a" / "b" / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_several_files_appear_together_or_not_at_all(tmp_path: Path):
    def write(fail: bool) -> None:
        with atomic_paths() as temporary_path:
            for name in ("one", "two"):
                temporary_path(tmp_path / name).write_text(name)
            if fail:
                raise UserError(f"{next(tmp_path.iterdir())} is full")

    with pytest.raises(UserError, match=r"(one|two) is full") as caught:
        write(fail=True)
    assert ".one" not in str(caught.value) and names(tmp_path) == []
    write(fail=False)
    assert names(tmp_path) == ["one", "two"]
    os.mkdir(tmp_path / "folder")
    with pytest.raises(UserError, match="folder is a folder"), atomic_paths() as temporary_path:
        temporary_path(tmp_path / "three")
        temporary_path(tmp_path / "folder")
    assert names(tmp_path) == ["folder", "one", "two"]


def test_a_folder_replaces_another_only_when_asked_and_only_when_complete(tmp_path: Path):
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("")
    with pytest.raises(OSError, match="not empty"), atomic_folder(target):
        pass
    with pytest.raises(ValueError, match="stop"), atomic_folder(target, replace=True) as folder:
        raise ValueError("stop")
    assert names(target) == ["old"] and names(tmp_path) == ["out"]
    with atomic_folder(target, replace=True) as folder:
        (folder / "new").write_text("")
    assert names(target) == ["new"] and names(tmp_path) == ["out"]


def test_a_process_that_does_not_own_the_folder_only_gets_its_temporary_name(tmp_path: Path):
    with atomic_folder(tmp_path / "out", writer=False, tag="all") as other:
        assert names(tmp_path) == []
        with atomic_folder(tmp_path / "out", tag="all") as own:
            assert own == other
    assert names(tmp_path) == ["out"]


def test_a_known_reason_is_found_in_the_long_error_of_a_library(tmp_path: Path):
    expected = pytest.raises(UserError, match=r"run cannot be written \(No space left on device\); do this")
    with expected, write_errors(tmp_path / "run", "do this", errors=Exception):
        raise ValueError("RESOURCE_EXHAUSTED: " + "x" * 5000 + "no space left on device [errno 28]")
    with pytest.raises(ValueError, match="bug"), write_errors(tmp_path / "run"):
        raise ValueError("bug")


def test_an_error_inside_of_an_unfinished_folder_names_the_folder_that_was_asked_for(tmp_path):
    with (
        pytest.raises(UserError) as caught,
        atomic_folder(tmp_path / "model") as folder,
        write_errors(folder / "weights"),
    ):
        raise OSError(28, "No space left on device")
    assert str(caught.value).startswith(f"{tmp_path}/model/weights cannot be written (No space left on device)")
