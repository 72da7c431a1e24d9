"""Scoring of label maps of any method over processes."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation import score_files
from sam2_3dmed_jax.evaluation.journal import Journal
from sam2_3dmed_jax.evaluation.label_files import FilePair, find_pairs
from sam2_3dmed_jax.evaluation.report.worst_cases import PICTURE
from sam2_3dmed_jax.evaluation.score_files import default_workers, evaluate_files
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.runtime import worker_processes
from sam2_3dmed_jax.volume.label_classes import LabelClass
from tests.helpers.nifti_files import make

SETTINGS = EvaluationSettings([LabelClass("organ", (1,)), LabelClass("tumour", (2,), tumour=True)], pictures=2)


def files(folder: Path, cases: int) -> list[FilePair]:
    """Write label maps of which each later prediction is worse, and pair them."""
    for name in ("references", "predictions"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        labels = np.zeros((16, 16, 8), np.uint8)
        labels[4:12, 4:12, 2:6], labels[6:9, 6:9, 3:5] = 1, 2
        make(folder / "references" / f"case{number}.nii.gz", labels)
        make(folder / "predictions" / f"case{number}.nii.gz", np.roll(labels, number, 0))
    pairs, _ = find_pairs(folder / "predictions", folder / "references")
    return pairs


def test_rows_and_pictures_of_two_processes_are_those_of_one(tmp_path):
    pairs = files(tmp_path, 4)
    one, two = (evaluate_files(pairs, SETTINGS, workers=workers) for workers in (1, 2))
    np.testing.assert_equal(two, one)
    assert [row["case"] for row in one] == [f"case{number}" for number in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert [row["case"] for row in one if PICTURE in row] == ["case3", "case3"]


def test_finished_cases_are_not_read_again_and_the_worst_are_drawn_from_all(tmp_path):
    pairs, journal = files(tmp_path, 3), Journal(tmp_path / "out", {})
    expected = evaluate_files(pairs, SETTINGS)
    assert evaluate_files(pairs[:2], SETTINGS, journal=journal)
    assert not any(PICTURE in row for row in Journal(tmp_path / "out", {}).get("case0") or [])
    (tmp_path / "predictions" / "case0.nii.gz").write_bytes(b"")
    np.testing.assert_equal(evaluate_files(pairs, SETTINGS, journal=Journal(tmp_path / "out", {})), expected)


def kill_process(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_ends_the_evaluation_with_the_name_of_its_case_and_the_others_are_kept(tmp_path, monkeypatch):
    pairs, journal = files(tmp_path, 2), Journal(tmp_path / "out", {})
    monkeypatch.setattr(score_files, "_score_case", kill_process)
    with pytest.raises(UserError, match=r"^case\d: its process ended with -9, probably out of memory; use fewer --w"):
        evaluate_files(pairs, SETTINGS, journal=journal, workers=2)


def test_by_default_each_process_has_four_cases_at_least(monkeypatch):
    monkeypatch.setattr(worker_processes.os, "sched_getaffinity", lambda _: range(6), raising=False)
    assert [default_workers(cases) for cases in (0, 1, 7, 8, 23, 24, 1000)] == [1, 1, 1, 2, 5, 6, 6]


def test_the_command_scores_over_processes_and_refuses_other_numbers(tmp_path, monkeypatch, capsys):
    files(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "--predictions", "predictions", "--references", "references"]
    for workers in ("1", "2"):
        assert main([*words, "--workers", workers, "--out", f"scores{workers}"]) == 0
    assert Path("scores1/cases.csv").read_text() == Path("scores2/cases.csv").read_text()
    assert main([*words, "--workers", "0", "--out", "scores"]) == 2 and not Path("scores").exists()
    assert (
        capsys.readouterr().err.splitlines()[-1] == "error: --workers: 0 is not a number of processes; give 1 or more"
    )
    assert main(["evaluate", "--results", "scores1", "--workers", "2", "--out", "scores"]) == 2
    assert capsys.readouterr().err.endswith("error: --workers is for --predictions; leave it out\n")
