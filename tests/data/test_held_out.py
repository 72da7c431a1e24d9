"""Cases that a checkpoint is scored on, and refusal of training cases after any other change."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sam2_3dmed_jax.config import DataConfig, SplitConfig
from sam2_3dmed_jax.data.case_content import CaseContent, RecordedCase
from sam2_3dmed_jax.data.held_out import HeldOut, held_out_cases
from sam2_3dmed_jax.data.run_data import AcceptedChange, RunData, write_run_data
from sam2_3dmed_jax.data.split_choice import SPLIT_FILE, choose_split, split_description
from sam2_3dmed_jax.data.split_files import read_split_description, write_run_split
from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.errors import UserError
from tests.helpers.recorded_cases import SPLIT_IDS as IDS
from tests.helpers.recorded_cases import RecordedCases

DATA = "fingerprint of a dataset"
FOLD_1 = DataConfig(path="data", fold=1)
HELD_OUT = choose_split(IDS, FOLD_1).test
TRAINED = choose_split(IDS, FOLD_1).train


def held(checkpoint: str, settings: dict[str, object] | None = None) -> Split:
    """The split for a dataset with the files that the run had, of which only the sizes are known."""
    return held_out_cases(RecordedCases(IDS, DATA), checkpoint, settings or {}).split


def recorded(name: str, labels: str = "", compression: str = "gzip", image: str = "") -> RecordedCase:
    """A case whose image, labels and bytes are named by texts in the place of hashes."""
    affine = ((0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    image, labels = image or f"image of {name}", labels or f"labels of {name}"
    return RecordedCase(CaseContent(image, labels, (2, 3, 4), affine, "CT"), image + compression, labels + compression)


def dataset(cases: dict[str, RecordedCase]) -> RecordedCases:
    """A dataset whose files have other sizes than the files of the run."""
    return RecordedCases(sorted(cases), "other sizes", cases)


ORIGINAL = {name: recorded(name) for name in IDS}


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """The checkpoint of a run with a record of its data."""
    checkpoint = write_run(tmp_path, FOLD_1)
    write_run_data(tmp_path / "run" / "data.json", RunData((1,), dict(ORIGINAL)))
    return checkpoint


def scored(cases: dict[str, RecordedCase], checkpoint: str, **settings: object) -> HeldOut:
    return held_out_cases(dataset(cases), checkpoint, settings)


def write_run(tmp_path: Path, data: DataConfig) -> str:
    """Write the split of a run, and return the folder of its checkpoint."""
    write_run_split(tmp_path / "run" / SPLIT_FILE, choose_split(IDS, data), split_description(data, DATA))
    return str(tmp_path / "run" / "final")


def test_a_checkpoint_is_scored_on_the_held_out_cases_of_its_run_by_default(tmp_path, patients, splits):
    for number, data in enumerate(
        [
            DataConfig(fold=2, split=SplitConfig(folds=3)),
            DataConfig(split=SplitConfig(method="80/20", seed=4)),
            DataConfig(fold=1, split=SplitConfig(patients=patients, inner_fraction=0.2)),
            DataConfig(fold=1, split=SplitConfig(file=splits)),
        ]
    ):
        data = replace(data, path=str(tmp_path / "data"))
        checkpoint = write_run(tmp_path / str(number), data)
        assert held(checkpoint) == choose_split(IDS, data)
        record = str(tmp_path / str(number) / "run" / SPLIT_FILE)
        assert held(checkpoint, {"splits": record}) == choose_split(IDS, data)


def test_cases_that_a_checkpoint_was_trained_on_are_refused(tmp_path):
    data = DataConfig(path=str(tmp_path / "data"), fold=1)
    checkpoint = write_run(tmp_path, data)
    with pytest.raises(UserError, match=r"trained on 3 of 3 cases to score \('case_00', 'case_03', 'case_08'\)"):
        held(checkpoint, {"fold": 0})
    with pytest.raises(UserError, match="was trained on"):
        held(checkpoint, {"split": "kfold"})  # ignores the settings of the run: fold 0


def test_inner_validation_cases_are_refused_as_held_out_cases(tmp_path):
    data = DataConfig(path=str(tmp_path / "data"), split=SplitConfig(inner_fraction=0.5))
    checkpoint = write_run(tmp_path, data)
    inner = choose_split(IDS, data).val
    file = tmp_path / "inner.json"
    file.write_text(json.dumps([{"train": list(choose_split(IDS, data).test), "val": list(inner)}]))
    with pytest.raises(UserError, match=f"trained on {len(inner)} of {len(inner)} cases"):
        held(checkpoint, {"splits": str(file)})


def test_a_checkpoint_without_its_run_is_scored_by_the_flags(tmp_path):
    assert held(str(tmp_path / "alone"), {"fold": 3}) == choose_split(IDS, DataConfig(fold=3))


def test_an_edited_split_json_is_refused_with_the_name_of_the_field(tmp_path):
    data = DataConfig(path=str(tmp_path / "data"))
    checkpoint = write_run(tmp_path, data)
    file = tmp_path / "run" / SPLIT_FILE
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "how": {**read_split_description(file), "folds": "five"}}))
    with pytest.raises(UserError, match=r"how\.folds is 'five'"):
        held(checkpoint)


def test_of_a_run_of_version_0_1_cases_with_the_ids_of_training_cases_are_refused(tmp_path):
    checkpoint = write_run(tmp_path, FOLD_1)
    other = RecordedCases([*IDS, "new"], "other sizes")
    split, run, trained, notes = held_out_cases(other, checkpoint, {})
    assert (split.test, run["fold"], trained) == (HELD_OUT, 1, "unknown")
    assert "1 case left out, not in the training run: 'new'" in notes[0]
    assert "cannot tell whether" in notes[1] and "recorded no contents" in notes[1]
    with pytest.raises(UserError, match="was trained on 2 of 3 cases"):
        held_out_cases(other, checkpoint, {"fold": 0})


@pytest.mark.parametrize(
    "cases",
    [
        {name: recorded(name, compression="zstd") for name in IDS},  # compressed again, or converted to NRRD
        {**ORIGINAL, TRAINED[0]: recorded(TRAINED[0], labels="corrected")},
        {**ORIGINAL, "added": recorded("added")},
        {name: case for name, case in ORIGINAL.items() if name != TRAINED[0]},
    ],
    ids=["recompressed", "relabelled", "added", "removed"],
)
def test_a_changed_dataset_is_still_scored_on_the_held_out_cases_of_the_run(cases, checkpoint):
    split, run, trained, _ = scored(cases, checkpoint)
    assert (split.test, run["fold"], trained) == (HELD_OUT, 1, "no")
    assert scored(cases, checkpoint, fold=1).split.test == HELD_OUT  # the run's own fold


@pytest.mark.parametrize(
    "change",
    [
        {"compression": "zstd"},
        {"labels": "corrected"},
        {"labels": "corrected", "compression": "zstd"},
        {"image": "denoised"},
        {"image": "denoised", "labels": "corrected"},
    ],
    ids=lambda change: " ".join(change),
)
def test_a_changed_training_case_is_refused(change, checkpoint):
    trained = choose_split(IDS, DataConfig()).test[0]
    assert trained in TRAINED
    cases = {**ORIGINAL, trained: recorded(trained, **change)}
    with pytest.raises(UserError, match=r"was trained on 3 of 3 cases to score .* leave out the flags"):
        scored(cases, checkpoint, fold=0)
    alone = {name: cases[name] for name in (trained, HELD_OUT[0])} | {"z0": recorded("z0")}
    file = Path(checkpoint).parent.parent / "alone.json"
    file.write_text(json.dumps([{"train": ["z0"], "val": [trained]}]))
    with pytest.raises(UserError, match="was trained on 1 of 1 cases"):
        scored(alone, checkpoint, splits=str(file))


def test_training_cases_under_other_ids_are_refused_with_their_old_ids(checkpoint):
    renamed = {f"patient_{name[-2:]}": recorded(name, compression="zstd") for name in IDS}
    with pytest.raises(UserError, match=r"'patient_00' is 'case_00' of the run"):
        scored(renamed, checkpoint)
    only_held_out = {f"patient_{n}": recorded(HELD_OUT[0], image=f"new {n}") for n in range(5)}
    assert scored(only_held_out, checkpoint).trained == "no"


def test_a_copy_of_a_training_case_among_the_held_out_cases_is_refused(tmp_path):
    cases = {**ORIGINAL, HELD_OUT[0]: recorded(HELD_OUT[0], image=f"image of {TRAINED[0]}")}
    checkpoint = write_run(tmp_path, FOLD_1)
    write_run_data(tmp_path / "run" / "data.json", RunData((1,), dict(cases)))
    with pytest.raises(UserError, match=f"'{HELD_OUT[0]}' is '{TRAINED[0]}' of the run"):
        scored(cases, checkpoint)


def test_cases_that_were_trained_on_before_an_accepted_change_are_refused(tmp_path):
    checkpoint = write_run(tmp_path, FOLD_1)
    now = {name: case for name, case in ORIGINAL.items() if name != TRAINED[0]}
    accepted = AcceptedChange(3, "1 removed", {"gone": recorded("gone")})
    write_run_data(tmp_path / "run" / "data.json", RunData((1,), dict(now), (accepted,)))
    back = {f"z{n}": recorded(f"z{n}") for n in range(4)} | {"a": recorded("gone", compression="zstd")}
    with pytest.raises(UserError, match="'a' is 'gone' of the run"):
        for fold in range(5):
            scored(back, checkpoint, fold=fold)


def test_another_dataset_with_the_ids_of_the_run_is_scored_and_the_doubt_is_reported(checkpoint):
    other = {name: recorded(f"other {name}") for name in IDS}
    split, _, trained, notes = scored(other, checkpoint, fold=0)
    assert split == choose_split(IDS, DataConfig()) and trained == "unknown"
    assert "cannot tell whether" in notes[0] and "but other images and labels" in notes[0]
    assert scored(other, checkpoint).split.test == HELD_OUT  # right whether or not the scans are the same


def test_a_held_out_case_whose_label_was_corrected_is_scored_with_a_note(checkpoint):
    cases = {**ORIGINAL, HELD_OUT[0]: recorded(HELD_OUT[0], labels="corrected")}
    split, _, trained, notes = scored(cases, checkpoint)
    assert (split.test, trained) == (HELD_OUT, "no")
    assert notes == (f"1 held-out cases have changed since training: '{HELD_OUT[0]}'",)
