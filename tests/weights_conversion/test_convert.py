"""Conversions keep every bit in every direction and record the provenance. Torch is not needed."""

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sam2_3dmed_jax.model.checkpoint import load_model, read_info
from sam2_3dmed_jax.sam2.parameters import split
from weights_conversion.compare import compare_checkpoints
from weights_conversion.convert import convert_checkpoint


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return set(a) == set(b) and all(a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a)


@pytest.mark.parametrize("native", ["native", "native.safetensors"])
def test_meta_to_native_to_meta_gives_the_same_bits(native, meta_file, meta_tensors, tmp_path):
    convert_checkpoint(meta_file, tmp_path / native)
    convert_checkpoint(tmp_path / native, tmp_path / "back.safetensors", to="meta")
    assert same_bits(load_file(tmp_path / "back.safetensors"), meta_tensors)


@pytest.mark.parametrize("native", ["native", "native.safetensors"])
def test_transformers_to_native_to_transformers_gives_the_same_bits(
    native, transformers_folder, transformers_tensors, tmp_path
):
    convert_checkpoint(transformers_folder, tmp_path / native)
    convert_checkpoint(tmp_path / native, tmp_path / "back", to="transformers")
    assert same_bits(load_file(tmp_path / "back" / "model.safetensors"), transformers_tensors)


def test_meta_to_native_equals_transformers_to_native_for_the_same_model(meta_file, tmp_path):
    convert_checkpoint(meta_file, tmp_path / "transformers", to="transformers")
    convert_checkpoint(meta_file, tmp_path / "a")
    convert_checkpoint(tmp_path / "transformers", tmp_path / "b")
    a, b = (split(load_model(tmp_path / name))[1] for name in "ab")
    assert same_bits({k: np.asarray(v) for k, v in a.items()}, {k: np.asarray(v) for k, v in b.items()})


def test_the_weights_of_both_layouts_become_the_right_native_parameters(meta_file, meta_tensors, tmp_path):
    convert_checkpoint(meta_file, tmp_path / "native")
    weights = split(load_model(tmp_path / "native"))[1]
    for name, ours in (
        ("sam_prompt_encoder.point_embeddings.2.weight", "sam_prompt_encoder.point_embeddings.2"),
        ("image_encoder.trunk.blocks.0.attn.qkv.weight", "image_encoder.trunk.blocks.0.attn.qkv.kernel"),
    ):
        assert np.array_equal(np.squeeze(meta_tensors[name]).T, weights[ours])
    convert_checkpoint(tmp_path / "native", tmp_path / "out.safetensors", to="transformers")
    stacked = load_file(tmp_path / "out.safetensors")["prompt_encoder.point_embed.weight"]
    assert np.array_equal(stacked[2:3], meta_tensors["sam_prompt_encoder.point_embeddings.2.weight"])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_becomes_float32_exactly(dtype, meta_tensors, tmp_path):
    half = {name: value.astype(dtype) for name, value in meta_tensors.items()}
    save_file(half, tmp_path / "half.safetensors")
    convert_checkpoint(tmp_path / "half.safetensors", tmp_path / "out.safetensors", to="meta")
    assert same_bits(
        load_file(tmp_path / "out.safetensors"), {name: value.astype(np.float32) for name, value in half.items()}
    )


def test_a_sharded_transformers_folder_equals_the_whole_one(transformers_folder, transformers_tensors, tmp_path):
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    names = list(transformers_tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, held in shards.items():
        save_file({name: transformers_tensors[name] for name in held}, sharded / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    (sharded / "config.json").write_text((transformers_folder / "config.json").read_text())
    convert_checkpoint(sharded, tmp_path / "native")
    assert compare_checkpoints(tmp_path / "native", transformers_folder).equal
    assert set(read_info(tmp_path / "native").provenance["sha256"]) == set(shards)


def test_provenance_names_the_source_its_hash_layout_preset_tool_and_time(meta_file, tmp_path):
    convert_checkpoint(meta_file, tmp_path / "native")
    provenance = read_info(tmp_path / "native").provenance
    assert provenance["source"] == "source.safetensors"
    assert provenance["sha256"] == {"source.safetensors": hashlib.sha256(meta_file.read_bytes()).hexdigest()}
    assert (provenance["layout"], provenance["preset"]) == ("meta", "nano")
    assert provenance["tool_version"] and provenance["time"]
    convert_checkpoint(tmp_path / "native", tmp_path / "again.safetensors")
    with safe_open(tmp_path / "again.safetensors", "numpy") as file:
        record = json.loads(file.metadata()["sam2_3dmed_config"])
    assert record["provenance"]["previous"] == provenance


def test_the_image_size_is_stored_when_given_or_stated_by_the_source(meta_file, transformers_folder, tmp_path):
    convert_checkpoint(meta_file, tmp_path / "own")
    convert_checkpoint(meta_file, tmp_path / "given", image_size=512)
    (transformers_folder / "config.json").write_text(json.dumps({"prompt_encoder_config": {"image_size": 256}}))
    convert_checkpoint(transformers_folder, tmp_path / "stated")
    sizes = [load_model(tmp_path / name).config.image_size for name in ("own", "given", "stated")]
    assert sizes == [128, 512, 256]


def test_native_formats_keep_srpp_and_bd_and_their_configuration(with_3dmed, tmp_path):
    convert_checkpoint(with_3dmed, tmp_path / "a.safetensors")
    convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "b")
    assert compare_checkpoints(with_3dmed, tmp_path / "b").equal
    assert read_info(tmp_path / "b").model == read_info(with_3dmed).model
    assert type(load_model(tmp_path / "b")) is type(load_model(with_3dmed))


def test_drop_extra_exports_the_sam2_of_a_fine_tuned_model(with_3dmed, tmp_path):
    convert_checkpoint(with_3dmed, tmp_path / "sam2.safetensors", to="meta", drop_extra=True)
    comparison = compare_checkpoints(with_3dmed, tmp_path / "sam2.safetensors")
    assert not comparison.different and not comparison.only_b
    assert {name.split(".")[0] for name in comparison.only_a} == {"slice_position", "boundary"}


def test_an_existing_native_checkpoint_is_replaced_completely(meta_file, with_3dmed, tmp_path):
    convert_checkpoint(with_3dmed, tmp_path / "target")
    convert_checkpoint(meta_file, tmp_path / "target")
    assert compare_checkpoints(tmp_path / "target", meta_file).equal
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.safetensors", "target"]


def test_progress_counts_every_tensor_once(meta_file, meta_tensors, tmp_path):
    calls: dict[str, list[tuple[int, int]]] = {}
    convert_checkpoint(
        meta_file,
        tmp_path / "out.safetensors",
        progress=lambda what, done, total: calls.setdefault(what, []).append((done, total)),
    )
    assert calls["tensors"] == [(i + 1, len(meta_tensors)) for i in range(len(meta_tensors))]
    assert all(counts[-1][0] == counts[-1][1] for counts in calls.values())


def test_a_checkpoint_may_consist_of_symbolic_links_as_in_the_hub_cache(transformers_folder: Path, tmp_path: Path):
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in transformers_folder.iterdir():
        (linked / file.name).symlink_to(file)
    convert_checkpoint(linked, tmp_path / "native")
    assert compare_checkpoints(tmp_path / "native", transformers_folder).equal
