"""Rows of a model on two tiny phantoms: prompts, unions, protocols, and equal scores from files."""

import json
import math
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import VolumePredictor, new_model
from sam2_3dmed_jax.data.datasets import Dataset, read_dataset
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation import score_cases
from sam2_3dmed_jax.evaluation.cost import UNKNOWN
from sam2_3dmed_jax.evaluation.journal import FILE, Journal
from sam2_3dmed_jax.evaluation.label_files import find_pairs
from sam2_3dmed_jax.evaluation.prompted_segmentation import segment_objects
from sam2_3dmed_jax.evaluation.result_files import case_columns
from sam2_3dmed_jax.evaluation.score_cases import evaluate_model
from sam2_3dmed_jax.evaluation.score_files import evaluate_files
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.prompts.protocols import object_prompts
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_labels, write_nifti
from sam2_3dmed_jax.volume.label_classes import declared_classes, parse_classes

METHOD_COLUMNS = {"method": "ours", "trained_on_these_cases": "no", "fold": 0, "seed": ""}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = write_phantom_dataset(tmp_path_factory.mktemp("phantom") / "data", 2, 0, "pancreas", matrix=48)
    # The second case has no tumour, and its tail is a separate object: two objects per case, so one compilation.
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
def predictor() -> VolumePredictor:
    return VolumePredictor(new_model("nano", 64, with_3dmed=True))


@pytest.fixture(scope="module")
def settings(dataset: Dataset) -> EvaluationSettings:
    return EvaluationSettings(declared_classes(dataset.labels), "one-click", method_columns=METHOD_COLUMNS)


@pytest.fixture(scope="module")
def rows(predictor: VolumePredictor, dataset: Dataset, settings: EvaluationSettings) -> list[ScoreRow]:
    return evaluate_model(predictor, dataset.cases, settings)


def scored(row: ScoreRow) -> str:
    """Return a row without the columns that only the run of a model has."""
    return repr(
        {
            name: value
            for name, value in row.items()
            if name not in (*UNKNOWN, *registry.names_requiring("logits"), "band_mm", "reliability", "bd", "zoom")
        }
    )


def test_each_case_and_class_has_one_row_that_records_its_prompts(dataset: Dataset, rows: list[ScoreRow]):
    assert [(r["case"], r["class"]) for r in rows] == [
        (case.id, name) for case in dataset.cases for name in ("pancreas", "cancer", "tail")
    ]
    assert all({*case_columns()} - {*registry.names_requiring("tumour")} <= {*r} for r in rows)
    first = rows[0]
    volume = read_volume(dataset.cases[0].image)
    reference = read_labels(dataset.cases[0].label, volume) == 1
    assert first["prompt_slices"] == str(int(reference.sum((1, 2)).argmax()))
    assert (first["protocol"], first["prompt_source"], first["n_prompts"]) == ("one-click", "reference", 1)
    assert (first["block"], first["method"], first["missing"]) == ("reference-prompted", "ours", "no")
    assert first["volume_ml_reference"] == pytest.approx(reference.sum() * volume.voxel_volume_ml)
    assert first["volume_error_ml"] == first["volume_ml_prediction"] - first["volume_ml_reference"]
    assert 0 <= first["dice"] < 1 and first["seconds"] > 0
    assert first["bd"] == "yes" and first["tflops"] > 1e-3 and first["peak_host_mib"] > 100
    assert first["hd_mm"] >= first["hd95_mm"] >= 0 and first["definition"] == "surface-distance"


def test_lesions_are_counted_for_tumours_only(rows: list[ScoreRow]):
    assert ["lesions_reference" in row for row in rows] == [False, True, False] * 2
    assert rows[1]["lesions_reference"] == len(rows[1]["lesions"]) >= 1 and not rows[4]["lesions"]


def test_a_class_that_a_case_lacks_is_not_prompted_and_has_no_score(rows: list[ScoreRow]):
    absent = rows[4]
    unavailable = registry.names_requiring("surfaces", "prompts", "logits")
    assert all(math.isnan(absent[name]) for name in ("dice", "iou", *unavailable)) and absent["empty"] == "both"
    assert (absent["n_prompts"], absent["prompt_slices"], absent["prompt_source"]) == (0, "", "none")
    assert absent["volume_ml_prediction"] == 0


def test_a_protocol_that_does_not_exist_is_refused_with_the_choices(dataset: Dataset):
    with pytest.raises(UserError, match="one-click, box-mid"):
        EvaluationSettings(declared_classes(dataset.labels), "oracle")


