"""`sam2-3dmed evaluate` on files: empty masks, missing files, other labels and grids, pooling and comparison."""

import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.data.held_out import held_out_cases
from sam2_3dmed_jax.data.split_files import write_run_split
from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.evaluation import score_files
from sam2_3dmed_jax.evaluation.journal import Journal
from sam2_3dmed_jax.evaluation.report import worst_cases
from sam2_3dmed_jax.runtime.folder_lock import one_writer
from sam2_3dmed_jax.volume.io import write_nifti
from tests.helpers.recorded_cases import RecordedCases

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
SHAPE = (10, 12, 6)
DIAGONAL = math.hypot(10, 12, 18)


def ball(value: int = 1, shift: int = 0) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[3 + shift : 6 + shift, 4:8, 2:4] = value
    return labels


def folder(root: Path, name: str, cases: dict[str, np.ndarray], affine: np.ndarray = AFFINE) -> str:
    for case, labels in cases.items():
        write_nifti(root / name / f"{case}.nii.gz", labels, affine)
    return str(root / name)


def evaluate(root: Path, predictions: str, references: str, *words: str, out: str = "out") -> list[dict[str, str]]:
    """Return the rows of a run that must succeed."""
    command = ["evaluate", "--predictions", predictions, "--references", references, "--out", str(root / out), *words]
    assert main(command) == 0
    return table(root / out)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["evaluate", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("policy", ["diagonal", "nan"])
def test_empty_masks_have_the_documented_scores(tmp_path: Path, policy: str):
    nothing = np.zeros(SHAPE, np.uint8)
    references = folder(tmp_path, "references", {"hit": ball(), "miss": ball(), "false": nothing, "none": nothing})
    predicted = {"hit": ball(), "miss": nothing, "false": ball(), "none": nothing}
    rows = evaluate(
        tmp_path, folder(tmp_path, "predictions", predicted), references, "--classes", "1=organ", "--empty", policy
    )
    of = {row["case"]: row for row in rows}
    assert {case: row["empty"] for case, row in of.items()} == {
        "hit": "",
        "miss": "prediction",
        "false": "reference",
        "none": "both",
    }
    for metric in ("dice", "iou", "nsd"):
        assert [float(of[case][metric]) for case in ("hit", "miss", "false")] == [1, 0, 0]
    for metric in ("hd95_mm", "hd_mm", "assd_mm"):
        far = pytest.approx(DIAGONAL if policy == "diagonal" else math.nan, rel=1e-5, nan_ok=True)
        assert float(of["hit"][metric]) == 0 and [float(of[case][metric]) for case in ("miss", "false")] == [far, far]
    assert all(of["none"][metric] == "nan" for metric in ("dice", "iou", "nsd", "hd95_mm", "hd_mm", "assd_mm"))
    stored = summary(tmp_path / "out")["classes"]["organ"]
    assert stored["empty"] == {"both": 1, "prediction": 1, "reference": 1} and stored["cases"] == 4
    assert stored["dice"]["mean"] == pytest.approx(1 / 3) and stored["dice"]["n"] == 3
    mean = stored["hd95_mm"]["mean"]
    assert mean == pytest.approx(2 / 3 * DIAGONAL) if policy == "diagonal" else mean is None


def test_a_missing_prediction_counts_as_empty_and_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references = folder(tmp_path, "references", {"a": ball(), "b": ball()})
    predictions = folder(tmp_path, "predictions", {"a": ball(), "other": ball()})
    rows = evaluate(tmp_path, predictions, references)
    assert [(row["case"], row["dice"], row["missing"], row["empty"]) for row in rows] == [
        ("a", "1", "no", ""),
        ("b", "0", "yes", "prediction"),
    ]
    stored = summary(tmp_path / "out")
    assert stored["missing_predictions"] == ["b"] and stored["classes"]["1"]["missing"] == 1
    printed = capsys.readouterr().out
    assert "1 of 2 predictions are missing and count as empty: 'b'" in printed
    assert "1 predictions have no reference and are left out: 'other'" in printed
    assert (
        "mean Dice 0.500 over 2 cases, NSD 0.500 at 3 mm, HD95" in printed and "1 with an empty prediction" in printed
    )


def test_a_folder_without_any_matching_prediction_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references = folder(tmp_path, "references", {"a": ball(), "b": ball()})
    predictions = folder(tmp_path, "predictions", {"c": ball()})
    words = ["--predictions", predictions, "--references", references, "--out", str(tmp_path / "out")]
    assert "2 of 2 predictions are missing, first a.nii.gz" in mistake(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_remap_replaces_the_labels_of_predictions(tmp_path: Path):
    references = folder(tmp_path, "references", {"a": ball(1)})
    both = ball(7)
    both[8, 8, 5] = 1
    predictions = folder(tmp_path, "predictions", {"a": both})
    (row,) = evaluate(tmp_path, predictions, references, "--remap", "7=1,1=0")
    assert row["dice"] == "1"


def test_unions_are_scored_in_addition_to_their_parts(tmp_path: Path):
    reference, prediction = ball(1), ball(1)
    reference[3], prediction[5] = reference[3] * 2, prediction[5] * 2  # 8 of 24 voxels each
    words = ["--classes", "1=organ,2=cancer,1+2=both", "--tolerance-mm", "3,cancer=0"]
    references, predictions = (folder(tmp_path, name, {"a": x}) for name, x in (("r", reference), ("p", prediction)))
    organ, cancer, both = evaluate(tmp_path, predictions, references, *words)
    assert (organ["dice"], cancer["dice"], both["dice"]) == ("0.5", "0", "1")
    assert [row["tolerance_mm"] for row in (organ, cancer, both)] == ["3", "0", "3"]
    assert (cancer["lesions_reference"], cancer["lesions_found"], cancer["lesions_false_positive"]) == ("1", "0", "1")
    assert organ["lesions_reference"] == "" and both["labels"] == "1+2"
    with (tmp_path / "out" / "lesions.csv").open(newline="") as file:
        (lesion,) = csv.DictReader(file)
    assert float(lesion["volume_ml"]) == pytest.approx(8 * 3 / 1000) and lesion["found"] == "False"
    stored = summary(tmp_path / "out")
    assert stored["macro_classes"] == ["organ", "cancer"] and stored["macro_dice"] == 0.25
    assert stored["classes"]["cancer"]["lesions"]["recall"] == 0


def test_a_prompted_method_is_distinguished_from_an_automatic_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references = folder(tmp_path, "references", {"a": ball()})
    words = ["--method", "nnU-Net", "--trained-on-these-cases", "yes", "--fold", "2", "--seed", "7"]
    (row,) = evaluate(tmp_path, references, references, *words)
    assert (row["method"], row["trained_on_these_cases"], row["fold"], row["seed"]) == ("nnU-Net", "yes", "2", "7")
    assert (row["block"], row["protocol"], row["n_prompts"], row["prompt_slices"]) == ("automatic", "none", "0", "")
    assert "scored as an automatic method" in capsys.readouterr().out
    (row,) = evaluate(tmp_path, references, references, "--protocol", "box-mid", out="prompted")
    assert (row["block"], row["protocol"], row["n_prompts"]) == ("reference-prompted", "box-mid", "1")
    assert row["prompt_slices"] == "2" and row["trained_on_these_cases"] == "unknown"
    stored = summary(tmp_path / "prompted")
    assert stored["protocol_definition"] == "one box per object, on the slice with its largest area"
    assert f"protocol box-mid: {stored['protocol_definition']}" in capsys.readouterr().out
    words = [
        "--results",
        str(tmp_path / "out"),
        "--results",
        str(tmp_path / "prompted"),
        "--out",
        str(tmp_path / "all"),
    ]
    assert "the results differ in method (nnU-Net, references)" in mistake(capsys, *words)


def test_a_prediction_on_another_grid_is_refused_by_name_or_resampled_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    references = folder(tmp_path, "references", {"a": ball()})
    moved = AFFINE.copy()
    moved[0, 3] = 1.0  # one voxel along x
    predictions = folder(tmp_path, "predictions", {"a": ball(shift=-1)}, moved)
    words = ["--predictions", predictions, "--references", references, "--out", str(tmp_path / "out")]
    error = mistake(capsys, *words)
    assert "predictions/a.nii.gz is not on the grid" in error and "--resample" in error
    assert not (tmp_path / "out").exists()
    (row,) = evaluate(tmp_path, predictions, references, "--resample")
    assert row["dice"] == "1"


def test_surface_metrics_on_a_slanted_grid_are_refused_left_out_or_resampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tilted = AFFINE.copy()
    tilted[1, 2] = 1.0
    references = folder(tmp_path, "references", {"a": ball()}, tilted)
    words = ["--predictions", references, "--references", references, "--out", str(tmp_path / "out")]
    assert "a.nii.gz has axes that are not orthogonal" in mistake(capsys, *words)
    assert not (tmp_path / "out").exists()
    (row,) = evaluate(tmp_path, references, references, "--metrics", "overlap")
    assert (row["dice"], row["nsd"], row["definition"]) == ("1", "nan", "")
    assert "nsd" not in summary(tmp_path / "out")["classes"]["1"]
    (row,) = evaluate(tmp_path, references, references, "--resample")
    assert (row["dice"], row["nsd"], row["hd_mm"]) == ("1", "1", "0")


@pytest.mark.parametrize("definition", ["surface-distance", "monai", "medpy"])
def test_the_definition_and_tolerance_are_stored_with_every_result(tmp_path: Path, definition: str):
    references = folder(tmp_path, "references", {"a": ball()})
    predictions = folder(tmp_path, "predictions", {"a": ball(shift=2)})
    (row,) = evaluate(tmp_path, predictions, references, "--definition", definition, "--tolerance-mm", "1")
    assert (row["definition"], row["tolerance_mm"], row["empty_policy"]) == (definition, "1", "diagonal")
    stored = summary(tmp_path / "out")
    assert stored["definition"] == definition and stored["classes"]["1"]["tolerance_mm"] == 1
    assert float(row["hd_mm"]) == 2 and 0 < float(row["nsd"]) < 1


def test_results_that_another_process_writes_are_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    predictions, references = (folder(tmp_path, name, {"a": ball()}) for name in ("predictions", "references"))
    evaluate(tmp_path, predictions, references)
    out = str(tmp_path / "out")
    with one_writer(out, ""):
        (tmp_path / "out" / "cases.csv").write_text("half")
        assert "in use by this process" in mistake(
            capsys, "--predictions", predictions, "--references", references, "--out", out
        )
    assert (tmp_path / "out" / "cases.csv").read_text() == "half"


def test_finished_results_of_folds_and_seeds_are_summarised_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for fold, case in enumerate("ab"):
        references = folder(tmp_path, f"r{fold}", {case: ball()})
        for seed, shift in enumerate((0, 1)):
            predictions = folder(tmp_path, f"p{fold}{seed}", {case: ball(shift=shift)})
            words = ["--method", "m", "--fold", str(fold), "--seed", str(seed), "--classes", "1=lesion"]
            evaluate(tmp_path, predictions, references, *words, out=f"o{fold}{seed}")
    results = [word for name in ("o00", "o01", "o10", "o11") for word in ("--results", str(tmp_path / name))]
    assert main(["evaluate", *results, "--out", str(tmp_path / "all")]) == 0
    stored = summary(tmp_path / "all")["classes"]["lesion"]
    assert stored["cases"] == stored["dice"]["n"] == 2
    assert stored["dice"]["mean"] == pytest.approx((1 + 2 / 3) / 2, rel=1e-5)  # the tables have six digits
    assert stored["dice"]["sd"] == pytest.approx(0) and stored["dice"]["sd_seeds"] == pytest.approx(
        (1 / 3) / math.sqrt(2), rel=1e-5
    )
    assert stored["lesions"]["lesions"] == stored["lesions"]["found"] == 4 and len(table(tmp_path / "all")) == 4
    words = [*results, "--tolerance-mm", "2", "--out", str(tmp_path / "x")]
    assert "--tolerance-mm: finished results cannot change" in mistake(capsys, *words)
    assert "two results for class lesion" in mistake(capsys, *results, *results[:2], "--out", str(tmp_path / "x"))
    assert "holds no cases.csv" in mistake(capsys, "--results", str(tmp_path / "r0"), "--out", str(tmp_path / "x"))


def test_a_run_is_compared_with_finished_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cases = "abcdef"
    references = folder(tmp_path, "references", {case: ball() for case in cases})
    shifted = folder(tmp_path, "shifted", {case: ball(shift=1 + n % 3) for n, case in enumerate(cases)})
    evaluate(tmp_path, shifted, references, out="theirs")
    evaluate(tmp_path, references, references, "--method", "ours", "--compare", str(tmp_path / "theirs"))
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    dice = comparison["results"][0]
    assert (comparison["method"], comparison["other"], dice["cases"], dice["better"]) == (
        "ours",
        "shifted",
        6,
        "method",
    )
    assert dice["difference"] == pytest.approx(1 - (2 / 3 + 1 / 3 + 0) / 3, rel=1e-5)
    assert dice["p_holm"] >= dice["p_wilcoxon"] > 0 and dice["p_crossed_holm"] >= dice["p_crossed"] > 0
    assert {"comparison.csv", "comparison_cases.csv.gz"} < {file.name for file in (tmp_path / "out").iterdir()}
    assert "1: dice +0.667" in capsys.readouterr().out
    evaluate(tmp_path, references, references)  # again, without --compare
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "cases.csv",
        "report.html",
        "summary.json",
    ]
    words = ["--predictions", references, "--references", references, "--out", str(tmp_path / "new")]
    words += ["--compare", str(tmp_path / "theirs")]
    assert "block of 1 is reference-prompted and automatic" in mistake(capsys, *words, "--protocol", "one-click")
    assert [file.name for file in (tmp_path / "new").iterdir()] == [".unfinished.jsonl"]  # the journal, but no results


def test_an_invalid_table_of_results_is_refused_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references = folder(tmp_path, "references", {"a": ball()})
    evaluate(tmp_path, references, references)
    file = tmp_path / "out" / "cases.csv"
    words = ["--results", str(tmp_path / "out"), "--out", str(tmp_path / "x")]
    whole = file.read_text()
    file.write_text(whole.replace("a,1,1,", "a,1,much,"))
    assert "line 2: dice is 'much', expected a number" in mistake(capsys, *words)
    header, first, *_ = whole.splitlines()
    cells = first.split(",")
    cells[header.split(",").index("lesions_reference")] = "1"
    file.write_text(f"{header}\n{','.join(cells)}\n")
    assert "line 2: some lesion counts are missing" in mistake(capsys, *words)
    file.write_text(whole.replace("hd95_mm", "hd95"))
    assert "has no column hd95_mm" in mistake(capsys, *words)
    file.write_text(whole.splitlines()[0] + "\n")
    assert "has no rows" in mistake(capsys, *words)
    file.write_bytes(b"\xff\xfe\x00")
    assert "is not a CSV table" in mistake(capsys, *words)


@pytest.mark.parametrize(
    ("column", "value"),
    [("volume_error_ml", "1e308"), ("assd_mm", "-inf"), ("dice", "inf"), ("hd95_mm", "inf"), ("hd95_mm", "1e300")],
)
def test_an_edited_number_of_finished_results_is_refused_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, value: str
):
    references = folder(tmp_path, "references", {"a": ball()})
    evaluate(tmp_path, references, references)
    rows = table(tmp_path / "out")
    with (tmp_path / "out" / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, column: value} for row in rows)
    words = ["--results", str(tmp_path / "out"), "--out", str(tmp_path / "x")]
    assert f"cases.csv, line 2: {column} is '{value}', expected a number" in mistake(capsys, *words)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "cost",
    [
        {"parameters": 5, "machine": "x"},
        {"parameters": {"a": 1}, "machine": "x"},
        {"parameters": None, "machine": ["x" * 10_000]},
    ],
)
def test_an_edited_cost_of_finished_results_is_refused_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cost: object
):
    references = folder(tmp_path, "references", {"a": ball()})
    evaluate(tmp_path, references, references)
    (tmp_path / "out" / "summary.json").write_text(json.dumps({**summary(tmp_path / "out"), "cost": cost}))
    error = mistake(capsys, "--results", str(tmp_path / "out"), "--out", str(tmp_path / "x"))
    assert "summary.json: cost" in error
    assert not (tmp_path / "x").exists()


