"""Frozen parameters, learning-rate factors, the packed optimizer and the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sam2_3dmed_jax.config import HieraConfig, MeshConfig, ModelConfig, TrainingConfig, UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.training import optimizer as packed
from sam2_3dmed_jax.training.parameter_groups import (
    frozen_patterns,
    partition,
    rate_factors,
    stage_paths,
    trunk_blocks,
)
from sam2_3dmed_jax.training.sharding import batch_sharding, make_mesh

WEIGHTS = {
    "image_encoder.neck.convs.0.kernel": jnp.ones((4, 8)),
    "sam_prompt_encoder.not_a_point_embed": jnp.ones(8),
    "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": jnp.ones((2, 4)),
    "sam_mask_decoder.conv_s0.kernel": jnp.ones((8, 2)),
    "sam_mask_decoder.iou_token": jnp.full((1, 8), 2.0),
    "memory_attention.norm.bias": jnp.zeros(8),
    "memory_attention.layers.0.linear1.kernel": jnp.full((8, 16), 0.5),
}


def test_loaded_weights_freeze_both_encoders_and_the_high_resolution_convolutions():
    trained, frozen = partition(WEIGHTS, frozen_patterns(None, pretrained=True))
    assert sorted(trained) == [
        "memory_attention.layers.0.linear1.kernel",
        "memory_attention.norm.bias",
        "sam_mask_decoder.iou_token",
    ]
    assert {**trained, **frozen}.keys() == WEIGHTS.keys()


def test_random_weights_freeze_only_the_random_fourier_matrix():
    _, frozen = partition(WEIGHTS, frozen_patterns(None, pretrained=False))
    assert list(frozen) == ["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(UserError, match=r"training\.frozen: no parameter matches 'encodr'"):
        partition(WEIGHTS, ("encodr",))
    with pytest.raises(UserError, match=r"training\.part_learning_rates: no trained parameter matches 'encodr'"):
        rate_factors(WEIGHTS, (("encodr", 0.1),))
    with pytest.raises(UserError, match="nothing to train"):
        partition(WEIGHTS, (".",))


@pytest.mark.parametrize(("small", "betas"), [(0, (0.9, 0.95)), (100, (0.9, 0.95)), (1 << 16, (0.5, 0.8))])
def test_the_packed_optimizer_equals_adamw_on_each_parameter(monkeypatch, small, betas):
    monkeypatch.setattr(packed, "SMALL", small)
    config = TrainingConfig(
        steps=10, warmup_steps=2, part_learning_rates=(("neck", 0.1),), learning_rate=0.01, adam_betas=betas
    )
    ours = packed.Optimizer(config, WEIGHTS)
    weights, state = WEIGHTS, ours.init(WEIGHTS)
    rng = np.random.default_rng(0)
    reference = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(*betas, packed.EPSILON),
        optax.add_decayed_weights(0.01, mask={path: path.endswith("kernel") for path in WEIGHTS}),
        optax.scale_by_learning_rate(packed.learning_rate(config)),
    )
    expected, reference_state = WEIGHTS, reference.init(WEIGHTS)
    for _ in range(4):
        gradients = {path: jnp.asarray(rng.normal(size=v.shape), jnp.float32) for path, v in WEIGHTS.items()}
        weights, state = ours.apply(gradients, state, weights)
        updates, reference_state = reference.update(gradients, reference_state, expected)
        updates["image_encoder.neck.convs.0.kernel"] *= 0.1
        expected = optax.apply_updates(expected, updates)
    for path in WEIGHTS:
        np.testing.assert_allclose(weights[path], expected[path], rtol=1e-5)


@pytest.mark.parametrize("small", [0, 1 << 16])
def test_parameters_without_a_gradient_do_not_decay(monkeypatch, small):
    """One kernel never has a gradient; of the other, one column has one on the first step alone and then decays."""
    monkeypatch.setattr(packed, "SMALL", small)
    unused, used = "sam_mask_decoder.conv_s0.kernel", "memory_attention.layers.0.linear1.kernel"
    ours = packed.Optimizer(TrainingConfig(steps=10, warmup_steps=0, learning_rate=0.01, weight_decay=0.5), WEIGHTS)
    zero = jax.tree.map(jnp.zeros_like, WEIGHTS)
    gradients = {**zero, used: zero[used].at[:, 0].set(1.0)}
    weights, state = ours.apply(gradients, ours.init(WEIGHTS), WEIGHTS)
    after_one = weights[used]
    weights, state = ours.apply(zero, state, weights)
    np.testing.assert_array_equal(weights[unused], WEIGHTS[unused])
    np.testing.assert_array_equal(weights[used][:, 1:], WEIGHTS[used][:, 1:])
    assert (weights[used][:, 0] < after_one[:, 0]).all()


TRUNK = HieraConfig(stages=(1, 1, 2, 1))  # of nano
ENCODER_PATHS = (
    *("image_encoder.trunk.pos_embed", "image_encoder.trunk.patch_embed.proj.kernel"),
    *(f"image_encoder.trunk.blocks.{block}.mlp.layers.0.kernel" for block in range(5)),
    *(f"image_encoder.neck.convs.{level}.kernel" for level in range(4)),
    "sam_mask_decoder.conv_s0.kernel",
)


@pytest.mark.parametrize(
    ("stages", "blocks", "levels"), [(0, [], []), (1, [4], [0]), (2, [2, 3, 4], [0, 1]), (4, range(5), range(4))]
)
def test_unfrozen_stages_are_their_blocks_with_their_convolutions_in_the_neck(stages, blocks, levels):
    expected = {f"image_encoder.trunk.blocks.{block}.mlp.layers.0.kernel" for block in blocks}
    expected |= {f"image_encoder.neck.convs.{level}.kernel" for level in levels}
    assert stage_paths(ENCODER_PATHS, TRUNK, stages) == expected


@pytest.mark.parametrize("stages", [-1, 5])
def test_a_number_of_stages_that_the_trunk_does_not_have_is_refused(stages):
    with pytest.raises(UserError, match=rf"training\.unfreeze_stages: {stages} is not .*; give 0 to 4"):
        stage_paths(ENCODER_PATHS, TRUNK, stages)


def test_layer_decay_multiplies_the_factors_of_the_trunk_by_the_distance_from_its_end():
    weights = {path: jnp.ones(1) for path in ENCODER_PATHS}
    factors = rate_factors(weights, ((r"blocks\.4", 0.1), ("neck", 3.0)), 0.5, blocks=5)
    block = "image_encoder.trunk.blocks.{}.mlp.layers.0.kernel".format
    assert [factors[block(i)] for i in range(5)] == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 0.1 / 2]
    assert factors["image_encoder.trunk.pos_embed"] == factors["image_encoder.trunk.patch_embed.proj.kernel"] == 1 / 64
    assert factors["image_encoder.neck.convs.0.kernel"] == 3 and factors["sam_mask_decoder.conv_s0.kernel"] == 1


def test_layer_decay_without_a_trunk_that_trains_or_a_factor_is_refused():
    with pytest.raises(UserError, match=r"training\.layer_decay: 1\.5 is not a factor"):
        rate_factors(WEIGHTS, (), 1.5, 5)
    with pytest.raises(UserError, match=r"training\.layer_decay: no parameter of the trunk trains"):
        rate_factors(WEIGHTS, (), 0.9, 5)


def test_groups_whose_factors_differ_in_the_last_digits_stay_apart():
    weights = {path: np.ones(2) for path in ENCODER_PATHS}
    groups = packed.Optimizer(TrainingConfig(layer_decay=1 - 1e-9), weights, trunk_blocks=5).groups.values()
    assert sorted(path for group in groups for path in group.paths) == sorted(weights)
    assert len({group.factor for group in groups}) == 7  # 5 blocks, the embeddings, everything else


def test_the_depth_of_the_trunk_is_the_presets():
    presets = ("nano", "sam2.1_hiera_tiny", "sam2.1_hiera_large")
    assert [trunk_blocks(ModelConfig(preset)) for preset in presets] == [5, 12, 48]
    assert trunk_blocks(UNetConfig()) == 0


def test_adapters_freeze_sam2_and_leave_srpp_and_bd_to_train():
    weights = {**WEIGHTS, "slice_position.embed.kernel": jnp.ones((2, 2)), "boundary.to_mask.kernel": jnp.ones((2, 2))}
    adapter = "memory_attention.layers.0.linear1.lora_a"
    patterns = frozen_patterns(None, pretrained=True, adapted=True)
    trained, _ = partition({**weights, adapter: jnp.ones((8, 4))}, patterns, {adapter})
    assert set(trained) == {adapter, "slice_position.embed.kernel", "boundary.to_mask.kernel"}


def test_a_mesh_that_does_not_cover_the_devices_is_refused():
    with pytest.raises(UserError, match=f"mesh: 3 x 5 does not cover {jax.device_count()} devices"):
        make_mesh(MeshConfig(data=3, fsdp=5))


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    class ThreeDevices:
        size = 3

    with pytest.raises(UserError, match=r"training\.batch_size: 4 is not divisible by 3"):
        batch_sharding(ThreeDevices(), 4)


def test_the_learning_rate_decays_to_its_floor():
    config = TrainingConfig(steps=10, warmup_steps=2, learning_rate=0.01, learning_rate_floor=0.2)
    rate = packed.learning_rate(config)
    assert (rate(2), rate(10)) == (pytest.approx(0.01), pytest.approx(0.002))


def test_a_learning_rate_schedule_is_one_entry_and_an_unknown_one_is_refused(monkeypatch):
    config = TrainingConfig(learning_rate_schedule="constant")
    with pytest.raises(UserError, match=r"learning_rate_schedule: constant does not exist; choose from warmup_cosine"):
        packed.learning_rate(config)
    monkeypatch.setitem(packed.SCHEDULES, "constant", lambda config: optax.constant_schedule(config.learning_rate))
    assert packed.learning_rate(config)(7) == config.learning_rate
