"""PyTorch's `.pt` files, whose code is never run, and checkpoints of the real classes of transformers."""

import os
import pickle
import shlex
from pathlib import Path

import nibabel
import numpy as np
import pytest
from safetensors.numpy import load_file

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.sam2.presets import PRESETS
from tests.parity.live import reference
from weights_conversion.compare import compare_checkpoints
from weights_conversion.convert import convert_checkpoint
from weights_conversion.presets import plain
from weights_conversion.transformers_config import transformers_config

torch = reference("torch")


class Malicious:
    """An object that creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def state(meta_tensors):
    return {name: torch.from_numpy(value.copy()) for name, value in meta_tensors.items()}


@pytest.mark.parametrize("bare", [False, True], ids=["model", "bare"])
def test_a_pt_file_gives_the_same_bits_after_a_round_trip(bare, state, meta_tensors, tmp_path):
    torch.save(state if bare else {"model": state}, tmp_path / "source.pt")
    convert_checkpoint(tmp_path / "source.pt", tmp_path / "native")
    convert_checkpoint(tmp_path / "native", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert set(back) == {"model"}
    assert {name: value.numpy().tobytes() for name, value in back["model"].items()} == {
        name: value.tobytes() for name, value in meta_tensors.items()
    }


def test_a_bfloat16_pt_file_becomes_float32_exactly(state, tmp_path):
    half = {name: value.bfloat16() for name, value in state.items()}
    torch.save(half, tmp_path / "half.pt")
    convert_checkpoint(tmp_path / "half.pt", tmp_path / "out.safetensors", to="meta")
    out = load_file(tmp_path / "out.safetensors")
    assert all(np.array_equal(out[name], value.float().numpy()) for name, value in half.items())


def test_a_medsam2_file_is_a_meta_file_at_512_pixels(state, tmp_path):
    torch.save({"model": state}, tmp_path / "MedSAM2_latest.pt")
    convert_checkpoint(tmp_path / "MedSAM2_latest.pt", tmp_path / "out", image_size=512)
    assert '"image_size": 512' in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("form", ["zip", "plain pickle", "old format"])
def test_code_in_a_pt_file_is_refused_and_not_run(form, state, tmp_path, refused):
    trace, file = tmp_path / "it_ran", tmp_path / "bad.pt"
    content = {"model": {**state, "trap": Malicious(trace)}}
    if form == "plain pickle":
        file.write_bytes(pickle.dumps(content["model"]["trap"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    line = refused(file)
    assert not trace.exists()
    assert "was not run" in line if form == "zip" else "it is not a complete file of PyTorch" in line


def test_unpickling_the_malicious_object_creates_its_file(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "it_ran")))
    assert (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    "content, part",
    [
        ({"model": {}, "epoch": 3}, "objects other than tensors by name (epoch)"),
        ({"weight": [1, 2]}, "objects other than tensors by name (weight)"),
        ([1, 2], "it contains a list"),
    ],
)
def test_content_other_than_tensors_by_name_is_refused(content, part, tmp_path, refused):
    torch.save(content, tmp_path / "other.pt")
    assert part in refused(tmp_path / "other.pt")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_pt_file_is_refused(kept, state, tmp_path, refused):
    torch.save({"model": state}, tmp_path / "cut.pt")
    content = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(kept * len(content))])
    assert "cut.pt: it is not a complete file of PyTorch" in refused(tmp_path / "cut.pt")


def test_a_nan_in_a_pt_file_is_named(state, tmp_path, refused):
    state["no_mem_embed"][..., 5] = float("nan")
    torch.save({"model": state}, tmp_path / "nan.pt")
    assert "no_mem_embed contains NaN" in refused(tmp_path / "nan.pt")


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "nano"])
def test_the_transformers_configuration_builds_the_official_model(preset, official):
    transformers = reference("transformers")
    config = transformers.Sam2VideoConfig.from_dict(transformers_config(plain(preset)))
    with torch.device("meta"):
        model = transformers.Sam2VideoModel(config)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == official["transformers"][preset]


def test_checkpoints_of_transformers_are_converted_in_both_directions(tmp_path):
    transformers = reference("transformers")
    torch.manual_seed(0)
    model = transformers.Sam2VideoModel(transformers.Sam2VideoConfig())
    # Official files contain two equal copies of this matrix; random initialisation gives them different values.
    copy, original = model.prompt_encoder.shared_embedding, model.shared_image_embedding
    copy.positional_embedding.copy_(original.positional_embedding)
    model.save_pretrained(tmp_path / "theirs")
    convert_checkpoint(tmp_path / "theirs", tmp_path / "native.safetensors")
    convert_checkpoint(tmp_path / "native.safetensors", tmp_path / "ours", to="transformers")
    assert compare_checkpoints(tmp_path / "theirs", tmp_path / "ours").equal
    read, report = transformers.Sam2VideoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_readmes_lines_take_an_official_checkpoint_to_a_segmented_ct(tmp_path, realdata, monkeypatch, capsys):
    """Run the lines with random weights under the official names, and on four slices of a CT."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    block = readme.partition("<!-- official weights -->")[2].split("```")[1]
    install, convert_line, predict_line = block.strip().splitlines()[1:]
    assert install == "pip install '.[torch]'"  # CI has installed it

    model = new_model("sam2.1_hiera_tiny", image_size=256, seed=0)
    save_model(model, tmp_path / "random")
    assert main(["convert", str(tmp_path / "random"), str(tmp_path / "sam2.1_hiera_tiny.pt")]) == 0
    ct = nibabel.load(realdata / "abdomen" / "ct.nii.gz")
    nibabel.save(ct.slicer[:, :, 28:32], tmp_path / "CT.nii.gz")
    monkeypatch.chdir(tmp_path)
    for line in (convert_line, predict_line):
        words = shlex.split(line.replace("60,45,30", "60,45,2"))
        assert words[0] == "sam2-3dmed"
        assert main(words[1:]) == 0, capsys.readouterr().err
    segmented = nibabel.load("segmentation.nii.gz")
    assert segmented.shape == ct.shape[:2] + (4,)
    np.testing.assert_array_equal(segmented.affine, ct.slicer[:, :, 28:32].affine)