def test_predictions_scored_as_files_have_the_rows_of_the_model(
    predictor: VolumePredictor, dataset: Dataset, rows: list[ScoreRow], settings: EvaluationSettings, tmp_path: Path
):
    for case in dataset.cases:
        volume = read_volume(case.image)
        reference = read_labels(case.label, volume)
        objects = object_prompts("one-click", reference, volume.spacing, settings.objects)
        labels = segment_objects(predictor, volume, objects).labels
        write_labels(tmp_path / Path(case.label).name, labels, volume)
    pairs, unused = find_pairs(tmp_path, Path(dataset.cases[0].label).parent)
    result_rows = evaluate_files(pairs, settings)
    assert not unused
    for one, other in zip(result_rows, rows, strict=True):
        assert scored(one) == scored(other)


def test_an_organ_is_prompted_with_its_tumour_which_is_painted_over_it(predictor: VolumePredictor, dataset: Dataset):
    classes = parse_classes("1=pancreas,2=cancer,1+2=both", {})
    settings = EvaluationSettings(classes, "one-click")
    assert settings.objects == [(1, 2), (2,)]
    organ, tumour, both = evaluate_model(predictor, dataset.cases[:1], settings)
    volume = read_volume(dataset.cases[0].image)
    reference = read_labels(dataset.cases[0].label, volume)
    whole = np.isin(reference, (1, 2)).sum((1, 2)).argmax()
    assert not organ.get("reliability") and math.isnan(organ["band_ece"])  # an organ minus its tumour is not an object
    for row in (tumour, both):
        assert 0 <= row["band_ece"] <= 1 and 0 <= row["band_entropy"] <= 1 and row["band_mm"] == 5
    assert str(whole) in organ["prompt_slices"].split() and organ["n_prompts"] == both["n_prompts"] == 2
    assert tumour["prompt_slices"] == str((reference == 2).sum((1, 2)).argmax())
    assert both["volume_ml_reference"] == pytest.approx(organ["volume_ml_reference"] + tumour["volume_ml_reference"])
    assert both["volume_ml_prediction"] == pytest.approx(organ["volume_ml_prediction"] + tumour["volume_ml_prediction"])
    assert both["labels"] == "1+2" and organ["labels"] == "1"


def test_the_oracle_clip_protocol_predicts_the_extent_only_and_clicks_once_per_clip(
    predictor: VolumePredictor, dataset: Dataset
):
    settings = EvaluationSettings(parse_classes("3=tail", {}), "oracle-clip", clip_slices=2)
    (row,) = evaluate_model(predictor, dataset.cases[1:], settings)
    volume = read_volume(dataset.cases[1].image)
    extent = np.flatnonzero((read_labels(dataset.cases[1].label, volume) == 3).any((1, 2)))
    slices = list(map(int, row["prompt_slices"].split()))
    assert row["n_prompts"] == len(slices) == math.ceil((extent[-1] - extent[0] + 1) / 2)
    assert all(0 <= slice_ - extent[0] - 2 * clip < 2 for clip, slice_ in enumerate(slices))
    assert row["fp_ml_outside_extent"] == 0 and row["protocol"] == "oracle-clip"


def test_an_interrupted_evaluation_resumes_with_the_next_case(
    predictor: VolumePredictor,
    dataset: Dataset,
    rows: list[ScoreRow],
    settings: EvaluationSettings,
    tmp_path: Path,
    monkeypatch,
):
    done = Journal(tmp_path, {"settings": repr(settings)})
    done.add(dataset.cases[0].id, rows[:3])
    segmented = []
    segment = score_cases.segment_objects

    def counted(predictor, volume, prompts, *options):
        segmented.append(volume.grid.source)
        return segment(predictor, volume, prompts, *options)

    monkeypatch.setattr(score_cases, "segment_objects", counted)
    again = Journal(tmp_path, {"settings": repr(settings)})
    result_rows = evaluate_model(predictor, dataset.cases, settings, journal=again)
    assert segmented == [dataset.cases[1].image]
    assert [scored(row) for row in result_rows] == [scored(row) for row in rows]
    again.remove()
    assert not list(tmp_path.iterdir())


def test_the_journal_of_another_evaluation_or_a_damaged_one_is_ignored(rows: list[ScoreRow], tmp_path: Path):
    Journal(tmp_path, {"settings": 1}).add("a", rows[:1])
    assert Journal(tmp_path, {"settings": 1}).get("a") is not None
    assert Journal(tmp_path, {"settings": 2}).get("a") is None
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text()[:-30])
    assert Journal(tmp_path, {"settings": 1}).get("a") is None


def test_a_slanted_scan_is_refused_before_any_case_is_segmented(
    dataset: Dataset, settings: EvaluationSettings, tmp_path: Path
):
    image = nib.load(dataset.cases[1].image)
    affine = image.affine.copy()
    affine[1, 2] += 1.0
    write_nifti(tmp_path / "tilted.nii.gz", np.asarray(image.dataobj), affine)
    cases = [dataset.cases[0], replace(dataset.cases[1], image=str(tmp_path / "tilted.nii.gz"))]
    with pytest.raises(UserError, match=r"tilted\.nii\.gz has axes that are not orthogonal"):
        evaluate_model(None, cases, settings)