def test_two_files_of_one_case_are_refused_and_other_formats_are_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    references = folder(tmp_path, "references", {"a": ball()})
    (tmp_path / "references" / "notes.txt").write_text("by hand")
    predictions = tmp_path / "predictions"
    write_nifti(predictions / "a.nii", ball(), AFFINE)
    (row,) = evaluate(tmp_path, str(predictions), references)
    assert row["dice"] == "1"
    nib.save(nib.load(predictions / "a.nii"), predictions / "a.nii.gz")
    words = ["--predictions", str(predictions), "--references", references, "--out", str(tmp_path / "x")]
    assert "a.nii and a.nii.gz are both of case a" in mistake(capsys, *words)


def test_an_eroded_abdomen_has_the_expected_scores(realdata: Path, tmp_path: Path):
    from scipy import ndimage

    file = realdata / "abdomen" / "organs6_from_v1.nii.gz"
    image = nib.load(file)
    stored = np.asarray(image.dataobj).astype(np.uint8)
    eroded = np.zeros_like(stored)
    for value in (2, 4):
        eroded[ndimage.binary_erosion(stored == value)] = value
    references = folder(tmp_path, "references", {"abdomen": stored}, image.affine)
    predictions = folder(tmp_path, "predictions", {"abdomen": eroded}, image.affine)
    spleen, pancreas, liver = evaluate(
        tmp_path, predictions, references, "--classes", "2=spleen,3=pancreas,4=liver", "--tolerance-mm", "3,pancreas=5"
    )
    # A layer of 3 mm voxels is removed: no surface distance is smaller, and hardly any is larger than the diagonal.
    for organ in (spleen, liver):
        assert 0.8 < float(organ["dice"]) < 0.95 and float(organ["nsd"]) > 0.98
        assert 3 <= float(organ["hd95_mm"]) <= 3 * math.sqrt(3) and -30 < float(organ["volume_error_percent"]) < -5
        assert float(organ["fp_ml_outside_extent"]) == 0
    assert (pancreas["dice"], pancreas["empty"]) == ("0", "prediction") and float(pancreas["hd95_mm"]) > 400
    assert float(pancreas["volume_ml_reference"]) == pytest.approx(818 * 0.027, rel=1e-5)


