"""Checkpoints as trainers and other libraries save them give the same parameters. Torch is not needed."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sam2_3dmed_jax.model.checkpoint import read_info
from tests.weights_conversion.test_convert import same_bits
from weights_conversion.__main__ import main
from weights_conversion.convert import convert_checkpoint

SHARED = "shared_image_embedding.positional_embedding"
TIED = "prompt_encoder.shared_embedding.positional_embedding"


def converted(tensors, tmp_path, name="wrapped.safetensors"):
    """Save tensors, convert them to Meta's names, and return the result."""
    save_file(tensors, tmp_path / name)
    convert_checkpoint(tmp_path / name, tmp_path / "out.safetensors", to="meta")
    return load_file(tmp_path / "out.safetensors")


def provenance(file, tmp_path):
    convert_checkpoint(file, tmp_path / "native")
    return read_info(tmp_path / "native").provenance


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.", "state_dict.model.", "net.sam."]
)
def test_a_prefix_of_all_names_is_removed_and_recorded(prefix, meta_tensors, tmp_path):
    assert same_bits(converted(prefixed(prefix, meta_tensors), tmp_path), meta_tensors)
    assert provenance(tmp_path / "wrapped.safetensors", tmp_path)["prefix"] == prefix


def test_a_prefix_is_removed_from_the_names_of_transformers(transformers_folder, transformers_tensors, tmp_path):
    save_file(prefixed("module.", transformers_tensors), transformers_folder / "model.safetensors")
    convert_checkpoint(transformers_folder, tmp_path / "out.safetensors", to="transformers")
    assert same_bits(load_file(tmp_path / "out.safetensors"), transformers_tensors)


def test_what_compilation_inserts_within_names_is_removed_and_recorded(meta_tensors, tmp_path):
    compiled = {re.sub("^image_encoder", "image_encoder._orig_mod", name): x for name, x in meta_tensors.items()}
    assert same_bits(converted(compiled, tmp_path), meta_tensors)
    assert provenance(tmp_path / "wrapped.safetensors", tmp_path)["inserted"] == "_orig_mod"


def test_names_without_a_prefix_record_none(meta_file, tmp_path):
    assert not {"prefix", "inserted", "left_out", "rounded"} & set(provenance(meta_file, tmp_path))


def test_the_plain_model_is_taken_and_its_average_is_recorded_as_left_out(meta_tensors, tmp_path):
    average = {name: value + 1 for name, value in meta_tensors.items()}
    both = {**prefixed("model_ema.", average), **prefixed("model.", meta_tensors)}
    assert same_bits(converted(both, tmp_path), meta_tensors)
    record = provenance(tmp_path / "wrapped.safetensors", tmp_path)
    assert (record["prefix"], record["left_out"]) == ("model.", "model_ema")


@pytest.mark.parametrize("prefixes", [("student.", "teacher."), ("model.", "state_dict."), ("", "model.")])
def test_two_models_of_which_none_is_the_plain_one_are_refused(prefixes, meta_tensors, tmp_path, refused):
    both = {name: value for prefix in prefixes for name, value in prefixed(prefix, meta_tensors).items()}
    save_file(both, tmp_path / "two.safetensors")
    line = refused(tmp_path / "two.safetensors")
    assert "it contains 2 models" in line
    assert all((f"'{prefix}'" if prefix else "no prefix") in line for prefix in prefixes)


def test_two_tensors_that_are_the_same_parameter_are_refused(meta_tensors, tmp_path, refused):
    save_file({**meta_tensors, "module.no_obj_ptr": meta_tensors["no_obj_ptr"]}, tmp_path / "twice.safetensors")
    assert "module.no_obj_ptr and no_obj_ptr are both no_obj_ptr" in refused(tmp_path / "twice.safetensors")


@pytest.mark.parametrize("extra", ["loss.weight", "critic.mask_decoder.weight"])
def test_a_tensor_outside_of_a_model_with_a_prefix_is_named(extra, meta_tensors, tmp_path, refused):
    save_file({**prefixed("model.", meta_tensors), extra: np.ones(3)}, tmp_path / "extra.safetensors")
    assert f"except for 1 unexpected: {extra};" in refused(tmp_path / "extra.safetensors")


def test_float64_is_rounded_to_float32_and_recorded(meta_tensors, tmp_path):
    double = {name: value.astype(np.float64) * (1 + 1e-12) for name, value in meta_tensors.items()}
    expected = {name: value.astype(np.float32) for name, value in double.items()}
    assert same_bits(converted(double, tmp_path), expected)
    assert provenance(tmp_path / "wrapped.safetensors", tmp_path)["rounded"] == "float64 to float32"


def test_a_float64_that_float32_cannot_hold_is_refused(meta_tensors, tmp_path, refused):
    save_file({**meta_tensors, "no_obj_ptr": np.full((1, 64), 1e300)}, tmp_path / "large.safetensors")
    assert "no_obj_ptr contains NaN or infinity" in refused(tmp_path / "large.safetensors")


