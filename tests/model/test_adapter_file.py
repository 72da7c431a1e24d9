"""The file of adapters alone: what it holds, its merge onto the weights it belongs to, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.adapter_file import ADAPTERS_KEY, Adapters, check_base, read_adapters, write_adapters
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo
from sam2_3dmed_jax.sam2.parameters import digest

BASE = {
    "layer.kernel": np.eye(2, dtype=np.float32),
    "layer.bias": np.zeros(2, np.float32),
    "head.bias": np.ones(1, np.float32),
}
TENSORS = {
    "layer.lora_a": np.array([[1.0], [2.0]], np.float32),
    "layer.lora_b": np.array([[3.0, 4.0]], np.float32),
    "head.bias": np.array([7.0], np.float32),
}
INFO = CheckpointInfo(ModelConfig("nano", 64), provenance={"trained_by": "a test"}, temperature=1.5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "adapters" / "final.safetensors"
    write_adapters(path, Adapters(digest(BASE), "base", 0.5, INFO, TENSORS))
    return path


def test_a_file_of_adapters_keeps_tensors_settings_and_the_hash_of_its_weights(file):
    stored = read_adapters(file)
    assert (stored.base, stored.base_name, stored.scale) == (digest(BASE), "base", 0.5)
    assert (stored.info.model, stored.info.temperature) == (INFO.model, 1.5)
    assert stored.info.provenance == INFO.provenance
    assert {name: value.tolist() for name, value in stored.tensors.items()} == {
        name: value.tolist() for name, value in TENSORS.items()
    }


def test_the_merged_parameters_are_adapted_replaced_or_the_loaded_ones(file):
    read = read_adapters(file).merged(BASE.__getitem__)
    assert read("layer.kernel").tolist() == [[2.5, 2.0], [3.0, 5.0]]  # eye + 0.5 [[3, 4], [6, 8]]
    assert read("layer.bias").tolist() == [0.0, 0.0] and read("head.bias").tolist() == [7.0]


def test_weights_with_another_hash_are_refused_by_both_hashes(file):
    stored = read_adapters(file)
    check_base(file, stored, "weights.pt", BASE, BASE.__getitem__)
    other = {**BASE, "layer.bias": np.array([0.0, 1e-6], np.float32)}
    with pytest.raises(UserError, match=f"belong to the weights base with SHA-256 {digest(BASE)[:12]}.*weights.pt has"):
        check_base(file, stored, "weights.pt", other, other.__getitem__)


def test_others_can_read_the_file_as_they_can_other_files_of_a_run(file, tmp_path):
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layer.lora_b": np.array([[np.nan, 1.0]], np.float32)}, r"layer\.lora_b is incomplete or not finite"),
        ({"layer.lora_a": None}, r"layer\.kernel is incomplete or not finite"),
    ],
)
def test_damaged_adapters_are_refused(file, changes, sentence):
    tensors = {name: value for name, value in {**TENSORS, **changes}.items() if value is not None}
    write_adapters(file, Adapters(digest(BASE), "base", 0.5, INFO, tensors))
    with pytest.raises(UserError, match=sentence):
        read_adapters(file)


def test_another_safetensors_file_and_an_unreadable_record_are_refused(file, tmp_path):
    save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="it has no adapters"):
        read_adapters(tmp_path / "other.safetensors")
    config = {"sam2_3dmed_config": json.dumps({"format": 99})}
    save_file(TENSORS, tmp_path / "newer.safetensors", {ADAPTERS_KEY: "{}", **config})
    with pytest.raises(UserError, match="the format is 99"):
        read_adapters(tmp_path / "newer.safetensors")
