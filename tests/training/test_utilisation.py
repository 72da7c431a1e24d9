"""Model FLOPs utilisation: the FLOPs of a step and the peak of a chip."""

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
def plain_flops() -> int:
    return step_flops(CONFIG)


def test_rematerialisation_and_accumulation_do_not_add_flops(plain_flops):
    again = replace(CONFIG.training, remat_trunk="all", remat_slices="all", accumulation=2)
    assert step_flops(CONFIG.replace(training=again)) == plain_flops


def test_a_frozen_encoder_has_no_backward_pass(plain_flops):
    frozen = replace(CONFIG.training, frozen=("^image_encoder",))
    assert step_flops(CONFIG.replace(training=frozen)) < 0.8 * plain_flops


@pytest.mark.parametrize(("dtype", "peak"), [("float32", 197e12 / 6), ("bfloat16", 197e12)])
def test_utilisation_is_a_share_of_the_peak_in_the_compute_dtype(dtype, peak, monkeypatch):
    monkeypatch.setattr("sam2_3dmed_jax.training.utilisation.step_flops", lambda config: 8e12)
    config = CONFIG.replace(model=replace(CONFIG.model, compute_dtype=dtype))
    used = utilisation(config, [SimpleNamespace(device_kind="TPU v5 lite")] * 8)
    assert used(2.0) == pytest.approx(0.5e12 / peak)


def test_each_chip_has_its_own_name_and_a_cpu_has_no_utilisation():
    assert [chip_of(chip.kind) for chip in CHIPS.values()] == list(CHIPS.values())
    assert utilisation(CONFIG, jax.devices("cpu")) is None


def test_a_run_on_a_known_chip_logs_its_utilisation(small, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "utilisation", lambda config, devices: lambda seconds: 0.5)
    small.train(tmp_path / "run")
    assert {row["mfu"] for row in rows(tmp_path / "run")} == {"0.5"}
