"""PyTorch's `.pt` files, whose code is never run, and checkpoints of the real classes of transformers."""

import io
import json
import os
import pickle
import resource
import shlex
import tarfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from safetensors.numpy import load_file

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.checkpoint import read_info
from sam2_3dmed_jax.sam2.presets import PRESETS
from tests.parity.live import reference
from tests.weights_conversion.test_convert import same_bits
from weights_conversion.compare import compare_checkpoints
from weights_conversion.convert import convert_checkpoint
from weights_conversion.presets import plain
from weights_conversion.torch_files import OLD_FORMAT, write_torch
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
    assert ("it is not a complete file of PyTorch" if form == "plain pickle" else "was not run") in line


def test_a_tar_file_that_begins_like_an_old_pytorch_file_is_refused(tmp_path, refused):
    """PyTorch before 2.6 runs the code in a tar file in spite of `weights_only` (CVE-2025-32434)."""
    content = pickle.dumps(Malicious(tmp_path / "it_ran"))
    name = OLD_FORMAT.decode("latin-1")
    with tarfile.open(tmp_path / "bad.pt", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
        for member in (name, "storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    assert (tmp_path / "bad.pt").read_bytes().startswith(OLD_FORMAT)
    assert "it is not a complete file of PyTorch" in refused(tmp_path / "bad.pt")
    assert not (tmp_path / "it_ran").exists()


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


def test_a_name_of_a_tensor_that_cannot_be_printed_is_escaped(tmp_path, refused, capsys):
    torch.save({"\ud800\x1b": torch.zeros(1)}, tmp_path / "odd.pt")
    assert "\\ud800\\x1b" in refused(tmp_path / "odd.pt")
    assert main(["inspect", str(tmp_path / "odd.pt")]) == 0
    assert "\\ud800\\x1b" in capsys.readouterr().out


def test_a_pickle_that_takes_memory_is_refused_by_the_command(tmp_path, refused):
    for compression, pickled, part in (
        (zipfile.ZIP_STORED, b"\x80\x02cbuiltins\nbytearray\nM\xff\xff\x85R.", "builtins bytearray"),
        (zipfile.ZIP_DEFLATED, b"\x80\x02" + b"(" * 2**16, "compressed or overlapping parts"),
    ):
        with zipfile.ZipFile(tmp_path / "m.pt", "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3\n")
        assert part in refused(tmp_path / "m.pt")


def same_as(meta_tensors, source, tmp_path):
    """Return whether a source converts to these tensors of Meta's layout, bit for bit."""
    convert_checkpoint(source, tmp_path / "out.safetensors", to="meta")
    return same_bits(load_file(tmp_path / "out.safetensors"), meta_tensors)


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def optimizer_state(state):
    """The state of AdamW after a step: averages by number of the parameter."""
    return {"state": {at: {"step": torch.tensor(1.0), "exp_avg": x} for at, x in enumerate(state.values())}}


WRAPPED = {
    "data parallel": ("x.pt", lambda state: {"model": prefixed("module.", state)}),
    "state_dict": ("x.pth", lambda state: {"state_dict": state}),
    "nested": ("x.pth.tar", lambda state: {"state_dict": {"model": state}, "epoch": 3}),
    "Lightning": ("x.ckpt", lambda state: {"state_dict": prefixed("model.", state), "epoch": 3, "callbacks": {}}),
    "Meta's trainer": (
        "x.pt",
        lambda state: {"model": state, "optimizer": optimizer_state(state), "loss": {"core": 0.1}, "epoch": 39},
    ),
    "average of the model": ("x.pt", lambda state: {"model_ema": {k: x + 1 for k, x in state.items()}, "model": state}),
    "one dictionary per module": ("x.pt", lambda state: by_module(state)),
    "parameters": ("x.pt", lambda state: {"model": {name: torch.nn.Parameter(x) for name, x in state.items()}}),
    "float64": ("X.PT", lambda state: {"model": {name: x.double() for name, x in state.items()}}),
}


def by_module(state):
    modules = {}
    for name, value in state.items():
        module, dot, rest = name.partition(".")
        if dot:
            modules.setdefault(module, {})[rest] = value
        else:
            modules[name] = value
    return modules


@pytest.mark.parametrize("form", WRAPPED)
def test_a_model_in_the_file_of_a_trainer_gives_the_same_bits(form, state, meta_tensors, tmp_path):
    file, wrapped = WRAPPED[form]
    torch.save(wrapped(state), tmp_path / file)
    assert same_as(meta_tensors, tmp_path / file, tmp_path)


def test_a_file_of_the_old_pytorch_format_gives_the_same_bits(state, meta_tensors, tmp_path):
    torch.save({"model": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same_as(meta_tensors, tmp_path / "old.pt", tmp_path)


def test_a_truncated_file_of_the_old_pytorch_format_is_refused(state, tmp_path, refused):
    torch.save({"model": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pt").read_bytes()
    (tmp_path / "old.pt").write_bytes(content[: len(content) // 2])
    assert "old.pt: it cannot be read as a PyTorch file" in refused(tmp_path / "old.pt")


def test_contents_other_than_the_model_are_recorded_as_left_out(state, tmp_path):
    torch.save({"model": state, "optimizer": optimizer_state(state), "epoch": 39}, tmp_path / "checkpoint.pt")
    convert_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "native")
    assert set(read_info(tmp_path / "native").provenance["left_out"].split(", ")) == {"optimizer", "epoch"}


@pytest.mark.parametrize(
    "content, part",
    [
        (lambda state: {"model": state, "state_dict": state}, "it contains 2 models"),
        (lambda state: {"model": {**state, "epoch": 3}}, "objects other than tensors by name (model.epoch)"),
        (lambda state: {"a.b": {"c": 1}, "a": {"b.c": 2}, **state}, "it contains two entries a.b.c"),
    ],
)
def test_contents_that_can_be_read_in_two_ways_are_refused(content, part, state, tmp_path, refused):
    torch.save(content(state), tmp_path / "two.pt")
    assert part in refused(tmp_path / "two.pt")


def test_a_dictionary_that_contains_itself_many_times_is_refused(state, tmp_path, refused):
    loop = {}
    for key in range(40):
        loop[str(key)] = loop
    torch.save({"model": state, "loop": loop}, tmp_path / "loop.pt")
    assert "it contains more than" in refused(tmp_path / "loop.pt")


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_with_pytorch_model_bin_gives_the_same_bits(shards, transformers_tensors, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "sam2_video"}')
    names = list(transformers_tensors)
    files = {f"pytorch_model-{at}-of-{shards}.bin": names[at::shards] for at in range(shards)}
    if shards == 1:
        files = {"pytorch_model.bin": names}
    else:
        index = {"weight_map": {name: file for file, held in files.items() for name in held}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for file, held in files.items():
        torch.save({name: torch.from_numpy(transformers_tensors[name].copy()) for name in held}, folder / file)
    convert_checkpoint(folder, tmp_path / "out.safetensors", to="transformers")
    assert same_bits(load_file(tmp_path / "out.safetensors"), transformers_tensors)


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


def test_documented_lines_take_a_pt_file_to_a_segmented_ct(tmp_path, realdata, monkeypatch, capsys):
    """Run the lines with random weights under the official names, and on four slices of a CT."""
    page = (Path(__file__).resolve().parents[2] / "docs/how-to/convert.md").read_text()
    convert_line, inspect_line, compare_line, predict_line = page.split("```")[1].strip().splitlines()[1:]

    model = new_model("sam2.1_hiera_tiny", image_size=256, seed=0)
    save_model(model, tmp_path / "random")
    assert main(["convert", str(tmp_path / "random"), str(tmp_path / "sam2.1_hiera_tiny.pt")]) == 0
    ct = nibabel.load(realdata / "abdomen" / "ct.nii.gz")
    nibabel.save(ct.slicer[:, :, 28:32], tmp_path / "CT.nii.gz")
    monkeypatch.chdir(tmp_path)
    for line in (convert_line, inspect_line, compare_line, predict_line):
        words = shlex.split(line.replace("60,45,30", "60,45,2"))
        assert words[0] == "sam2-3dmed"
        assert main(words[1:]) == 0, capsys.readouterr().err
    segmented = nibabel.load("segmentation.nii.gz")
    assert segmented.shape == ct.shape[:2] + (4,)
    np.testing.assert_array_equal(segmented.affine, ct.slicer[:, :, 28:32].affine)


def test_a_link_to_memory_of_the_system_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "a.pth").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"a\.pth cannot be read \(Input/output error\)"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "native")


def test_a_full_disk_is_reported_as_such_when_pytorch_writes():
    with pytest.raises(OSError, match="No space left on device"):
        write_torch(Path("/dev/full"), ["weight"], lambda name: np.zeros(100_000, np.float32))


def test_a_full_disk_is_one_line_of_the_command_and_leaves_no_file(meta_file, refused):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))  # larger files are refused, as on a full disk
    try:
        line = refused(meta_file, to="x.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "x.pt cannot be written (File too large)" in line
