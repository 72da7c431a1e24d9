"""Bridges between automatic and prompted methods: prompts from predictions, and the component nearest to a click."""

from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax import VolumePredictor, new_model
from sam2_3dmed_jax.data.datasets import Dataset, read_dataset
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation import score_cases
from sam2_3dmed_jax.evaluation.nearest_component import nearest_components
from sam2_3dmed_jax.evaluation.score_cases import evaluate_model
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.inference.predictor import Result
from sam2_3dmed_jax.inference.segment import Segmentation
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.prompts.protocols import object_prompts
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_labels
from sam2_3dmed_jax.volume.label_classes import LabelClass


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_phantom_dataset(tmp_path_factory.mktemp("phantom") / "data", 2, 0, "spleen", matrix=48))


def test_prompts_come_from_an_automatic_prediction_and_not_from_the_reference(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    case, other = dataset.cases
    volume = read_volume(case.image)
    reference = read_labels(case.label, volume)
    elsewhere = np.roll(reference, (2, 9), (0, 2))  # where the automatic method predicts it
    write_labels(tmp_path / f"{case.id}.nii.gz", elsewhere, volume)
    received = []

    def segment(predictor, volume, prompts, *_):
        received.append(prompts)
        depth = len(volume.array)
        return Segmentation(
            np.zeros(volume.array.shape, np.uint16), Result((), np.zeros((0, depth, 0, 0)), np.zeros(0), np.zeros(0))
        )

    monkeypatch.setattr(score_cases, "segment_objects", segment)
    files = {case.id: str(tmp_path / f"{case.id}.nii.gz")}
    settings = EvaluationSettings([LabelClass("spleen", (1,))], "box-mid", prompt_files=files)
    one, none = evaluate_model(VolumePredictor(new_model("nano", 64)), dataset.cases, settings)
    assert (one["block"], one["protocol"], one["prompt_source"]) == (
        *("automatic", "box-mid-from-predictions", "predictions"),
    )
    expected = object_prompts("box-mid", elsewhere, volume.spacing, [(1,)])
    assert received[0] == {} or [p.box for p in received[0][(1,)]] == [p.box for p in expected[(1,)]]
    assert one["prompt_slices"] == str(expected[(1,)][0].slice) and one["missing"] == "no"
    # Without a file the case has no prompts, and the organ is missed.
    assert received[1] == {} and (none["n_prompts"], none["prompt_source"], none["missing"]) == (0, "none", "yes")
    assert none["case"] == other.id and none["dice"] == 0 and none["empty"] == "prediction"
    with pytest.raises(UserError, match="no prediction knows"):
        EvaluationSettings([LabelClass("spleen", (1,))], "oracle-clip", prompt_files=files)


def click(object_id: int, at: tuple[int, int, int]) -> list[VoxelPrompt]:
    z, y, x = at
    return [VoxelPrompt(object_id, z, ((float(x), float(y)),), (1,))]


def reduced(labels: np.ndarray, objects: list[tuple[int, ...]], clicks: dict, spacing=(1.0, 1.0, 1.0)) -> np.ndarray:
    dz, dy, dx = spacing
    depth, height, width = labels.shape
    return nearest_components(labels, Grid((width, height, depth), np.diag([-dx, -dy, dz, 1.0])), objects, clicks)


def test_the_component_nearest_to_the_click_in_millimetres_is_kept():
    labels = np.zeros((9, 9, 9), int)
    labels[4, 4, 8] = labels[7, 4, 4] = 1  # 4 voxels along x, 3 along z
    kept = [np.argwhere(reduced(labels, [(1,)], {(1,): click(1, (4, 4, 4))}, (dz, 1.0, 1.0))) for dz in (1.0, 5.0)]
    assert kept[0].tolist() == [[7, 4, 4]] and kept[1].tolist() == [[4, 4, 8]]
    labels[4, 4, 4:7] = 1  # the click is inside, and the component touches no other by a corner
    assert np.argwhere(reduced(labels, [(1,)], {(1,): click(1, (4, 4, 4))})).tolist() == [[4, 4, x] for x in (4, 5, 6)]
    assert not reduced(labels, [(1,)], {}).any()  # the reference has no object, so it has no click


def test_a_removed_tumour_becomes_its_organ():
    labels = np.zeros((1, 3, 12), int)
    labels[0, 1, 1:7] = [1, 2, 1, 1, 2, 1]  # an organ with two tumours
    labels[0, 1, 9:11] = [1, 2]  # and a false organ with a tumour
    clicks = {(1, 2): click(1, (0, 1, 1)), (2,): click(2, (0, 1, 6))}
    result = reduced(labels, [(1, 2), (2,)], clicks)[0, 1].tolist()
    assert result == [0, 1, 1, 1, 1, 2, 1, 0, 0, 0, 0, 0]
