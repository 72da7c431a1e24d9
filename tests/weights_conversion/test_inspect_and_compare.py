"""`inspect` and `compare` with both commands and all layouts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sam2_3dmed_jax.commands.main import main as product_command
from sam2_3dmed_jax.model.checkpoint import CONFIG_KEY
from weights_conversion.__main__ import main
from weights_conversion.convert import convert_checkpoint
from weights_conversion.native import PROVENANCE_KEY

ROOT = Path(__file__).resolve().parents[2]
BLOCK = "image_encoder.trunk.blocks.0.mlp.layers.0"


@pytest.fixture(params=[main, product_command], ids=["python -m weights_conversion", "sam2-3dmed"])
def command(request, capsys):
    """Return a function that runs either command and returns exit code, standard output and standard error."""

    def run(*words):
        code = request.param([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def test_both_commands_convert(command, meta_file, tmp_path):
    code, out, error = command("convert", meta_file, tmp_path / "native.safetensors", "--image-size", "256")
    assert (code, error) == (0, "")
    assert out.startswith("nano: 309 tensors from meta to native layout in ")


def test_inspect_shows_preset_parts_and_provenance(command, meta_file, meta_tensors, tmp_path):
    convert_checkpoint(meta_file, tmp_path / "native", image_size=256)
    code, out, _ = command("inspect", tmp_path / "native", "--json")
    description = json.loads(out)
    assert code == 0
    expected = {"preset": "nano", "layout": "native", "exact": True, "image_size": 256}
    assert {name: description[name] for name in expected} == expected
    assert description["parameters"] == sum(value.size for value in meta_tensors.values())
    assert description["tensors"] == sum(part["tensors"] for part in description["parts"].values()) == len(meta_tensors)
    assert description["provenance"]["source"] == "source.safetensors"
    text = command("inspect", tmp_path / "native")[1]
    assert "nano" in text and "mask decoder" in text and "source.safetensors" in text


def test_inspect_shows_srpp_and_bd(command, with_3dmed):
    text = command("inspect", with_3dmed)[1]
    assert "nano with SRPP and BD" in text and "boundary (BD)" in text


def test_inspect_lists_missing_tensors(command, meta_tensors, tmp_path):
    rest = {name: value for name, value in meta_tensors.items() if name != "no_obj_ptr"}
    save_file(rest, tmp_path / "partial.safetensors")
    text = command("inspect", tmp_path / "partial.safetensors")[1]
    assert "nano (fits best, not exactly)" in text and "missing: no_obj_ptr" in text


def test_the_same_model_in_two_layouts_is_equal(command, meta_file, tmp_path):
    convert_checkpoint(meta_file, tmp_path / "native")
    convert_checkpoint(meta_file, tmp_path / "transformers", to="transformers")
    for other in ("native", "transformers"):
        assert command("compare", meta_file, tmp_path / other) == (0, "equal: 309 tensors\n", "")


def test_a_difference_is_printed_with_its_size_and_exits_with_2(command, meta_file, meta_tensors, tmp_path):
    changed = {**meta_tensors, f"{BLOCK}.weight": meta_tensors[f"{BLOCK}.weight"] + np.float32(0.5)}
    save_file(changed, tmp_path / "changed.safetensors")
    code, out, error = command("compare", meta_file, tmp_path / "changed.safetensors")
    assert code == 2
    assert out == f"{BLOCK}.kernel: differs by up to 0.5\n"
    assert error.startswith("error: ") and error.count("\n") == 1 and "1 of 309 tensors in value" in error
    assert command("compare", meta_file, tmp_path / "changed.safetensors", "--atol", "0.6")[0] == 0


def test_tensors_of_only_one_checkpoint_are_listed(command, meta_file, with_3dmed):
    code, out, _ = command("compare", meta_file, with_3dmed)
    assert code == 2 and "only in B: boundary.to_mask.kernel\n" in out


def test_a_nan_on_one_side_is_a_difference(command, meta_file, meta_tensors, tmp_path):
    broken = {**meta_tensors, "no_obj_ptr": np.full_like(meta_tensors["no_obj_ptr"], np.nan)}
    save_file(broken, tmp_path / "broken.safetensors")
    code, out, _ = command("compare", meta_file, tmp_path / "broken.safetensors", "--atol", "1e9")
    assert code == 2 and out.startswith("no_obj_ptr: differs")
    assert command("compare", tmp_path / "broken.safetensors", tmp_path / "broken.safetensors")[0] == 0


def test_mistakes_are_one_line_and_exit_with_2(command, meta_file, tmp_path):
    for words in (
        ("inspect", tmp_path / "nothing"),
        ("compare", meta_file, tmp_path / "nothing"),
        ("compare", meta_file, meta_file, "--atol", "-1"),
    ):
        code, _, error = command(*words)
        assert code == 2 and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"model": {"preset": "nano", "init": ["x"]}}, "model.init is ['x'], expected a text"),
        ({"model": {"preset": "nano", "image_size": "512"}}, 'model.image_size is "512", expected a whole number'),
        ({"model": 5}, "model is 5, expected an object"),
        ("[" * 100_000, "is not JSON"),
        ('"\\ud800"', "is not JSON"),
    ],
)
def test_an_edited_config_in_a_native_safetensors_is_refused_by_its_field(command, tmp_path, config, part):
    text = (
        config
        if isinstance(config, str)
        else json.dumps({"format": 1, "preprocessing": {}, "provenance": {}, **config})
    )
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "x.safetensors", {CONFIG_KEY: text})
    code, _, error = command("inspect", tmp_path / "x.safetensors")
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert "x.safetensors" in error and part in error


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": "\\ud800"}', "[1]", "{"])
def test_a_provenance_that_cannot_be_read_is_one_line(command, meta_tensors, tmp_path, text):
    save_file(meta_tensors, tmp_path / "x.safetensors", {PROVENANCE_KEY: text})
    code, out, error = command("inspect", tmp_path / "x.safetensors")
    assert (code, error) == (0, "") and "nano" in out


@pytest.mark.parametrize("text", ["[" * 100_000, '{"image_size": "\\ud800"}', b"\xff{}"])
def test_a_configuration_of_transformers_that_is_not_json_is_one_line(command, transformers_folder, text):
    (transformers_folder / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    code, _, error = command("inspect", transformers_folder)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert "config.json is not JSON" in error


@pytest.mark.parametrize(
    ("part", "is_needed"),
    [("_METADATA", True), ("manifest.ocdbt", True), ("_CHECKPOINT_METADATA", False), ("commit_success.txt", False)],
)
def test_damage_of_a_native_checkpoint_is_one_line_or_does_not_matter(
    with_3dmed, tmp_path, capfd, caplog, part, is_needed
):
    damaged = tmp_path / "damaged"
    shutil.copytree(with_3dmed, damaged)
    for file in (damaged / "weights").rglob(part):
        file.write_text("[[[[")
    for words in (["inspect", str(damaged)], ["compare", str(damaged), str(with_3dmed)]):
        assert main(words) == (2 if is_needed else 0)
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == is_needed
        assert all(line.startswith(f"error: {damaged}: its weights cannot be read (") for line in lines)
    assert not caplog.records


def test_safetensors_are_converted_without_importing_torch(meta_file, tmp_path):
    program = (
        "import sys; from weights_conversion.__main__ import main; "
        f"assert main(['convert', {str(meta_file)!r}, {str(tmp_path / 'out.safetensors')!r}]) == 0; "
        "print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "False"
