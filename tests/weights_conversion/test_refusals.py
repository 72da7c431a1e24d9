"""Invalid sources and destinations are refused in one line and leave no files. Torch is not needed."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from sam2_3dmed_jax.model import checkpoint
from weights_conversion import convert

BLOCK = "image_encoder.trunk.blocks.0.mlp.layers.0.weight"


def edited(tensors, tmp_path, **changes):
    """Write the tensors with some of them replaced (None: left out) to a file."""
    kept = {name: value for name, value in {**tensors, **changes}.items() if value is not None}
    save_file({name: np.ascontiguousarray(value) for name, value in kept.items()}, tmp_path / "edited.safetensors")
    return tmp_path / "edited.safetensors"


def test_a_truncated_file_is_refused(meta_file, refused):
    meta_file.write_bytes(meta_file.read_bytes()[:-100])
    assert "source.safetensors: it is not a complete .safetensors file" in refused(meta_file)


def test_a_file_truncated_within_its_header_is_refused(meta_file, refused):
    meta_file.write_bytes(meta_file.read_bytes()[:50])
    assert "it may be truncated" in refused(meta_file)


def test_the_message_about_a_wrong_preset_names_the_right_one(meta_file, refused):
    line = refused(meta_file, "--model", "sam2.1_hiera_tiny")
    assert "does not fit sam2.1_hiera_tiny" in line and "give --model nano" in line
    assert re.search(r"\d+ missing: image_encoder\.trunk\.blocks\.", line)  # tiny has more blocks than nano


def test_an_unknown_preset_is_refused(meta_file, refused):
    assert "'huge' does not exist; choose one of" in refused(meta_file, "--model", "huge")


def test_a_missing_tensor_is_named(meta_tensors, tmp_path, refused):
    line = refused(edited(meta_tensors, tmp_path, **{"no_obj_ptr": None}))
    assert "nano in meta layout fits best" in line and "1 missing: no_obj_ptr;" in line


def test_an_unexpected_tensor_is_named(meta_tensors, tmp_path, refused):
    assert "1 unexpected: extra.weight;" in refused(edited(meta_tensors, tmp_path, **{"extra.weight": np.ones(3)}))


def test_a_transposed_tensor_is_named_with_both_shapes(meta_tensors, tmp_path, refused):
    line = refused(edited(meta_tensors, tmp_path, **{BLOCK: meta_tensors[BLOCK].T}))
    assert f"1 of another shape: {BLOCK} (expected [96, 24], found [24, 96])" in line


def test_all_discrepancies_are_in_one_line(meta_tensors, tmp_path, refused):
    changes = {"no_obj_ptr": None, "no_mem_embed": None, "extra": np.ones(3), BLOCK: meta_tensors[BLOCK].T}
    line = refused(edited(meta_tensors, tmp_path, **changes), "--model", "nano")
    for part in ("2 missing: no_", "1 unexpected: extra", "1 of another shape", "no other preset"):
        assert part in line


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("to", ["out/result", "result.safetensors"])
def test_a_value_that_is_not_finite_is_refused(value, to, meta_tensors, tmp_path, refused):
    broken = meta_tensors[BLOCK].copy()
    broken[3, 3] = value
    assert f"{BLOCK} contains NaN or infinity" in refused(edited(meta_tensors, tmp_path, **{BLOCK: broken}), to=to)


def test_integers_are_refused_as_weights(meta_tensors, tmp_path, refused):
    line = refused(edited(meta_tensors, tmp_path, no_obj_ptr=np.ones((1, 64), np.int32)))
    assert "1 of another type: no_obj_ptr (expected floating point, found I32)" in line


def test_copies_of_the_position_matrix_that_differ_are_refused(transformers_folder, transformers_tensors, refused):
    name = "prompt_encoder.shared_embedding.positional_embedding"
    save_file({**transformers_tensors, name: transformers_tensors[name] + 1}, transformers_folder / "model.safetensors")
    line = refused(transformers_folder)
    assert name in line and "shared_image_embedding.positional_embedding" in line and "must be equal" in line


def test_an_empty_folder_is_refused(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    assert "empty: it is not a checkpoint: expected" in refused(tmp_path / "empty")


def test_a_source_that_does_not_exist_is_refused(tmp_path, refused):
    assert "the file or folder does not exist" in refused(tmp_path / "nothing.pt")


def test_a_file_of_another_format_is_refused(tmp_path, refused):
    (tmp_path / "weights.h5").write_bytes(b"x")
    assert "'.h5' is not the ending of a checkpoint" in refused(tmp_path / "weights.h5")


@pytest.mark.parametrize("to, words", [("x.safetensors", ("--to", "meta")), ("x", ("--to", "transformers"))])
def test_srpp_and_bd_are_refused_in_layouts_that_cannot_store_them(to, words, with_3dmed, refused):
    line = refused(with_3dmed, *words, to=to)
    assert "in slice_position: slice_position." in line and "in boundary: boundary." in line and "--drop-extra" in line


@pytest.mark.parametrize("file", ["../outside.safetensors", "/outside.safetensors", "..\\outside.safetensors", "x.pt"])
def test_an_index_that_points_outside_of_its_folder_is_refused(file, transformers_folder, refused):
    (transformers_folder / "model.safetensors").rename(transformers_folder.parent / "out.safetensors")
    index = {"weight_map": {"no_object_pointer": file}}
    (transformers_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is not a .safetensors file in its folder" in refused(transformers_folder)


def test_an_index_that_does_not_match_its_shards_is_refused(transformers_folder, transformers_tensors, refused):
    (transformers_folder / "model.safetensors").rename(transformers_folder / "model-1.safetensors")
    names = [name for name in transformers_tensors if name != "no_object_pointer"] + ["gone"]
    index = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (transformers_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    line = refused(transformers_folder)
    assert "gone (not in model-1.safetensors); no_object_pointer (in model-1.safetensors, not in the index)" in line


def test_a_transformers_folder_without_config_json_is_refused(transformers_folder, refused):
    (transformers_folder / "config.json").unlink()
    assert "config.json: it is missing" in refused(transformers_folder)


def test_a_damaged_native_folder_is_refused(with_3dmed, tmp_path, refused):
    shutil.copytree(with_3dmed, tmp_path / "damaged")
    for file in (tmp_path / "damaged" / "weights").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert "its weights cannot be read" in refused(tmp_path / "damaged")


def test_an_image_size_that_does_not_fit_is_refused(meta_file, refused):
    assert "100 is not a multiple of 32" in refused(meta_file, "--image-size", "100")
    assert "0 is not a multiple of 32" in refused(meta_file, "--image-size", "0")


@pytest.mark.parametrize(
    "to, words, part",
    [
        ("x.pt", ("--to", "transformers"), "a .pt file has Meta's layout"),
        ("x", ("--to", "meta"), "Meta's layout is a file"),
        ("source.safetensors", (), "is the source itself"),
        ("full", (), "it is not empty and is not a native checkpoint"),
        ("full/file", (), "it is a file; give a folder"),
    ],
)
def test_an_invalid_destination_is_refused_and_kept(to, words, part, meta_file, tmp_path, refused):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("precious")
    assert part in refused(meta_file, *words, to=to)
    assert (tmp_path / "full" / "file").read_text() == "precious"


def test_a_full_disk_leaves_no_files(meta_file, refused, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp, "save", full)
    assert "cannot be written (No space left on device)" in refused(meta_file)


@pytest.mark.parametrize("to", ["x.pt", "x"])
def test_the_message_about_a_pt_file_without_torch_names_the_extra_to_install(
    to, meta_file, tmp_path, refused, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    source = meta_file if to == "x.pt" else meta_file.rename(tmp_path / "source.pt")
    monkeypatch.setattr(convert, "recognise", lambda *_: pytest.fail("the weights were looked at first"))
    line = refused(source, to=to)
    assert "pip install 'sam2-3dmed-jax[torch]'" in line and line.startswith(
        f"error: {'x.pt' if to == 'x.pt' else 'source.pt'}: "
    )
