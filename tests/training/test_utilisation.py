"""Model FLOPs utilisation counts the model's arithmetic, not what a run repeats, and knows the chip by JAX's name."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig
from sam2_3dmed_jax.runtime.chips import CHIPS, chip_of
from sam2_3dmed_jax.training import loop
from sam2_3dmed_jax.training.utilisation import step_flops, utilisation
from tests.helpers.run_files import rows

CONFIG = ExperimentConfig(
    model=ModelConfig("nano", 64, srpp=False, bd=False),
    data=DataConfig(slices=2),
    training=TrainingConfig(batch_size=4),
)


@pytest.fixture(scope="module")
def once() -> int:
    return step_flops(CONFIG)


def test_rematerialisation_and_parts_are_not_counted(once):
    again = replace(CONFIG.training, remat_trunk="all", remat_slices="all", accumulation=2)
    assert step_flops(CONFIG.replace(training=again)) == once


def test_a_frozen_encoder_takes_no_backward_pass(once):
    frozen = replace(CONFIG.training, frozen=("^image_encoder",))
    assert step_flops(CONFIG.replace(training=frozen)) < 0.8 * once


@pytest.mark.parametrize(("dtype", "peak"), [("float32", 197e12 / 6), ("bfloat16", 197e12)])
def test_the_share_is_of_the_chips_peak_in_the_compute_dtype(dtype, peak, monkeypatch):
    monkeypatch.setattr("sam2_3dmed_jax.training.utilisation.step_flops", lambda config: 8e12)
    config = CONFIG.replace(model=replace(CONFIG.model, compute_dtype=dtype))
    used = utilisation(config, [SimpleNamespace(device_kind="TPU v5 lite")] * 8)
    assert used(2.0) == pytest.approx(0.5e12 / peak)


def test_each_chip_is_known_by_a_name_of_its_own_and_a_cpu_is_not():
    assert [chip_of(chip.kind) for chip in CHIPS.values()] == list(CHIPS.values())
    assert utilisation(CONFIG, jax.devices("cpu")) is None


def test_a_run_on_known_chips_logs_it(small, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "utilisation", lambda config, devices: lambda seconds: 0.5)
    small.train(tmp_path / "run")
    assert {row["mfu"] for row in rows(tmp_path / "run")} == {"0.5"}
