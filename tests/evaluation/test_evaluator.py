"""Rows, summaries and files of an evaluation, on two tiny phantoms and a model with random weights."""

import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import VolumePredictor, new_model
from sam2_3dmed_jax.data.msd import Dataset, read_dataset
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.evaluator import (
    COLUMNS,
    Row,
    evaluate_files,
    evaluate_model,
    score,
    summarise,
    write_results,
)
from sam2_3dmed_jax.evaluation.protocol import prompt_of
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_nifti
from sam2_3dmed_jax.volume.phantom import write_phantom_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = write_phantom_dataset(tmp_path_factory.mktemp("phantom") / "data", 2, 0, "pancreas", matrix=48)
    # The second reader saw no tumour, and the tail as an object of its own: two objects a case, so one compilation.
    file = folder / "labelsTr" / "pancreas_0002.nii.gz"
    image = nib.load(file)
    labels = np.minimum(np.asarray(image.dataobj), 1).astype(np.uint8)
    middle = int(np.median(np.nonzero(labels)[0]))
    labels[:middle] *= 3
    write_nifti(file, labels, image.affine)
    description = json.loads((folder / "dataset.json").read_text())
    description["labels"]["3"] = "tail"
    (folder / "dataset.json").write_text(json.dumps(description))
    return read_dataset(folder)


@pytest.fixture(scope="module")
def rows(dataset: Dataset) -> list[Row]:
    predictor = VolumePredictor(new_model("nano", 64, with_3dmed=True))
    return evaluate_model(predictor, dataset.cases, dataset.labels, "one-click")


def row(dice: float, name: str = "spleen", empty: str = "") -> Row:
    return {**dict.fromkeys(COLUMNS, 0.0), "case": "a", "class": name, "dice": dice, "empty": empty, "protocol": "p"}


