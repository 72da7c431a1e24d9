"""MR and PET from phantom to report by the commands, with one window; and what is refused between modalities."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import load_model, new_model, save_model
from sam2_3dmed_jax.commands.experiment_files import read_experiment
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import DataConfig, ModelConfig, PreprocessingConfig
from sam2_3dmed_jax.data.case_reader import CaseReader, StoredSlices
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.inference.device_slices import DeviceSlices
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, read_info
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.setup import abstract_batch, set_up
from sam2_3dmed_jax.volume import intensity
from sam2_3dmed_jax.volume.intensity import PERCENTILES
from tests.helpers.dicom_files import write_series
from tests.helpers.quick import ONLY_DECODER, QUICK

pytestmark = pytest.mark.slow

EXPERIMENT = f"""
from sam2_3dmed_jax.config import *
def get_config():
    return ExperimentConfig(
        model=ModelConfig("nano", 64, srpp=False, bd=False),
        data=DataConfig(path="prepared", slices=2, split=SplitConfig(folds=2)),
        training=TrainingConfig(steps=2, batch_size=1, warmup_steps=1, log_every=1, images_every=0,
            frozen={ONLY_DECODER}),
    )
"""
SWEEP = """
from sam2_3dmed_jax.config import SweepSpec as S
def get_spec():
    return S(checkpoints=("run/final",), data="data", prompt=("box",), misplacement_mm=(0.0,), metrics="overlap")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MR phantoms, prepared, and a run on them; the other commands start from here."""
    root = tmp_path_factory.mktemp("mr")
    write_phantom_dataset(root / "data", 2, 0, "spleen", matrix=48, modality="MR")
    (root / "experiment.py").write_text(EXPERIMENT)
    (root / "sweep.py").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["prepare", "data", "prepared", "--workers", "1"]) == 0
        config = read_experiment("experiment.py")
        setup = set_up(config)
        step = setup.step.lower(
            setup.state, setup.frozen, abstract_batch(setup.config, setup.sharding, StoredSlices(48, 48, resized=True))
        ).compile(QUICK)
        train(config, "run", setup=replace(setup, step=step))
    return root


@pytest.fixture(autouse=True)
def inside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "place" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("place"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, np.ndarray]]:
    """Collect the slices that are encoded, with the names of their scans."""
    collected: list[tuple[str, np.ndarray]] = []
    original = DeviceSlices.block

    def collect(slices: DeviceSlices, at: slice) -> jax.Array:
        values = original(slices, at)
        name = Path(slices._slices.volume.grid.source).name.split(".")[0]
        collected.append((name, np.asarray(values)[: at.stop - at.start]))
        return values

    monkeypatch.setattr(DeviceSlices, "block", collect)
    return collected


def trained_on(case_id: str, size: int = 64) -> np.ndarray:
    """Return the slices of a case as training reads them."""
    dataset = read_prepared("prepared")
    (case,) = (case for case in dataset.cases if case.id == case_id)
    return intensity.normalise(CaseReader(dataset, DataConfig(), size).values(case, range(case.shape[0])))


def saturated(normalised: np.ndarray) -> float:
    """Return the fraction of pixels at either end of the window."""
    ends = intensity.normalise(np.array([0.0, 1.0], np.float32))
    return float(np.isin(normalised, ends).mean())


def check(encoded: list[tuple[str, np.ndarray]]) -> None:
    """Check that the encoded slices of every scan are those that training reads."""
    assert encoded
    for case_id in {case_id for case_id, _ in encoded}:
        expected = trained_on(case_id)
        seen = np.concatenate([values for name, values in encoded if name == case_id])
        # float32 on the device and on the host, up to the order of sums; normalised values are of order 2
        np.testing.assert_allclose(seen, np.resize(expected, seen.shape), rtol=0, atol=4e-6)
        # 1 % by the percentiles, and the background of value 0
        assert saturated(seen) < 0.2 and 0.2 < np.percentile(seen[..., 1] * 0.224 + 0.456, 60) < 0.8


def held_out() -> tuple[str, str]:
    """Return the scan of the held-out case, and a click into its spleen."""
    (name,) = json.loads(Path("run/split.json").read_text())["test"]
    labels = np.asarray(nib.load(f"data/labelsTr/{name}.nii.gz").dataobj)
    z = int((labels > 0).sum((0, 1)).argmax())
    x, y = np.argwhere(labels[..., z])[len(np.argwhere(labels[..., z])) // 2]
    return f"data/imagesTr/{name}.nii.gz", f"{x},{y},{z}"


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_checkpoint_of_mr_stores_its_modality_and_window(place: Path):
    assert read_info("run/final").preprocessing == PreprocessingConfig(PERCENTILES, "MR")


def test_evaluate_shows_the_model_the_slices_that_training_shows(place: Path, encoded: list):
    assert main(["evaluate", "run/final", "data", "--out", "scores"]) == 0
    check(encoded)
    with Path("scores/cases.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1
    assert "data:image/png" in Path("scores/report.html").read_text()


def test_predict_shows_the_model_the_slices_that_training_shows_and_needs_no_flag(
    place: Path, encoded: list, capsys: pytest.CaptureFixture[str]
):
    image, click = held_out()
    assert main(["predict", "run/final", image, "--point", click, "--out", "seg.nii.gz", "--overlay", "seg.png"]) == 0
    check(encoded)
    assert "is not known, read as CT" not in capsys.readouterr().out


def test_predict_on_a_table_shows_the_model_the_slices_that_training_shows(place: Path, encoded: list):
    image, click = held_out()
    Path("cases.csv").write_text(f'image,point\n{image},"{click}"\n')
    assert main(["predict", "run/final", "--cases", "cases.csv", "--out", "table"]) == 0
    check(encoded)


def test_sweep_shows_the_model_the_slices_that_training_shows(place: Path, encoded: list):
    assert main(["sweep", "sweep.py", "--out", "swept"]) == 0
    check(encoded)


def test_a_test_set_shows_the_model_the_slices_that_training_shows(place: Path, encoded: list):
    image, _ = held_out()
    shutil.copytree("data", "task", dirs_exist_ok=True)
    shutil.copy(image, "task/imagesTs")
    record = json.loads(Path("data/dataset.json").read_text())
    Path("task/dataset.json").write_text(json.dumps({**record, "test": [f"./imagesTs/{Path(image).name}"]}))
    words = ["--msd-test", "task", "--prompts-from", "maps", "--out", "submission"]
    Path("maps").mkdir(exist_ok=True)
    shutil.copy(image.replace("imagesTr", "labelsTr"), "maps")
    assert main(["predict", "run/final", *words]) == 0
    check(encoded)


def test_a_checkpoint_of_version_0_1_follows_the_modality_of_the_dataset(place: Path, encoded: list):
    shutil.copytree("run", "earlier", dirs_exist_ok=True)
    file = Path("earlier/final/config.json")
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "preprocessing": {"window": "soft_tissue"}}))  # as version 0.1 stored it
    assert main(["evaluate", "earlier/final", "data", "--out", "earlier_scores"]) == 0
    check(encoded)


def test_a_checkpoint_of_version_0_1_takes_the_modality_of_a_nifti_from_the_flag_or_says_that_it_is_assumed(
    place: Path, encoded: list, capsys: pytest.CaptureFixture[str]
):
    save_model(load_model("run/final"), "unknown", CheckpointInfo(read_info("run/final").model))
    image, click = held_out()
    words = ["predict", "unknown", image, "--point", click, "--out", "unknown.nii.gz"]
    assert main([*words, "--modality", "mr"]) == 0
    check(encoded)
    assert "is not known, read as CT" not in capsys.readouterr().out
    assert main(words) == 0
    assert "is not known, read as CT" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "run/final", "ct", "--point", "2,2,2", "--out", "x.nii.gz"],
        ["predict", "run/final", "ct/01.dcm", "--point", "2,2,2", "--out", "x.nii.gz"],
        ["predict", "run/final", "ct", "--point", "2,2,2", "--out", "x.dcm"],
    ],
)
def test_a_ct_series_is_refused_by_a_checkpoint_of_mr(place: Path, capsys: pytest.CaptureFixture[str], words):
    if not Path("ct").exists():
        write_series("ct")
    line = mistake(capsys, *words)
    assert re.search(rf"{words[2]} is CT, but run/final was trained on MR with the window {PERCENTILES}", line)
    assert "--modality mr" in line and not Path(words[-1]).exists()


def test_a_checkpoint_of_mr_reads_a_ct_series_when_the_flag_says_so(place: Path):
    if not Path("ct").exists():
        write_series("ct")
    words = ["predict", "run/final", "ct", "--point", "2,2,2", "--out", "anyway.nii.gz"]
    assert main([*words, "--modality", "mr"]) == 0


def checkpoint_of(folder: Path, preprocessing: PreprocessingConfig) -> str:
    config = ModelConfig("nano", 64, srpp=False, bd=False)
    save_model(new_model("nano", 64), folder, CheckpointInfo(config, preprocessing))
    return str(folder)


@pytest.mark.parametrize("modality", ["MR", "PT"])
def test_a_checkpoint_of_ct_refuses_a_series_of_another_modality_before_it_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, modality: str
):
    ct = checkpoint_of(tmp_path / "model", PreprocessingConfig("lung", "CT"))
    shutil.rmtree(tmp_path / "model" / "weights")
    series = write_series(tmp_path / "series", Modality=modality)
    words = ["predict", ct, str(series), "--point", "2,2,2", "--out", str(tmp_path / "x.nii.gz")]
    line = mistake(capsys, *words)
    assert f"series is {modality}, but {ct} was trained on CT with the window lung" in line
    assert "--modality ct" in line and not (tmp_path / "x.nii.gz").exists()


def test_a_checkpoint_of_ct_refuses_a_dataset_and_a_flag_of_another_modality(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree("run", tmp_path / "run")
    ct, file = str(tmp_path / "run" / "final"), tmp_path / "run" / "final" / "config.json"
    of_ct = {"preprocessing": {"window": "lung", "modality": "CT"}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **of_ct}))
    image, click = held_out()
    expected = f"is MR, but {ct} was trained on CT"
    assert expected in mistake(capsys, "evaluate", ct, "data", "--out", str(tmp_path / "scores"))
    assert expected in mistake(capsys, "sweep", "sweep.py", "--checkpoints", ct, "--out", str(tmp_path / "swept"))
    words = ["predict", ct, image, "--point", click, "--out", str(tmp_path / "x.nii.gz"), "--modality", "mr"]
    assert f"--modality {expected}" in mistake(capsys, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert main(["evaluate", ct, "data", "--out", str(tmp_path / "scores"), "--modality", "ct"]) == 0


def test_pet_is_prepared_trained_on_and_segmented_with_percentiles_of_each_scan(place: Path, tmp_path: Path):
    """Standardised uptake values have a unit, but the default window is by percentiles, as for MR."""
    data = tmp_path / "data"
    shutil.copytree("data", data)
    for file in (data / "imagesTr").iterdir():
        scan = nib.load(file)
        nib.save(nib.Nifti1Image((np.asarray(scan.dataobj) / 500).astype(np.float32), scan.affine), file)
    record = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**record, "modality": {"0": "PET"}}))
    assert main(["prepare", str(data), str(tmp_path / "prepared"), "--workers", "1"]) == 0
    dataset = read_prepared(tmp_path / "prepared")
    assert CaseReader(dataset, DataConfig(), 64).preprocessing == PreprocessingConfig(PERCENTILES, "PT")
    case = dataset.cases[0]
    values = CaseReader(dataset, DataConfig(), 64).values(case, range(case.shape[0]))
    assert np.isin(values, (0, 1)).mean() < 0.2
    pet = checkpoint_of(tmp_path / "model", PreprocessingConfig(PERCENTILES, "PT"))
    series = write_series(tmp_path / "series", Modality="PT", RescaleIntercept=0)
    words = ["predict", pet, str(series), "--point", "2,2,2", "--out", str(tmp_path / "seg.nii.gz")]
    assert main(words) == 0
    assert read_dataset(data).modality == "PET"
