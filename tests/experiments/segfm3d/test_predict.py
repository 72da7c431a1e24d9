"""The command `predict`: folders, failures, files and flags; the model is replaced."""

from pathlib import Path

import numpy as np
import pytest

from experiments.segfm3d import predict
from experiments.segfm3d.__main__ import main
from experiments.segfm3d.predict import load_segmenter
from tests.helpers.segfm3d_files import Balls, reference, write_case


@pytest.fixture(autouse=True)
def method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Balls:
    monkeypatch.chdir(tmp_path)
    method = Balls()
    monkeypatch.setattr(predict, "load_segmenter", lambda options: method)
    return method


def files(tmp_path: Path) -> list[str]:
    return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())


def test_each_file_has_a_result_of_the_same_name(tmp_path: Path):
    for name in ("a.npz", "b.npz"):
        write_case(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").touch()
    assert main(["predict", "in", "out"]) == 0
    assert files(tmp_path / "out") == ["a.npz", "b.npz"]
    with np.load("out/b.npz", allow_pickle=False) as written:
        assert written.files == ["segs"] and written["segs"].dtype == np.uint8
        assert written["segs"].shape == reference().shape


def test_a_result_of_an_earlier_step_is_replaced(tmp_path: Path):
    write_case(tmp_path / "in" / "a.npz")
    assert main(["predict", "in", "out"]) == 0
    first = Path("out/a.npz").read_bytes()
    write_case(tmp_path / "in" / "a.npz", clicks=[{"fg": [[0, 0, 0]], "bg": []}] * 2)
    assert main(["predict", "in", "out"]) == 0
    assert Path("out/a.npz").read_bytes() != first


def test_a_hostile_file_is_listed_and_the_others_are_segmented(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_case(tmp_path / "in" / "a.npz", boxes=np.array([{"z_min": Path("x")}], object))
    write_case(tmp_path / "in" / "b.npz")
    assert main(["predict", "in", "out"]) == 2
    printed = capsys.readouterr()
    assert "failed: in/a.npz: boxes contains the Python object pathlib" in printed.out
    assert "1 of 2 files failed" in printed.err and files(tmp_path / "out") == ["b.npz"]


@pytest.mark.parametrize("words", [["absent", "out"], ["empty", "out"], ["in", "in"]])
def test_a_wrong_folder_is_refused_and_nothing_is_written(words: list[str], tmp_path: Path, method: Balls, capsys):
    write_case(tmp_path / "in" / "a.npz")
    (tmp_path / "empty").mkdir()
    assert main(["predict", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert files(tmp_path) == ["in/a.npz"] and not method.cases


def test_the_cache_is_off_unless_a_flag_or_the_environment_names_a_folder(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[str, float]] = []
    write_case(Path("in/a.npz"))
    monkeypatch.setattr(
        predict, "load_segmenter", lambda options: seen.append((options.cache, options.cache_gib)) or Balls()
    )
    monkeypatch.delenv("SEGFM3D_CACHE", raising=False)
    main(["predict", "in", "out"])
    main(["predict", "in", "out", "--cache", "here", "--cache-gib", "2"])
    monkeypatch.setenv("SEGFM3D_CACHE", "there")
    main(["predict", "in", "out"])
    assert seen == [("", 8.0), ("here", 2.0), ("there", 8.0)]


def test_a_limit_of_the_cache_that_is_not_positive_is_refused(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(predict, "load_segmenter", load_segmenter)
    write_case(Path("in/a.npz"))
    assert main(["predict", "in", "out", "--cache-gib", "0"]) == 2
    assert "--cache-gib is 0.0; give a positive number of GiB" in capsys.readouterr().err