def volume_of(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Volume:
    depth, height, width = shape
    dz, dy, dx = spacing
    return Volume(np.zeros(shape, np.float32), Grid((width, height, depth), np.diag([-dx, -dy, dz, 1.0])))


def test_there_is_one_row_a_case_and_class_that_says_what_the_method_was_told(dataset: Dataset, rows: list[Row]):
    assert [(r["case"], r["class"]) for r in rows] == [
        (case.id, name) for case in dataset.cases for name in ("pancreas", "cancer", "tail")
    ]
    assert all(set(r) == set(COLUMNS) for r in rows)
    first = rows[0]
    volume = read_volume(dataset.cases[0].image)
    reference = read_labels(dataset.cases[0].label, volume) == 1
    assert first["prompt_slices"] == str(int(reference.sum((1, 2)).argmax()))
    assert (first["protocol"], first["prompt_source"], first["n_prompts"]) == ("one-click", "reference", 1)
    assert first["volume_ml_reference"] == pytest.approx(reference.sum() * volume.voxel_volume_ml)
    assert 0 <= first["dice"] < 1 and first["seconds"] > 0


def test_a_class_that_a_case_lacks_is_not_prompted_and_has_no_score(rows: list[Row]):
    absent = rows[4]
    assert math.isnan(absent["dice"]) and absent["empty"] == "reference"
    assert (absent["n_prompts"], absent["prompt_slices"], absent["prompt_source"]) == (0, "", "none")
    assert absent["volume_ml_prediction"] == 0


def test_a_protocol_that_does_not_exist_is_refused_with_the_choices(dataset: Dataset):
    predictor = VolumePredictor(new_model("nano", 64))
    with pytest.raises(UserError, match="one-click, box-mid"):
        evaluate_model(predictor, dataset.cases, dataset.labels, "oracle")


def test_protocols_prompt_the_largest_slice_inside_the_object():
    reference = np.zeros((4, 20, 20), bool)
    reference[1, 2:6, 2:6] = True
    reference[2, 5:16, 8:13] = True
    click, box = (prompt_of(name, reference, (5.0, 0.8, 0.8), 3) for name in ("one-click", "box-mid"))
    assert click.slice == box.slice == 2 and click.object_id == box.object_id == 3
    ((x, y),) = click.points
    assert reference[2, int(y), int(x)] and click.box is None and click.labels == (1,)
    assert box.box == (8.0, 5.0, 12.0, 15.0) and not box.points


def test_slices_with_a_prompt_and_voxels_beyond_the_extent_are_counted_apart():
    reference, prediction = np.zeros((2, 6, 4, 4), bool)
    reference[2:4, 1:3, 1:3] = True
    prediction[2, 1:3, 1:3] = True
    prediction[5, :, :] = True
    found = score(prediction, reference, volume_of((6, 4, 4), (5.0, 2.0, 1.0)), [2])
    assert found["dice"] == 2 * 4 / (8 + 20)
    assert found["dice_without_prompted_slices"] == 0
    assert found["volume_ml_prediction"] == pytest.approx(20 * 0.01)
    assert found["fp_ml_outside_extent"] == pytest.approx(16 * 0.01)


def test_a_missed_organ_counts_and_an_absent_one_does_not():
    summary = summarise([row(1.0), row(0.0, empty="prediction"), row(math.nan, empty="both")])
    spleen = summary["classes"]["spleen"]
    assert spleen["dice"] == {"mean": 0.5, "sd": pytest.approx(math.sqrt(0.5)), "median": 0.5, "n": 2}
    assert spleen["cases"] == 3 and spleen["empty"] == {"both": 1, "prediction": 1, "reference": 0}


def test_the_macro_mean_is_over_classes_and_not_over_cases():
    rows = [row(1.0), row(1.0), row(1.0), row(0.0, "cancer"), row(math.nan, "nodule")]
    assert summarise(rows)["macro_dice"] == 0.5


def test_results_are_written_whole_with_their_definitions(rows: list[Row], tmp_path: Path):
    write_results(rows, summarise(rows), tmp_path / "scores")
    assert sorted(p.name for p in (tmp_path / "scores").iterdir()) == ["cases.csv", "summary.json"]
    with (tmp_path / "scores" / "cases.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [r["case"] for r in written] == [r["case"] for r in rows] and written[4]["dice"] == "nan"
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert summary["note"] == "for research use only" and "macro" in summary["definitions"]["averaging"]


def test_files_of_any_method_are_scored_by_name(dataset: Dataset, tmp_path: Path):
    references = Path(dataset.cases[0].label).parent
    found = evaluate_files(references, references, {1: "pancreas", 2: "cancer"})
    assert [r["dice"] for r in found[:3]] == [1.0, 1.0, 1.0] and math.isnan(found[3]["dice"])
    assert found[3]["empty"] == "both"
    assert {r["class"] for r in evaluate_files(references, references, {})} == {"1", "2", "3"}
    with pytest.raises(UserError, match=r"2 of 2 predictions are missing.*pancreas_0001"):
        evaluate_files(tmp_path, references, {})


def test_a_prediction_on_another_grid_is_refused(dataset: Dataset, tmp_path: Path):
    case = dataset.cases[0]
    image = nib.load(case.label)
    write_nifti(tmp_path / Path(case.label).name, np.asarray(image.dataobj)[:-1], image.affine)
    other = dataset.cases[1]
    image = nib.load(other.label)
    write_nifti(tmp_path / Path(other.label).name, np.asarray(image.dataobj), image.affine)
    with pytest.raises(UserError, match="does not lie on the grid"):
        evaluate_files(tmp_path, Path(case.label).parent, {})


def test_a_dataset_may_be_evaluated_on_some_of_its_classes(dataset: Dataset):
    predictor = VolumePredictor(new_model("nano", 64, with_3dmed=True))
    assert evaluate_model(predictor, dataset.cases[1:], {2: "cancer"}, "box-mid")[0]["empty"] == "reference"
