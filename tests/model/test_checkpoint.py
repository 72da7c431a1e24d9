"""Native checkpoints: they are read without the devices that wrote them, and damage is one message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from sam2_3dmed_jax import load_model, new_model
from sam2_3dmed_jax.config import ModelConfig, SrppConfig, UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.build import random_weights
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, parse_info, read_info, save_weights
from sam2_3dmed_jax.sam2.parameters import split

ROOT = Path(__file__).resolve().parents[2]
ON_THE_SECOND_DEVICE = """
import sys
import jax
from sam2_3dmed_jax import new_model
from sam2_3dmed_jax.model.checkpoint import save_weights
from sam2_3dmed_jax.sam2.parameters import split

model = new_model("nano", 64, seed=3)
weights = {name: jax.device_put(value, jax.devices()[1]) for name, value in split(model)[1].items()}
save_weights(weights, sys.argv[1], model.info)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of weights that were on a device which this process lacks, such as a GPU or a TPU."""
    folder = tmp_path_factory.mktemp("elsewhere") / "checkpoint"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", ON_THE_SECOND_DEVICE, str(folder)], env=environment, check=True, timeout=300)
    return folder


def test_a_checkpoint_is_read_without_the_devices_that_wrote_it(elsewhere: Path):
    assert jax.local_device_count() == 1
    loaded = split(load_model(elsewhere))[1]
    for name, value in split(new_model("nano", 64, seed=3))[1].items():
        np.testing.assert_array_equal(loaded[name], value)


def stored_info(**changed: object) -> dict:
    """The members of `config.json`, with members of the model changed."""
    info = {"preprocessing": {"window": "lung"}, "provenance": {}, "temperature": 1.5}
    return {"format": 1, "model": {"preset": "nano", "image_size": 64, **changed}, **info}


def test_a_description_becomes_typed_settings():
    info = parse_info(json.dumps(stored_info(slice_position={"layers": 3})), "config.json")
    assert info.sam2 == ModelConfig("nano", 64, slice_position=SrppConfig(layers=3))
    assert (info.preprocessing.window, info.temperature) == ("lung", 1.5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"init": ["x"]}, r"model.init is \['x'\], expected a text"),
        ({"compute_dtype": "x"}, "model.compute_dtype is \"x\", expected 'float32' or 'bfloat16'"),
        ({"image_size": "512"}, 'model.image_size is "512", expected a whole number'),
        (
            {"slice_position": {"layers": 2**31}},
            "model.slice_position.layers is 2147483648, expected a number from 1 to 64",
        ),
        ({"slice_position": 5}, "model.slice_position is 5, expected an object"),
        ({"kind": "unet", "unet": 5}, "model.preset is not a known field"),
        ({"kind": ["unet"]}, r"model.kind is \['unet'\], expected 'sam2'"),
        ({"layers": 3}, "model.layers is not a known field"),
    ],
)
def test_an_edited_model_config_is_refused_by_its_field(changed: dict, message: str):
    with pytest.raises(UserError, match=f"^config.json: {message}.*; write the checkpoint again$"):
        parse_info(json.dumps(stored_info(**changed)), "config.json")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patch": [{}]}, r"model.patch\[0\] is {}, expected a whole number"),
        ({"patch": 5}, "model.patch is 5, expected a list"),
        ({"classes": ["1"]}, r"model.classes\[0\] is \"1\", expected a whole number"),
        ({"features": 2**31}, "model.features is 2147483648, expected a number from"),
    ],
)
def test_an_edited_config_of_a_unet_is_refused_by_its_field(changed: dict, message: str):
    model = {"kind": "unet", "patch": [8, 8, 8], "features": 2, "blocks": [1, 1], "classes": [1], **changed}
    earlier = {"kind": "unet", "unet": {name: value for name, value in model.items() if name != "kind"}}
    for record in (model, earlier):  # version 0.1 has the members of a U-Net in their own object
        text = json.dumps({"format": 1, "model": record, "preprocessing": {}, "provenance": {}})
        with pytest.raises(UserError, match=f"^config.json: {message}.*; write the checkpoint again$"):
            parse_info(text, "config.json")


def test_an_unknown_preset_is_refused_with_the_name_of_the_file():
    with pytest.raises(UserError, match=r"^config.json: model.preset: 'x' does not exist; choose one of"):
        parse_info(json.dumps(stored_info(preset="x")), "config.json")


@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b'{"format": "\xe9"}', json.dumps({**stored_info(), "provenance": {"note": "\ud800"}}).encode()],
)
def test_a_description_that_is_not_json_is_refused(tmp_path: Path, text: bytes):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=r"config\.json is not JSON \(.*\); write the checkpoint again"):
        read_info(tmp_path)


def test_a_folder_or_a_pipe_in_place_of_the_description_is_refused(tmp_path: Path):
    (tmp_path / "a" / "config.json").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "config.json")
    for name, kind in (("a", "a folder"), ("b", "a pipe")):
        with pytest.raises(UserError, match=f"is {kind}, expected a file"):
            read_info(tmp_path / name)


def test_damaged_weights_are_reported_in_one_sentence(elsewhere: Path, tmp_path: Path):
    for file in (elsewhere / "weights").rglob("*"):
        if file.is_file():
            copy = tmp_path / "cut" / "weights" / file.relative_to(elsewhere / "weights")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (tmp_path / "cut" / "config.json").write_bytes((elsewhere / "config.json").read_bytes())
    with pytest.raises(UserError, match="its weights cannot be read"):
        load_model(tmp_path / "cut")


def test_a_model_is_loaded_at_another_image_size(elsewhere: Path):
    model = load_model(elsewhere, image_size=96)
    assert model.config.image_size == model.info.model.image_size == 96


def test_a_unet_is_not_loaded_at_an_image_size(tmp_path: Path):
    config = UNetConfig(patch=(8, 8, 8), features=2, blocks=(1, 1), classes=(1,))
    save_weights(random_weights(config, 0), tmp_path / "unet", CheckpointInfo(config))
    with pytest.raises(UserError, match="no image size; leave image_size out"):
        load_model(tmp_path / "unet", image_size=64)


def test_the_message_about_a_checkpoint_of_transformers_names_the_command_that_converts_it(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "sam2_video", "image_size": 1024}')
    with pytest.raises(UserError, match="checkpoint of transformers; convert it with 'sam2-3dmed convert'"):
        load_model(tmp_path)
