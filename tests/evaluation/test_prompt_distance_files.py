"""Dice by distance from the prompt and leakage in the files of an evaluation, re-read, resumed and of version 0.1."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation import score_files
from sam2_3dmed_jax.evaluation.result_files import read_results
from sam2_3dmed_jax.volume.io import write_nifti

AFFINE = np.diag([1.0, 1.0, 6.0, 1.0])  # slices of 6 mm


def labels(first: int, stop: int, width: int = 4) -> np.ndarray:
    """Return a column on some slices, with its largest area on slice 4."""
    volume = np.zeros((10, 10, 12), np.uint8)
    volume[2 : 2 + width, 2:6, first:stop] = 1
    volume[2 : 3 + width, 2:6, 4] = 1
    return volume


def score(root: Path, *words: str, out: str = "out") -> Path:
    folders = ["--predictions", str(root / "predictions"), "--references", str(root / "references")]
    assert main(["evaluate", *folders, "--method", "m", "--classes", "1=organ", "--out", str(root / out), *words]) == 0
    return root / out


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with two cases: a prediction that ends on time, and one that leaks by three slices."""
    for name, stop in (("a", 7), ("b", 10)):
        write_nifti(tmp_path / "references" / f"{name}.nii.gz", labels(3, 7), AFFINE)
        write_nifti(tmp_path / "predictions" / f"{name}.nii.gz", labels(3, stop), AFFINE)
    return tmp_path


def test_each_case_has_one_row_per_distance_with_slices(root: Path):
    out = score(root, "--protocol", "one-click")
    rows = table(out / "distance.csv")
    columns = ("case", "distance_low_mm", "distance_high_mm", "slices", "dice")
    # The click is on slice 4; slices 3 to 6 are 6, 0, 6 and 12 mm away, and slices 7 to 9 of the leak 18, 24 and 30 mm.
    # Each slice has 16 voxels, the prompted one 20: slices 6 and 7 of case b have 16 of 16 + 32.
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("a", "0", "0", "1", "1"),
        ("a", "0", "10", "2", "1"),
        ("a", "10", "20", "1", "1"),
        ("b", "0", "0", "1", "1"),
        ("b", "0", "10", "2", "1"),
        ("b", "10", "20", "2", f"{2 * 16 / 48:.6g}"),
        ("b", "20", "40", "2", "0"),
    ]
    assert {(row["class"], row["method"], row["seed"]) for row in rows} == {("organ", "m", "")}
    assert [row["leakage_mm"] for row in table(out / "cases.csv")] == ["0", "18"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["macro_leakage_mm"] == 9 and "by_distance" in summary["definitions"]
    bins = summary["classes"]["organ"]["by_distance"]
    assert [one["cases"] for one in bins] == [2, 2, 2, 1, 0, 0]
    assert bins[2]["dice"] == pytest.approx((1 + 2 / 3) / 2) and bins[3]["dice"] == 0 and bins[4]["dice"] is None
    page = (out / "report.html").read_text()
    assert "Dice by distance from the nearest prompted slice" in page and "leakage beyond the extent (mm)" in page


def test_files_of_an_unprompted_method_have_no_distances(root: Path):
    score(root, "--protocol", "one-click")
    out = score(root)
    assert not (out / "distance.csv").exists() and (out / "cases.csv").exists()
    assert "Dice by distance" not in (out / "report.html").read_text()
    assert "by_distance" not in json.loads((out / "summary.json").read_text())["classes"]["organ"]


def test_finished_results_keep_their_distances_when_they_are_summarised_again(root: Path):
    out = score(root, "--protocol", "one-click")
    assert main(["evaluate", "--results", str(out), "--out", str(root / "again")]) == 0
    assert (root / "again" / "distance.csv").read_bytes() == (out / "distance.csv").read_bytes()
    bins, again = (json.loads((x / "summary.json").read_text())["classes"]["organ"] for x in (out, root / "again"))
    for one, other in zip(again["by_distance"], bins["by_distance"], strict=True):
        # Six digits are written.
        assert one == (other if other["dice"] is None else {**other, "dice": pytest.approx(other["dice"], rel=1e-5)})


def test_an_interrupted_evaluation_resumes_with_the_distances_of_finished_cases(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = score(root, "--protocol", "one-click", out="whole")
    score_case = score_files._score_case

    def failing(pairs, **more):
        if pairs[-1].case == "b":
            raise KeyboardInterrupt
        return score_case(pairs, **more)

    monkeypatch.setattr(score_files, "_score_case", failing)
    words = ["--predictions", str(root / "predictions"), "--references", str(root / "references"), "--method", "m"]
    words += ["--classes", "1=organ", "--protocol", "one-click", "--out", str(root / "out")]
    assert main(["evaluate", *words]) == 130
    monkeypatch.setattr(
        score_files, "_score_case", lambda pairs, **more: score_case(pairs, **more) if pairs[-1].case == "b" else None
    )
    assert main(["evaluate", *words]) == 0
    names = {file.name for file in whole.iterdir()}
    assert "distance.csv" in names
    assert all((root / "out" / name).read_bytes() == (whole / name).read_bytes() for name in names)


def without_new_columns(out: Path) -> None:
    """Turn results into results of version 0.1, which has neither leakage nor distances."""
    rows = table(out / "cases.csv")
    columns = [name for name in rows[0] if name != "leakage_mm"]
    with (out / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    (out / "distance.csv").unlink()


def test_results_of_version_0_1_are_summarised_and_compared(root: Path):
    old = score(root, "--protocol", "one-click", out="old")
    without_new_columns(old)
    assert main(["evaluate", "--results", str(old), "--out", str(root / "again")]) == 0
    summary = json.loads((root / "again" / "summary.json").read_text())
    assert "leakage_mm" not in summary["classes"]["organ"] and summary["macro_dice"] is not None
    assert "leakage beyond the extent (mm)" not in (root / "again" / "report.html").read_text()
    assert not (root / "again" / "distance.csv").exists()
    # What was written from them is read again in the same way.
    assert all("leakage_mm" not in row for row in read_results(root / "again"))
    out = score(root, "--protocol", "one-click", "--compare", str(old))
    comparison = json.loads((out / "comparison.json").read_text())
    (dice,) = [entry["difference"] for entry in comparison["results"] if entry["metric"] == "dice"]
    assert dice == pytest.approx(0, abs=1e-6)  # six digits are written


def test_a_damaged_table_of_distances_is_refused(root: Path):
    out = score(root, "--protocol", "one-click")
    whole = (out / "distance.csv").read_text()
    for wrong in (whole.replace("10,20", "10,21"), whole.replace("distance_low_mm", "from"), "case,class\n1,2\n"):
        (out / "distance.csv").write_text(wrong)
        with pytest.raises(UserError, match=r"is not a (table|bin) of distances"):
            read_results(out)