def test_endings_of_files_are_read_and_written_in_any_case(meta_tensors, tmp_path):
    save_file(meta_tensors, tmp_path / "SAM2.SafeTensors")
    convert_checkpoint(tmp_path / "SAM2.SafeTensors", tmp_path / "OUT.SAFETENSORS", to="meta")
    assert same_bits(load_file(tmp_path / "OUT.SAFETENSORS"), meta_tensors)


@pytest.mark.parametrize("absent", [SHARED, TIED])
def test_one_copy_of_the_tied_position_matrix_is_enough(absent, transformers_folder, transformers_tensors, tmp_path):
    stored = {name: value for name, value in transformers_tensors.items() if name != absent}
    save_file(stored, transformers_folder / "model.safetensors")
    convert_checkpoint(transformers_folder, tmp_path / "out.safetensors", to="transformers")
    assert same_bits(load_file(tmp_path / "out.safetensors"), transformers_tensors)


def test_no_copy_of_the_tied_position_matrix_is_refused(transformers_folder, transformers_tensors, refused):
    stored = {name: value for name, value in transformers_tensors.items() if name not in (SHARED, TIED)}
    save_file(stored, transformers_folder / "model.safetensors")
    line = refused(transformers_folder)
    assert "2 missing" in line and SHARED in line


def test_the_only_copy_of_the_position_matrix_is_checked(transformers_folder, transformers_tensors, refused):
    stored = {name: value for name, value in transformers_tensors.items() if name != SHARED}
    save_file({**stored, TIED: np.full_like(stored[TIED], np.nan)}, transformers_folder / "model.safetensors")
    assert f"{TIED} contains NaN" in refused(transformers_folder)


def test_a_model_of_single_images_is_refused_with_its_reason(transformers_folder, transformers_tensors, refused):
    roots = ("vision_encoder.", "prompt_encoder.", "mask_decoder.", "shared_image_embedding.", "no_memory_embedding")
    stored = {name: value for name, value in transformers_tensors.items() if name.startswith(roots)}
    save_file(stored, transformers_folder / "model.safetensors")
    assert "it is a SAM 2 for single images (Sam2Model)" in refused(transformers_folder)


def test_another_number_of_memories_is_refused_with_its_reason(meta_tensors, tmp_path, refused):
    longer = {**meta_tensors, "maskmem_tpos_enc": np.repeat(meta_tensors["maskmem_tpos_enc"], 3, axis=0)}
    save_file(longer, tmp_path / "longer.safetensors")
    assert "trained with num_maskmem 21" in refused(tmp_path / "longer.safetensors")


def test_a_configuration_of_unexpected_types_states_no_image_size(transformers_folder, tmp_path):
    (transformers_folder / "config.json").write_text(json.dumps({"prompt_encoder_config": [1], "image_size": "x"}))
    convert_checkpoint(transformers_folder, tmp_path / "native")
    assert read_info(tmp_path / "native").model.image_size is None


@pytest.mark.parametrize("what", ["other names", "long names", "all shapes", "wrong preset"])
def test_messages_about_a_whole_checkpoint_have_at_most_300_characters(what, meta_tensors, tmp_path, refused):
    tensors = {
        "other names": prefixed("backbone.layer.", {name.replace("_", "-"): x for name, x in meta_tensors.items()}),
        "long names": {f"{at}{'x' * 5000}": np.ones(1) for at in range(9)},
        "all shapes": {name: np.ones((3, 5), np.int32) for name in meta_tensors},
        "wrong preset": meta_tensors,
    }[what]
    folder = tmp_path / "a folder" / ("long" * 30)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "checkpoint.safetensors")
    line = refused(
        folder / "checkpoint.safetensors", *(("--model", "sam2.1_hiera_large") if what == "wrong preset" else ())
    )
    assert len(line) <= 300 and "checkpoint.safetensors" in line


def test_debug_prints_every_discrepancy(meta_tensors, tmp_path, capsys):
    save_file({name: x for name, x in meta_tensors.items() if "norm" not in name}, tmp_path / "part.safetensors")
    assert main(["convert", str(tmp_path / "part.safetensors"), str(tmp_path / "out"), "--debug"]) == 2
    error = capsys.readouterr().err
    assert all(f"missing: {name}\n" in error for name in meta_tensors if "norm" in name)


def test_an_index_of_missing_tensors_is_refused_in_a_short_message(transformers_folder, refused):
    shutil.move(transformers_folder / "model.safetensors", transformers_folder / "model-1.safetensors")
    index = {"weight_map": {f"tensor.{at}": "model-1.safetensors" for at in range(1000)}}
    (transformers_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    line = refused(transformers_folder)
    assert len(line) <= 300 and "tensor.0 (not in model-1.safetensors)" in line


def test_inspect_shows_the_prefix(meta_tensors, tmp_path: Path, capsys):
    save_file(prefixed("module.", meta_tensors), tmp_path / "wrapped.safetensors")
    assert main(["inspect", str(tmp_path / "wrapped.safetensors")]) == 0
    assert re.search(r"^prefix +module\.$", capsys.readouterr().out, re.MULTILINE)
