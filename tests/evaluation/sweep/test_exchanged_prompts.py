"""Sweeps in which each object is prompted with the prompt of another one: scores, classes without a row, and report."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.split_choice import choose_split
from sam2_3dmed_jax.evaluation.sweep.case_sweep import is_swapped
from sam2_3dmed_jax.model.checkpoint import assemble
from sam2_3dmed_jax.prompts.perturbation import Displacement
from sam2_3dmed_jax.sam2.parameters import split
from sam2_3dmed_jax.volume.io import write_nifti
from sam2_3dmed_jax.volume.label_classes import LabelClass

AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])
SINGLE = [f"single{number}" for number in range(4)]  # k-fold needs five cases
SPEC = """
from sam2_3dmed_jax.config import SweepSpec

def get_spec():
    return SweepSpec(
        checkpoints=("model",), data="data", folds=(0, 1, 2, 3, 4), prompt=("point",), misplacement_mm=(0.0,),
        prompt_of=("own", "other"), metrics="overlap",
    )
"""


def two_objects(second: bool) -> np.ndarray:
    labels = np.zeros((40, 40, 6), np.uint8)
    labels[4:16, 6:18, 1:5] = 1
    if second:
        labels[24:34, 22:34, 1:6] = 2  # both are prompted on slice 1
    return labels


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model and five cases, one per fold; only the first has both objects."""
    root = tmp_path_factory.mktemp("exchanged")
    rng = np.random.default_rng(0)
    for case in ("both", *SINGLE):
        labels = two_objects(second=case == "both")
        image = (100 * labels + rng.normal(0, 20, labels.shape)).astype(np.int16)
        write_nifti(root / "data" / "imagesTr" / f"{case}.nii.gz", image, AFFINE)
        write_nifti(root / "data" / "labelsTr" / f"{case}.nii.gz", labels, AFFINE)
    (root / "data" / "imagesTs").mkdir()
    description = {"name": "t", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "spleen"}}
    description |= {"numTraining": 5, "numTest": 0, "test": []}
    description["training"] = [
        {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ("both", *SINGLE)
    ]
    (root / "data" / "dataset.json").write_text(json.dumps(description))
    model = new_model("nano", 64, with_3dmed=False)
    save_model(model, root / "model")
    # Without the encoding of positions, all clicks on a slice are the same to the model.
    encoding = "sam_prompt_encoder.pe_layer."
    blind = {path: 0 * value if path.startswith(encoding) else value for path, value in split(model)[1].items()}
    save_model(assemble(blind, model.info), root / "blind")
    (root / "spec.py").write_text(SPEC)
    return root


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def swept(place: Path) -> Path:
    patch = pytest.MonkeyPatch()
    patch.chdir(place)
    splits = [choose_split(sorted(["both", *SINGLE]), DataConfig(path="data", fold=fold)) for fold in range(5)]
    (fold,) = [fold for fold, split in enumerate(splits) if "both" in split.test]
    try:
        assert main(["sweep", "spec.py", "--out", "swept", "--folds", str(fold)]) == 0
    finally:
        patch.undo()
    return place / "swept"


def test_each_object_is_scored_against_its_own_reference_with_the_prompt_of_the_other(swept: Path, place: Path):
    rows = table(swept / "sweep.csv")
    own, other = (
        {row["class"]: row for row in rows if row["case"] == "both" and row["prompt_of"] == kind}
        for kind in ("own", "other")
    )
    for name, partner in (("liver", "spleen"), ("spleen", "liver")):
        # SAM 2 does not know which object it segments: the prompt of the partner gives the mask of the partner.
        assert other[name]["volume_ml_prediction"] == own[partner]["volume_ml_prediction"] != "0"
        assert other[name]["volume_ml_reference"] == own[name]["volume_ml_reference"]
        assert other[name]["prompt_slices"] == own[partner]["prompt_slices"]
        assert other[name]["protocol"] == "sweep" and own[name]["protocol"] == "one-click"
    assert (other["liver"]["prompted_onto"], other["spleen"]["prompted_onto"]) == ("2", "1")
    assert float(other["liver"]["moved_mm"]) > 20


def test_a_model_that_ignores_where_the_click_is_keeps_its_scores(
    swept: Path, place: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    fold = table(swept / "sweep.csv")[0]["fold"]
    assert main(["sweep", "spec.py", "--out", "ignored", "--checkpoints", "blind", "--folds", fold]) == 0
    rows = table(place / "ignored" / "sweep.csv")
    own, other = ([row for row in rows if row["prompt_of"] == kind] for kind in ("own", "other"))
    assert [row["dice"] for row in own] == [row["dice"] for row in other] and len(own) == 2
    assert float(own[0]["dice"]) > 0


def test_a_case_with_one_object_has_no_row_with_the_prompt_of_another(
    swept: Path, place: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    assert main(["sweep", "spec.py", "--out", "all", "--prompt_of", "other"]) == 0
    assert [row["case"] for row in table(place / "all" / "sweep.csv")] == ["both", "both"]
    assert {row["n"] for row in table(place / "all" / "summary.csv") if row["class"] != "macro"} == {"1"}


def test_the_report_shows_both_scores_with_a_sentence_on_how_to_read_them(swept: Path):
    page = (swept / "report.html").read_text()
    assert "<h2>Prompt of another object</h2>" in page
    assert "if it ignores the prompt, the Dice stays as it is with the own prompt" in page
    section = page.split("<h2>Prompt of another object</h2>")[1].split("<h2>")[0]
    for row in table(swept / "summary.csv"):
        assert row["class"] == "macro" or f'<data value="{row["dice_mean"]}">' in section


def test_without_two_objects_in_any_case_one_line_says_so(
    swept: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    fold = str((int(table(swept / "sweep.csv")[0]["fold"]) + 1) % 5)
    assert main(["sweep", "spec.py", "--out", "none", "--folds", fold, "--prompt_of", "other"]) == 0
    note = "prompt_of other: no case has two objects without a common label"
    assert capsys.readouterr().out.count(f"note: {note}") == 1
    assert table(place / "none" / "sweep.csv") == []
    assert note in (place / "none" / "report.html").read_text()


@pytest.mark.parametrize(
    ("values", "present", "swaps", "expected"),
    [
        ((1,), [(1,), (3,)], {(1,): (3,), (3,): (1,)}, True),
        ((1, 3), [(1,), (3,)], {(1,): (3,), (3,): (1,)}, False),  # the prompts only change places within the class
        ((1,), [(1, 2), (2,)], {}, False),
        ((1,), [(1, 2), (2,), (3,)], {(1, 2): (3,), (2,): (3,), (3,): (1, 2)}, True),
        ((1, 3), [(1, 2), (2,), (3,)], {(1, 2): (3,), (2,): (3,), (3,): (1, 2)}, False),
        ((4,), [(1,), (3,)], {(1,): (3,), (3,): (1,)}, False),  # absent
    ],
)
def test_a_class_is_scored_if_its_prompts_are_outside_of_it(values, present, swaps, expected):
    placed = {target: Displacement(0.0, "", other) for target, other in swaps.items()}
    assert is_swapped(LabelClass("organ", values), present, placed) is expected
