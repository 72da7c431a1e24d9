"""The loop of the challenge: prompts, clicks, scores and files of each step equal its script's rules."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, ndimage

from experiments.segfm3d import evaluate, predict
from experiments.segfm3d.__main__ import main
from sam2_3dmed_jax.metrics.surface import surface_metrics
from tests.helpers.segfm3d_files import SPACING, Balls, image, reference, write_case


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Balls:
    """A method in place of the model."""
    method = Balls()
    for module in (evaluate, predict):
        monkeypatch.setattr(module, "load_segmenter", lambda options: method)
    return method


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def click_of_the_script(segmentation: np.ndarray, gt: np.ndarray) -> tuple[str | None, list[int]]:
    """Return the click of one class, written from the script: on whole volumes, with its generator."""
    if not (segmentation != gt).any():
        return None, []
    errors, _ = ndimage.label(segmentation != gt, np.ones((3, 3, 3)))
    sizes = np.bincount(errors.flat)
    sizes[0] = 0
    largest = errors == np.argmax(sizes)
    edt = ndimage.distance_transform_edt(np.pad(largest, 3))[3:-3, 3:-3, 3:-3]
    np.random.seed(42)
    centres = np.argwhere(edt == edt.max())
    centre = centres[np.random.choice(len(centres))].tolist()
    return "fg" if gt[tuple(centre)] else "bg", centre


@pytest.mark.parametrize("with_boxes", [True, False])
def test_clicks_scores_and_files_equal_the_formulas_of_the_script(with_boxes: bool, method: Balls, tmp_path: Path):
    write_case(tmp_path / "in" / "a.npz", with_boxes)
    assert main(["evaluate", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    again = Balls()
    dscs, nsds, segmentations = [], [], []
    clicks: list[list[Any]] = [[], []]
    segmentation = np.zeros(reference().shape, np.uint8)
    for step, case in enumerate(method.cases, 0 if with_boxes else 1):
        if step:
            for number, found in enumerate(clicks):
                kind, voxel = click_of_the_script(segmentation == number + 1, reference() == number + 1)
                found += [(tuple(voxel), kind == "fg")] if kind else []
            assert [[(click.voxel, click.inside) for click in given] for given in case.clicks] == clicks
        else:
            assert case.clicks is None
        assert (case.boxes is not None) == with_boxes and np.array_equal(case.images, image())
        segmentation = again.segment(case)
        pairs = [(segmentation == value, reference() == value) for value in (1, 2)]
        dscs.append(np.mean([2 * (seg & gt).sum() / (seg.sum() + gt.sum()) for seg, gt in pairs]))
        surfaces = [surface_metrics(*pair, SPACING, 2.0, "surface-distance")["nsd"] for pair in pairs]
        nsds.append(np.mean(surfaces) if dscs[-1] > 0.2 else 0.0)
        segmentations.append(segmentation)
    assert len(segmentations) == (6 if with_boxes else 5) and len(clicks[0]) == 5
    (row,) = rows(tmp_path / "out")
    first = 1 if with_boxes else 2
    for name, values in (("DSC", dscs), ("NSD", nsds)):
        assert [float(row[f"{name}_{step}"]) for step in range(first, 7)] == pytest.approx(values, abs=1e-12)
        area = integrate.cumulative_trapezoid(np.array(values[-5:]), np.arange(5))[-1]
        assert float(row[f"{name}_AUC"]) == pytest.approx(area, abs=1e-12)
        assert float(row[f"{name}_Final"]) == pytest.approx(values[-1], abs=1e-12)
        assert with_boxes or float(row[f"{name}_1"]) == 0
    assert (row["CaseName"], row["num_class"], row["runtime_upperbound"]) == ("a.npz", "2", "180")
    assert (float(row["RunningTime_1"]) > 0) == with_boxes
    assert float(row["TotalRunningTime"]) == pytest.approx(sum(float(row[f"RunningTime_{i}"]) for i in range(1, 7)))
    with np.load(tmp_path / "out" / "a.npz", allow_pickle=False) as written:
        np.testing.assert_array_equal(written["all_segs"], np.stack(segmentations))
        np.testing.assert_array_equal(written["segs"], segmentations[-1])


PERFECT = """
import numpy as np, os
request = np.load("inputs/a.npz", allow_pickle=True)
assert set(os.listdir("inputs")) == {"a.npz"} and "gts" not in request
if "clicks" in request:
    assert request["prev_pred"].dtype == np.uint8
    assert all(kind is None for kind in request["clicks_order"][0]), request["clicks_order"]
    assert list(request["clicks"]) == [{"fg": [], "bg": []}] and request["boxes"][0]["z_mid"] == 3
np.savez_compressed("outputs/a.npz", segs=(request["imgs"] > 100).astype(np.uint8))
"""


def test_a_command_gets_the_files_of_the_challenge_and_a_perfect_class_gets_no_clicks(tmp_path: Path):
    gts = np.zeros((6, 8, 8), np.uint8)
    gts[2:5, 2:6, 2:6] = 1
    box = {"z_min": 2, "z_max": 4, "z_mid": 3} | {f"z_mid_{axis}_{end}": 2 for axis in "xy" for end in ("min", "max")}
    write_case(tmp_path / "in" / "a.npz", imgs=gts * 200, gts=gts, boxes=[box])
    (tmp_path / "method.py").write_text(PERFECT)
    words = ["--command", f"{sys.executable} {tmp_path / 'method.py'}"]
    assert main(["evaluate", str(tmp_path / "in"), str(tmp_path / "out"), *words]) == 0
    (row,) = rows(tmp_path / "out")
    assert (row["DSC_AUC"], row["NSD_AUC"], row["DSC_1"]) == ("4.0", "4.0", "1.0")


def test_a_command_that_writes_nothing_scores_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_case(tmp_path / "in" / "a.npz")
    assert main(["evaluate", str(tmp_path / "in"), str(tmp_path / "out"), "--command", "true"]) == 0
    (row,) = rows(tmp_path / "out")
    assert {float(row[name]) for name in ("DSC_AUC", "NSD_AUC", "DSC_Final", "NSD_Final")} == {0.0}
    assert "wrote no result" in capsys.readouterr().err


def test_time_beyond_the_limit_is_a_warning(
    method: Balls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(evaluate, "SECONDS_PER_CLASS", 1e-6)
    write_case(tmp_path / "in" / "a.npz")
    assert main(["evaluate", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "that the challenge allows for 2 classes" in capsys.readouterr().err
    assert float(rows(tmp_path / "out")[0]["DSC_Final"]) > 0


def test_a_case_that_fails_is_listed_and_the_others_are_scored(
    method: Balls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_case(tmp_path / "in" / "a.npz", gts=None)
    write_case(tmp_path / "in" / "b.npz")
    assert main(["evaluate", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert "failed:" in printed.out and "a.npz has no integer array gts" in printed.out
    assert "1 of 2 files failed" in printed.err
    assert [row["CaseName"] for row in rows(tmp_path / "out")] == ["b.npz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.npz", "metrics.csv"]


@pytest.mark.parametrize("words", [["absent", "out"], ["in", "out", "--gts", "absent"], ["in", "in"]])
def test_a_wrong_folder_is_refused_before_anything_is_written(
    words: list[str], method: Balls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_case(tmp_path / "in" / "a.npz")
    assert main(["evaluate", *words]) == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.npz"] and not method.cases