def test_fold_and_seed_of_a_run_are_used_only_for_the_dataset_of_the_run(tmp_path: Path):
    split = Split(("a", "b"), (), ("c",))
    write_run_split(tmp_path / "split.json", split, {"fingerprint": "f", "split": "kfold", "fold": 3})
    (tmp_path / "config.json").write_text(json.dumps({"training": {"seed": 5}}))
    cases = RecordedCases(["a", "b", "c"], "f")
    _, record, trained, _ = held_out_cases(cases, str(tmp_path / "final"), {})
    assert (record["fold"], record["seed"], trained) == (3, 5, "no")
    other = RecordedCases([f"other_{n}" for n in range(5)], "another")
    assert held_out_cases(other, str(tmp_path / "final"), {}).run == {}
    (tmp_path / "config.json").write_text("{")
    assert "seed" not in held_out_cases(cases, str(tmp_path / "final"), {}).run


def test_an_automatic_method_reduced_to_the_clicked_component_counts_as_prompted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    labels = ball()
    labels[9, 11, 5] = 1  # a false positive component
    references, predictions = (
        folder(tmp_path, "references", {"a": ball()}),
        folder(tmp_path, "predictions", {"a": labels}),
    )
    (whole,) = evaluate(tmp_path, predictions, references, out="whole")
    (row,) = evaluate(tmp_path, predictions, references, "--nearest-component")
    assert (row["dice"], row["block"], row["protocol"], row["n_prompts"]) == (
        *("1", "reference-prompted", "nearest-component", "1"),
    )
    assert float(whole["dice"]) < 1 and whole["block"] == "automatic"
    assert "nearest to one click" in summary(tmp_path / "out")["protocol_definition"]
    words = ["--predictions", predictions, "--references", references, "--out", str(tmp_path / "x")]
    words += ["--nearest-component", "--protocol", "box-mid"]
    assert "leave out --protocol" in mistake(capsys, *words)


