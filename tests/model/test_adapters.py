"""Adapters as pure functions: which layers have them, their shapes, and the effective weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.config import LoraConfig, ModelConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.adapters import adapted_kernels, adapter_shapes, effective_weights, initial_adapters
from sam2_3dmed_jax.model.build import abstract_model, random_weights
from sam2_3dmed_jax.sam2.parameters import merge
from tests.helpers.quick import QUICK

NANO = ModelConfig("nano", 64, srpp=False, bd=False)


def shapes_of(model: ModelConfig, **changes) -> dict[str, jax.ShapeDtypeStruct]:
    return adapter_shapes(abstract_model(model)[1], replace(LoraConfig(rank=4), **changes))


def test_the_default_adapts_all_attention_of_the_encoder_and_of_memory_attention():
    trunk = [f"image_encoder.trunk.blocks.{block}.attn.{name}" for block in range(5) for name in ("proj", "qkv")]
    projections = ("k_proj", "out_proj", "q_proj", "v_proj")
    memory = [f"memory_attention.layers.0.{a}.{p}" for a in ("cross_attn_image", "self_attn") for p in projections]
    assert sorted(adapted_kernels(shapes_of(NANO))) == sorted(f"{layer}.kernel" for layer in trunk + memory)


def test_an_adapter_has_the_sides_of_its_kernel_and_the_rank():
    shapes = shapes_of(NANO, modules=(r"blocks\.4\.attn\.qkv",))
    layer = "image_encoder.trunk.blocks.4.attn.qkv"  # the first block of the last stage: 96 to 3 x 192 channels
    assert {path: value.shape for path, value in shapes.items()} == {
        f"{layer}.lora_a": (96, 4),
        f"{layer}.lora_b": (4, 576),
    }


def test_adapters_of_rank_eight_of_the_smallest_official_model_are_a_few_megabytes():
    shapes = shapes_of(ModelConfig("sam2.1_hiera_tiny"), rank=8)
    assert 1.0 < sum(4 * value.size for value in shapes.values()) / 1e6 < 4.0  # of 156 MB


def test_effective_weights_add_the_scaled_product_to_the_kernel_alone():
    weights = {
        "layer.kernel": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
        "layer.bias": np.array([5.0, 6.0], np.float32),
        "layer.lora_a": np.array([[1.0], [2.0]], np.float32),
        "layer.lora_b": np.array([[10.0, 100.0]], np.float32),
    }
    expected = {"layer.kernel": [[6.0, 52.0], [13.0, 104.0]], "layer.bias": [5.0, 6.0]}
    for arrays in (weights, jax.tree.map(jnp.asarray, weights)):
        merged = effective_weights(arrays, 0.5)
        assert {path: np.asarray(value).tolist() for path, value in merged.items()} == expected
        assert all(value.dtype == np.float32 for value in merged.values())


def test_a_model_with_new_adapters_encodes_a_slice_as_the_loaded_model_to_the_bit():
    weights = random_weights(NANO, 0)
    adapters = initial_adapters(adapter_shapes(weights, LoraConfig(rank=4)), 1)
    assert all(np.any(value) == path.endswith("lora_a") for path, value in adapters.items())
    graphdef = abstract_model(NANO)[0]
    slices = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 3)), jnp.float32)
    jitted = jax.jit(lambda weights, slices: merge(graphdef, weights).encode_image(slices))
    encode = jitted.lower(weights, slices).compile(QUICK)
    adapted = encode(effective_weights({**weights, **adapters}, 4.0), slices)
    jax.tree.map(np.testing.assert_array_equal, adapted, encode(weights, slices))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank": -1}, r"training\.lora\.rank: -1 is not a rank; give 0"),
        ({"alpha": 0.0}, r"training\.lora\.alpha: 0 is not a positive number"),
        ({"modules": ("encodr",)}, r"training\.lora\.modules: no linear layer matches 'encodr'"),
        ({"modules": ("patch_embed",)}, r"training\.lora\.modules: no linear layer matches 'patch_embed'"),
        ({"modules": ()}, r"training\.lora\.modules: no layer is left to adapt"),
    ],
)
def test_settings_that_adapt_nothing_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        shapes_of(NANO, **changes)
