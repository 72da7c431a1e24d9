"""Settings that fit a dataset, and the sentences about an experiment that differs much from them."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import (
    ClipConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    PreprocessingConfig,
    SplitConfig,
    SrppConfig,
    UNetConfig,
)
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.prepared import PreparedDataset
from sam2_3dmed_jax.data.proposed_settings import differing_settings, proposed_settings
from sam2_3dmed_jax.training.dataset import open_training_cases
from tests.helpers.prepared_files import write_prepared
from tests.helpers.source_files import some_cases

SPACING = (2.5, 0.8, 0.7)


def dataset_of(folder: Path, low: int, high: int, length: int, modality: str = "CT") -> PreparedDataset:
    """Three cases whose object has values from `low` to `high` on `length` slices; air around it has -1000."""
    cases = {}
    for name in "abc":
        labels = np.zeros((length + 6, 16, 16), np.uint8)
        labels[3 : 3 + length, 4:12, 4:12] = 1
        labels[0, 0, 0] = 1  # an isolated voxel does not lengthen the object
        values = np.full(labels.shape, -1000, np.int16)
        values[labels == 1] = np.linspace(low, high, (labels == 1).sum()).astype(np.int16)
        cases[name] = values, labels
    return write_prepared(folder, cases, {1: "organ"}, SPACING, modality)


def proposals(dataset: PreparedDataset) -> dict[str, str]:
    return {each.field: each.value for each in proposed_settings(CaseReader(dataset, DataConfig(), 0))}


def differences(dataset: PreparedDataset, config: ExperimentConfig) -> list[str]:
    return differing_settings(config, CaseReader(dataset, config.data, 0))


@pytest.mark.parametrize(
    ("low", "high", "window"),
    [
        (0, 90, "liver"),  # -45 to 105 HU
        (-30, 180, "mediastinum"),  # -125 to 225 HU
        (-100, 238, "soft_tissue"),  # -160 to 240 HU
        (-800, 400, "lung_medsam"),  # -910 to 590 HU; `lung` is as wide, -1350 to 150 HU
        (-300, 1200, "bone"),  # -500 to 1300 HU
    ],
)
def test_the_proposed_window_is_the_narrowest_that_shows_the_objects(tmp_path: Path, low: int, high: int, window: str):
    proposed = proposals(dataset_of(tmp_path / "data", low, high, 7))["data.preprocessing.window"]
    assert proposed == window


def test_a_window_around_the_objects_is_proposed_where_no_named_one_shows_them(tmp_path: Path):
    level, width = proposals(dataset_of(tmp_path / "data", 1500, 2500, 7))["data.preprocessing.window"].split(",")
    # Percentiles 1 and 99 are 1510 and 2490; half of their distance is added on both sides. Values are 2.2 HU apart.
    assert float(level) == pytest.approx(2000, abs=3) and float(width) == pytest.approx(1960, abs=9)


@pytest.mark.parametrize(("length", "slices"), [(2, 4), (13, 8), (60, 12)])
def test_a_proposed_clip_leads_from_the_middle_of_an_object_past_its_end(tmp_path: Path, length: int, slices: int):
    assert proposals(dataset_of(tmp_path / "data", 0, 90, length))["data.slices"] == str(slices)


def test_the_proposed_spacing_is_the_median_of_the_cases(tmp_path: Path):
    proposed = proposals(dataset_of(tmp_path / "data", 0, 90, 5))
    assert (proposed["model.slice_position.scale"], proposed["model.spacing"]) == ("2.5", "2.5 0.8 0.7")


def test_the_window_of_mr_is_in_percentiles_that_show_the_objects(tmp_path: Path):
    assert proposals(dataset_of(tmp_path / "data", 100, 900, 10, "MR"))["data.preprocessing.window"] == "0.5%,99.5%"


def test_an_experiment_that_fits_has_no_differences(tmp_path: Path):
    dataset = dataset_of(tmp_path / "data", 0, 90, 13)
    config = ExperimentConfig(data=DataConfig(slices=8))
    assert differences(dataset, config) == []
    assert differences(dataset, ExperimentConfig(data=DataConfig(slices=2, clips=ClipConfig(max_stride=5)))) == []
    assert differences(dataset, ExperimentConfig(UNetConfig(spacing=SPACING), DataConfig(slices=1))) == []


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            ExperimentConfig(data=DataConfig(preprocessing=PreprocessingConfig("lung"))),
            "window lung is 1500 HU wide, which leaves the objects little contrast; --data.preprocessing.window liver",
        ),
        (
            ExperimentConfig(data=DataConfig(slices=3)),
            "data.slices 3 makes clips that end long before the objects do; --data.slices 8 would fit better",
        ),
        (
            ExperimentConfig(data=DataConfig(slices=20)),
            "data.slices 20 makes clips that are mostly without the objects; --data.slices 8 would fit better",
        ),
        (
            ExperimentConfig(ModelConfig(slice_position=SrppConfig(unit="mm", scale=6.0))),
            "slice_position.scale 6 is far from the voxels of this dataset; --model.slice_position.scale 2.5 would fit",
        ),
        (
            ExperimentConfig(UNetConfig(spacing=(2.5, 2.0, 2.0))),
            "model.spacing 2.5 2 2 is far from the voxels of this dataset; --model.spacing 2.5 0.8 0.7 would fit",
        ),
    ],
)
def test_a_setting_that_differs_much_is_named_with_the_reason_and_a_flag(
    tmp_path: Path, config: ExperimentConfig, sentence: str
):
    (found,) = differences(dataset_of(tmp_path / "data", 0, 90, 13), config)
    assert sentence in found and len(found) <= 300


def test_a_window_that_hides_the_objects_is_named_with_the_fraction_that_it_hides(tmp_path: Path):
    dataset = dataset_of(tmp_path / "data", 0, 90, 7)
    (found,) = differences(dataset, ExperimentConfig(data=DataConfig(preprocessing=PreprocessingConfig("95,100"))))
    # The window is 45 to 145 HU, and half of the values are below it.
    assert "window 95,100 makes 50% of the voxels of the objects black or white" in found
    assert "--data.preprocessing.window liver would fit better" in found


def test_training_starts_with_a_note_about_such_a_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    dataset = dataset_of(tmp_path / "data", 0, 90, 13)
    config = ExperimentConfig(
        ModelConfig(preset="nano"), DataConfig(path=dataset.path, slices=3, split=SplitConfig(folds=3))
    )
    with caplog.at_level(logging.WARNING):
        open_training_cases(config, tmp_path / "run")
    assert [record.getMessage()[:20] for record in caplog.records] == ["note: data.slices 3 "]
    caplog.clear()
    open_training_cases(replace(config, data=replace(config.data, slices=8)), tmp_path / "another")
    assert not caplog.records


def test_prepare_ends_with_the_settings_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", str(some_cases(tmp_path / "source", 2)), str(tmp_path / "out"), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    start = printed.index("settings of an experiment that fit this dataset:")
    flags = [line.split()[0] for line in printed[start:].splitlines()[1:]]
    assert flags == [
        *("--data.preprocessing.window", "--data.slices", "--model.slice_position.scale", "--model.spacing")
    ]