def test_an_interrupted_scoring_of_files_resumes_and_writes_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cases = {name: ball(shift=shift) for name, shift in (("a", 0), ("b", 1), ("c", 2))}
    references = folder(tmp_path, "references", dict.fromkeys(cases, ball()))
    predictions = folder(tmp_path, "predictions", cases)
    words = ["--classes", "1=lesion"]
    evaluate(tmp_path, predictions, references, *words, out="whole")
    score, calls = score_files._score_case, []

    def failing(pairs, **more):
        calls.append(pairs[-1].case)
        if calls == ["a", "b"]:
            raise KeyboardInterrupt
        return score(pairs, **more)

    monkeypatch.setattr(score_files, "_score_case", failing)
    command = ["evaluate", "--predictions", predictions, "--references", references, "--out", str(tmp_path / "out")]
    assert main([*command, *words]) == 130
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".unfinished.jsonl"]
    assert main([*command, *words]) == 0 and calls == ["a", "b", "b", "c"]
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"cases.csv", "lesions.csv", "report.html", "summary.json"}
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    # A replaced prediction is scored again.
    monkeypatch.setattr(score_files, "_score_case", score)
    Journal(tmp_path / "out", {"another": "evaluation"}).add("a", [])
    write_nifti(tmp_path / "predictions" / "a.nii.gz", ball(shift=3), AFFINE)
    assert evaluate(tmp_path, predictions, references, *words)[0]["dice"] == "0"


