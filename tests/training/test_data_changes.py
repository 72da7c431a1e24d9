"""Changed data of a run: a resumed run stops, a finished one reports it, and the user may accept it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, SplitConfig
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.data.held_out import DatasetCases, held_out_cases
from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.data.run_data import RunData, read_run_data
from sam2_3dmed_jax.data.split_files import read_splits
from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.training import data_changes
from sam2_3dmed_jax.training.data_changes import finished_with_changed_data
from sam2_3dmed_jax.training.dataset import open_training_cases
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.run_folder import claim_folder
from tests.helpers.source_files import run as prepare

CASES = [f"case_{n}" for n in range(5)]
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])


def write_case(root: Path, name: str, seed: int, corrected: bool = False) -> None:
    values = np.random.default_rng(seed).integers(-100, 200, (9, 8, 7)).astype(np.int16)
    labels = np.zeros(values.shape, np.uint8)
    labels[2:6, 2:6, 2:5] = 1
    labels[0, 0, 0] = corrected
    for folder, array in (("imagesTr", values), ("labelsTr", labels)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), root / folder / f"{name}.nii.gz")


def write_dataset(root: Path) -> Path:
    for seed, name in enumerate(CASES):
        write_case(root, name, seed)
    record = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(record))
    return root


def files_of(root: Path, name: str) -> list[Path]:
    return [root / folder / f"{name}.nii.gz" for folder in ("imagesTr", "labelsTr")]


def relabel(root: Path) -> None:
    write_case(root, "case_1", 1, corrected=True)


def change_one_value(root: Path) -> None:
    file, _ = files_of(root, "case_1")
    image = nib.load(file)
    values = np.asarray(image.dataobj).copy()
    values[3, 3, 3] += 1
    nib.save(nib.Nifti1Image(values, image.affine), file)


def move_the_origin(root: Path) -> None:
    for file in files_of(root, "case_1"):
        image = nib.load(file)
        affine = image.affine.copy()
        affine[0, 3] += 1.0
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), file)


def add(root: Path) -> None:
    write_case(root, "case_5", 5)


def remove(root: Path) -> None:
    for file in files_of(root, "case_1"):
        file.unlink()


def rename(root: Path) -> None:
    for file in files_of(root, "case_1"):
        file.rename(file.with_name("renamed.nii.gz"))


def recompress(root: Path) -> None:
    for name in CASES:
        for file in files_of(root, name):
            image = nib.load(file)
            uncompressed = file.with_suffix("")
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), image.affine), uncompressed)
            file.unlink()
    record = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**record, "file_ending": ".nii"}))


def touch(root: Path) -> None:
    for file in root.rglob("*.nii.gz"):
        os.utime(file, ns=(0, 0))


CHANGES: dict[Callable[[Path], None], str] = {
    relabel: "1 changed ('case_1')",
    change_one_value: "1 changed ('case_1')",
    move_the_origin: "1 changed ('case_1')",
    add: "1 added ('case_5')",
    remove: "1 removed ('case_1')",
    rename: "1 added ('renamed'), 1 removed ('case_1')",
}
every_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
same_content = pytest.mark.parametrize("change", [recompress, touch], ids=lambda change: change.__name__)


class Run:
    """The folder of a run after one checkpoint; its train step does not matter here."""

    def __init__(self, root: Path, prepared: bool = False):
        self.raw, self.folder = write_dataset(root / "raw"), root / "run"
        self.data = root / "prepared" if prepared else self.raw
        self.config = ExperimentConfig(
            model=ModelConfig("nano", 64), data=DataConfig(path=str(self.data), slices=2, split=SplitConfig(folds=3))
        )
        self.prepare()
        claim_folder(self.folder, self.config)
        self.resume()
        (self.folder / "checkpoints" / "7").mkdir(parents=True)

    def prepare(self) -> None:
        """Bring the prepared folder, if there is one, up to date with the image files."""
        if self.data != self.raw:
            prepare(self.raw, self.data)

    def finish(self) -> None:
        (self.folder / "final").mkdir()
        (self.folder / "final" / "config.json").write_text("{}")

    def resume(self, accept: bool = False) -> bool:
        """Do what `train` does before the first step; return whether it is finished and has changed."""
        if finished_with_changed_data(self.config, self.folder, accept, None):
            return True
        open_training_cases(self.config, self.folder, None, accept)
        return False

    def contents(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    @property
    def split(self) -> Split:
        return read_splits(self.folder / "split.json")[0]

    @property
    def record(self) -> RunData:
        record = read_run_data(self.folder / "data.json")
        assert record is not None
        return record


@pytest.fixture(params=[False, True], ids=["image files", "prepared folder"])
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    return Run(tmp_path, request.param)


@every_change
def test_a_run_whose_data_changed_stops_with_a_list_and_changes_nothing(started, change):
    change(started.raw)
    started.prepare()
    before = started.contents()
    with pytest.raises(UserError) as error:
        started.resume()
    assert f"its data has changed since the run began: {CHANGES[change]}; " in str(error.value)
    assert "--accept-changed-data" in str(error.value) and started.contents() == before


@same_content
def test_a_run_resumes_after_a_change_of_the_files_that_keeps_their_content(started, change):
    change(started.raw)
    started.prepare()
    split = started.split
    assert started.resume() is False and started.resume() is False
    assert started.split == split and started.record.accepted == ()


def test_a_run_stops_before_its_model_is_set_up(tmp_path, monkeypatch):
    started = Run(tmp_path)
    relabel(started.raw)
    monkeypatch.setattr("sam2_3dmed_jax.training.loop.set_up", lambda config: pytest.fail("the model was set up"))
    with pytest.raises(UserError, match="1 changed"):
        train(started.config, started.folder)


@every_change
def test_a_finished_run_reports_that_its_data_changed_and_stays_as_it_is(started, change, caplog):
    started.finish()
    change(started.raw)
    started.prepare()
    before = started.contents()
    assert train(started.config, started.folder) == started.folder / "final"
    (message,) = [entry.getMessage() for entry in caplog.records]
    assert f"is finished, and its data has changed since: {CHANGES[change]}; " in message
    assert started.contents() == before


@every_change
def test_an_accepted_change_is_recorded_and_keeps_each_case_on_its_side(started, change):
    before, old = started.split, started.record
    change(started.raw)
    started.prepare()
    started.resume(accept=True)
    after = started.split
    (accepted,) = started.record.accepted
    assert (accepted.step, accepted.description) == (7, CHANGES[change])
    as_before = {"renamed": "case_1"}
    for side in ("train", "val", "test"):
        kept = {as_before.get(name, name) for name in getattr(after, side)} - {"case_5"}
        assert kept == set(getattr(before, side)) - ({"case_1"} if change is remove else set())
    trained = {"case_1"} & {*before.train} if change is not add else set()
    assert accepted.before == {name: old.cases[name] for name in trained}
    assert started.resume() is False and len(started.record.accepted) == 1  # the present data is the run's from now on


def test_an_earlier_state_of_a_training_case_stays_refused_after_an_accepted_change(tmp_path):
    started = Run(tmp_path)
    assert "case_1" in started.split.train
    original = tmp_path / "original"
    shutil.copytree(started.raw, original)
    change_one_value(started.raw)
    started.resume(accept=True)
    rename(original)
    file = tmp_path / "splits.json"
    file.write_text(json.dumps([{"train": ["case_0"], "val": ["renamed"]}]))
    cases = DatasetCases(read_dataset(original))
    with pytest.raises(UserError, match="'renamed' is 'case_1' of the run"):
        held_out_cases(cases, str(started.folder / "final"), {"splits": str(file)})


def test_a_killed_run_repairs_the_split_of_an_accepted_change(tmp_path, monkeypatch):
    started = Run(tmp_path)
    add(started.raw)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_changes, "replace_run_split", killed)
    with pytest.raises(KeyboardInterrupt):
        started.resume(accept=True)
    monkeypatch.undo()
    started.resume()
    split = started.split
    assert {*split.train, *split.val, *split.test} == {*CASES, "case_5"} and len(started.record.accepted) == 1


def test_a_run_of_version_0_1_resumes_with_a_warning_and_is_recorded(started, caplog):
    (started.folder / "data.json").unlink()
    started.resume()
    (message,) = [entry.getMessage() for entry in caplog.records]
    assert "recorded no contents of cases: cannot tell whether its data has changed" in message
    assert set(started.record.cases) == set(CASES)


def test_a_run_of_version_0_1_whose_files_have_other_sizes_stops_unless_accepted(started, caplog):
    (started.folder / "data.json").unlink()
    change_one_value(started.raw)
    write_case(started.raw, "case_2", 99, corrected=True)
    started.prepare()
    with pytest.raises(UserError, match="the files have other sizes"):
        started.resume()
    started.resume(accept=True)
    assert [change.description[:16] for change in started.record.accepted] == ["the files have o"]


def test_the_index_of_a_prepared_folder_holds_the_content_whatever_the_format(tmp_path):
    raw = write_dataset(tmp_path / "raw")
    prepare(raw, tmp_path / "one")
    recompress(raw)
    prepare(raw, tmp_path / "other")
    for one, other in zip(read_prepared(tmp_path / "one").cases, read_prepared(tmp_path / "other").cases, strict=True):
        assert one.content and other.content and one.content.equals(other.content)
        assert one.source["image"]["sha256"] != other.source["image"]["sha256"]


@pytest.mark.parametrize("change", [recompress, relabel, add, remove, rename], ids=lambda change: change.__name__)
def test_evaluation_after_a_change_never_scores_a_training_case(tmp_path, change):
    started = Run(tmp_path)
    run, checkpoint = started.split, str(started.folder / "final")
    moved = tmp_path / "moved"
    shutil.move(started.raw, moved)
    change(moved)
    cases = DatasetCases(read_dataset(moved))
    held = held_out_cases(cases, checkpoint, {})
    assert (set(held.split.test), held.trained) == (set(run.test), "no")
    names = sorted("renamed" if name == "case_1" and change is rename else name for name in run.train)
    for name in set(names) & set(cases.ids):
        file = tmp_path / "splits.json"
        file.write_text(json.dumps([{"train": list(run.test), "val": [name]}]))
        with pytest.raises(UserError, match="was trained on 1 of 1 cases"):
            held_out_cases(DatasetCases(read_dataset(moved)), checkpoint, {"splits": str(file)})


def test_a_run_of_version_0_1_may_have_a_split_without_all_cases(tmp_path):
    started = Run(tmp_path)
    (started.folder / "data.json").unlink()
    file = started.folder / "split.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "train": record["train"][:1]}))
    with pytest.raises(UserError, match="has another split"):  # no case is reported as added
        started.resume()
