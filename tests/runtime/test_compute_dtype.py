"""Dtype of prediction: the rule by devices, and where the dtype is recorded."""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from sam2_3dmed_jax import Scan, VolumePredictor, load_model, new_model, save_model
from sam2_3dmed_jax.commands.command_line import add_compute_dtype
from sam2_3dmed_jax.config import ModelConfig, UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.cost import fixed_cost, summarise_cost
from sam2_3dmed_jax.inference.segmentation_record import model_record
from sam2_3dmed_jax.model.build import random_weights
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, save_weights
from sam2_3dmed_jax.runtime import cpu_bfloat16
from sam2_3dmed_jax.runtime.compute_dtype import resolve_compute_dtype
from tests.helpers.scans import scan_file


def pretend(monkeypatch: pytest.MonkeyPatch, backend: str, capability: str | None) -> None:
    """Let JAX report another backend; arrays stay on the CPU."""
    device = SimpleNamespace() if capability is None else SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that was trained in bfloat16."""
    config = ModelConfig("nano", 64, srpp=False, bd=False, compute_dtype="bfloat16")
    folder = tmp_path_factory.mktemp("dtype") / "checkpoint"
    save_weights(random_weights(config, 0), folder, CheckpointInfo(config))
    return folder


@pytest.mark.parametrize(
    ("backend", "capability", "dtype"),
    [
        ("cpu", None, "float32"),
        ("tpu", None, "bfloat16"),
        ("gpu", None, "bfloat16"),
        ("gpu", "gfx90a", "bfloat16"),
        ("gpu", "9.0", "bfloat16"),
        ("gpu", "12.0", "bfloat16"),
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "7.5", "float32"),
    ],
)
def test_auto_is_bfloat16_on_accelerators_that_multiply_in_it(
    backend: str, capability: str | None, dtype: str, monkeypatch: pytest.MonkeyPatch
):
    pretend(monkeypatch, backend, capability)
    assert resolve_compute_dtype("auto") == dtype
    assert resolve_compute_dtype("float32") == "float32" and resolve_compute_dtype("bfloat16") == "bfloat16"


@pytest.mark.parametrize(("ratio", "dtype"), [(0.2, "bfloat16"), (0.9, "float32")])
def test_a_cpu_is_measured_once_and_the_faster_dtype_is_chosen(ratio, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("SAM2_3DMED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_bfloat16, "measure", lambda: ratio)
    assert resolve_compute_dtype("auto") == dtype
    monkeypatch.setattr(cpu_bfloat16, "measure", lambda: pytest.fail("it was measured again"))
    assert resolve_compute_dtype("auto") == dtype


@pytest.mark.parametrize("changed", [{"cpu": "another"}, {"jaxlib": "0.1"}, {"ratio": "fast"}])
def test_a_measurement_of_another_machine_or_version_does_not_count(changed, tmp_path, monkeypatch):
    monkeypatch.setenv("SAM2_3DMED_CACHE", str(tmp_path))
    cpu_bfloat16.store(0.2)
    file = tmp_path / cpu_bfloat16.FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    monkeypatch.setattr(cpu_bfloat16, "measure", lambda: 0.9)
    assert resolve_compute_dtype("auto") == "float32"


NAME_OF_CPU = """
import sys
sys.addaudithook(lambda event, arguments: event == "subprocess.Popen" and sys.exit(f"starts {arguments[1]}"))
from sam2_3dmed_jax.runtime import cpu_bfloat16
print(cpu_bfloat16._cpu_name())
"""


def test_the_name_of_the_cpu_is_found_without_another_program():
    done = subprocess.run([sys.executable, "-c", NAME_OF_CPU], capture_output=True, text=True)
    assert done.returncode == 0 and platform.machine() in done.stdout, done.stderr


def test_the_measurement_is_a_ratio_of_times():
    assert 0.01 < cpu_bfloat16.measure() < 100


def test_a_dtype_that_does_not_exist_is_refused_with_the_choices(checkpoint: Path):
    with pytest.raises(UserError, match="'float16' does not exist; choose from auto, float32, bfloat16"):
        load_model(checkpoint, compute_dtype="float16")  # type: ignore[arg-type]


def test_the_devices_and_not_the_training_decide_the_dtype_of_a_loaded_model(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    assert load_model(checkpoint).config.compute_dtype == "float32"
    pretend(monkeypatch, "gpu", "9.0")
    assert load_model(checkpoint).config.compute_dtype == "bfloat16"
    assert load_model(checkpoint, compute_dtype="float32").config.compute_dtype == "float32"


def test_a_u_net_follows_the_same_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = UNetConfig(patch=(8, 16, 16), features=4, blocks=(1, 1), classes=(1,))
    save_weights(random_weights(config, 0), tmp_path / "unet", CheckpointInfo(config))
    assert load_model(tmp_path / "unet").info.model.compute_dtype == "float32"
    pretend(monkeypatch, "tpu", None)
    assert load_model(tmp_path / "unet").info.model.compute_dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_record_and_the_cost_have_the_dtype_that_the_model_computes_in(dtype, checkpoint: Path):
    predictor = VolumePredictor(load_model(checkpoint, compute_dtype=dtype))
    assert model_record(predictor, None)["dtype"] == dtype
    cost = fixed_cost(predictor)
    assert cost["compute_dtype"] == dtype
    pooled = summarise_cost([{"case": "a", "seed": ""}], [cost, cost])
    assert pooled is not None and pooled["compute_dtype"] == dtype


def test_results_of_several_dtypes_have_none_in_common(checkpoint: Path):
    costs = [fixed_cost(VolumePredictor(load_model(checkpoint, compute_dtype=d))) for d in ("float32", "bfloat16")]
    pooled = summarise_cost([{"case": "a", "seed": ""}], costs)
    assert pooled is not None and pooled["compute_dtype"] is None and pooled["parameters"] is not None


def test_a_scan_loads_its_model_in_the_dtype_that_is_asked_for(checkpoint: Path, tmp_path: Path):
    scan = Scan(scan_file(tmp_path / "scan.nii.gz"), checkpoint, compute_dtype="bfloat16")
    assert scan._model.load().model.config.compute_dtype == "bfloat16"


def test_the_flag_has_the_name_of_the_field_too():
    parser = argparse.ArgumentParser()
    add_compute_dtype(parser)
    assert parser.parse_args([]).compute_dtype == "auto"
    for flag in ("--compute-dtype", "--model.compute_dtype"):
        assert parser.parse_args([flag, "float32"]).compute_dtype == "float32"


def test_a_new_model_computes_in_float32_until_it_is_saved_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = new_model("nano", 64)
    save_model(model, tmp_path / "checkpoint")
    pretend(monkeypatch, "gpu", "8.0")
    assert model.config.compute_dtype == "float32"
    assert load_model(tmp_path / "checkpoint").config.compute_dtype == "bfloat16"