def test_files_whose_axes_are_stored_in_another_order_have_the_same_scores(tmp_path: Path):
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    references = folder(tmp_path, "references", {"a": ball()}, affine)
    predictions = folder(tmp_path, "predictions", {"a": ball(shift=1)}, affine)
    turned = affine[:, [2, 0, 1, 3]]
    words = [
        folder(tmp_path, f"turned_{n}", {"a": x.transpose(2, 0, 1)}, turned)
        for n, x in enumerate((ball(shift=1), ball()))
    ]
    (one,) = evaluate(tmp_path, predictions, references, "--method", "m")
    (other,) = evaluate(tmp_path, *words, "--method", "m", out="turned")
    assert one == other and float(one["nsd"]) > 0


def test_a_modality_is_refused_where_no_scan_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references = folder(tmp_path, "references", {"a": ball()})
    words = ["--predictions", references, "--references", references, "--out", str(tmp_path / "out")]
    for source in (words, ["--results", str(tmp_path), "--out", str(tmp_path / "out")]):
        line = mistake(capsys, *source, "--modality", "mr")
        assert "--modality is for a checkpoint, or for --images; leave it out" in line


def test_scans_for_pictures_have_the_given_modality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    references = folder(tmp_path, "references", {"a": ball()})
    images = folder(tmp_path, "images", {"a": ball(200)})
    seen = []
    original = worst_cases.window_of
    monkeypatch.setattr(worst_cases, "window_of", lambda volume, w: seen.append(volume.modality) or original(volume, w))
    evaluate(tmp_path, references, references, "--images", images, "--modality", "mr")
    assert seen == ["MR"]
