"""The unrolled forward pass of training: gradients between its parts, and padding."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from sam2_3dmed_jax.config import LossConfig, ModelConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.build import abstract_model, random_weights
from sam2_3dmed_jax.sam2.parameters import merge
from sam2_3dmed_jax.training.methods.clips import ClipMethod
from sam2_3dmed_jax.training.objective import objective
from sam2_3dmed_jax.training.parameter_groups import frozen_patterns, partition
from sam2_3dmed_jax.training.unroll import propagated_slices, unroll_clips
from tests.helpers.quick import QUICK

SIZE, B, D, K = 64, 2, 4, 2
MODEL = ModelConfig("nano", SIZE)
MODEL = replace(MODEL, slice_position=replace(MODEL.slice_position, dim=32, window=D))
CLIP_METHOD = ClipMethod(MODEL)
ONLY_SRPP = LossConfig(bce=0.0, dice=0.0, iou=0.0, object_score=0.0, srpp=1.0, bd=0.0)
ONLY_MASKS = LossConfig(object_score=0.0, iou=0.0, srpp=0.0, bd=0.0)


def clips(seed=0):
    """Two clips of noise with a shrinking square; object 1 of the first clip appears on the third slice."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((B, D, K, SIZE, SIZE), np.uint8)
    for d in range(D):
        masks[:, d, 0, 10 : 40 - 4 * d, 20:44] = 1
    masks[0, 2:, 1, 44:60, 8:24] = 1
    coords = np.zeros((B, K, 4, 2), np.float32)
    coords[:, 0, 0], coords[0, 1, 0] = (30, 20), (14, 50)
    labels = np.full((B, K, 4), -1, np.int32)
    labels[:, 0, 0] = labels[0, 1, 0] = 1
    return {
        "slices": rng.random((B, D, SIZE, SIZE), dtype=np.float32),
        "masks": masks,
        "slice_valid": np.ones((B, D), bool),
        "slice_index": np.array([[5, 6, 7, 8], [9, 8, 7, 6]], np.float32),
        "position_mm": np.array([[5, 6, 7, 8], [9, 8, 7, 6]], np.float32) * 2.5,
        "object_valid": np.array([[True, True], [True, False]]),
        "prompt_step": np.array([[0, 2], [0, 0]], np.int32),
        "coords": coords,
        "point_labels": labels,
        "token_valid": np.tile(np.array([True, True, False, False]), (B, K, 1)),
        "multimask": np.ones((B, K), bool),
    }


@pytest.fixture(scope="module")
def graphdef():
    return abstract_model(MODEL)[0]


@pytest.fixture(scope="module")
def weights():
    drawn = random_weights(MODEL, 1)
    rng = np.random.default_rng(2)
    for path in ("slice_position.to_features.kernel", "boundary.to_mask.kernel"):
        drawn[path] = jnp.asarray(0.2 * rng.normal(size=drawn[path].shape), jnp.float32)
    drawn["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += 2.0
    return drawn


@pytest.fixture(scope="module")
def unrolled(graphdef):
    return jax.jit(lambda weights, batch: unroll_clips(merge(graphdef, weights), batch), compiler_options=QUICK)


def losses(out, batch, weights):
    return objective(CLIP_METHOD.terms(out, batch), CLIP_METHOD.losses, weights, jnp.asarray(0))


@pytest.fixture(scope="module")
def gradients(graphdef):
    """(trained, frozen, batch) -> gradients of the SRPP loss, a function of the masks, and the mask losses, stacked."""

    def outputs(trained, frozen, batch):
        out = unroll_clips(merge(graphdef, {**frozen, **trained}), batch)
        srpp, masks = (losses(out, batch, weights)[0] for weights in (ONLY_SRPP, ONLY_MASKS))
        return jnp.stack([srpp, jnp.square(out.mask_logits).mean(), masks])

    return jax.jit(jax.jacrev(outputs), compiler_options=QUICK)


def test_the_srpp_loss_reaches_parameters_of_the_mask_and_not_the_frozen_encoder(gradients, weights):
    trained, frozen = partition(weights, frozen_patterns(None, pretrained=True))
    assert any(path.startswith("image_encoder.") for path in frozen)
    found = gradients(trained, frozen, clips())
    reached = {path for path, gradient in found.items() if float(jnp.abs(gradient[0]).max()) > 0}
    shared = {path for path in reached if float(jnp.abs(found[path][1]).max()) > 0}
    assert "slice_position.cell.kernel" in shared and any("slice_position.layers." in path for path in shared)
    assert not any(path.startswith(("image_encoder.", "memory_attention.", "sam_mask_decoder.")) for path in reached)
    # The frozen encoder is not an argument of the gradient: it has neither gradient nor optimizer state.
    assert not any(path.startswith(("image_encoder.", "sam_prompt_encoder.")) for path in found)


def test_a_clip_gives_the_same_masks_with_and_without_padding_slices(unrolled, weights):
    whole = clips()
    whole["slice_valid"][:, 3] = False
    short = {
        name: value[:, :3] if name in ("slices", "masks", "slice_valid", "slice_index", "position_mm") else value
        for name, value in whole.items()
    }
    padded, cut = unrolled(weights, whole), unrolled(weights, short)
    # Sums have more, masked terms in another order.
    np.testing.assert_allclose(padded.mask_logits[:3], cut.mask_logits, atol=2e-4)
    np.testing.assert_allclose(padded.positions[:, :3, :3], cut.positions, atol=1e-4)
    assert not propagated_slices(whole)[3].any()


def test_losses_ignore_padding_slices_and_invalid_objects(unrolled, weights):
    batch = clips()
    batch["slice_valid"][:, 3] = False
    other = jax.tree.map(np.copy, batch)
    other["slices"][:, 3] = 0.5
    other["masks"][:, 3] = 1
    other["masks"][1, :, 1] = 1  # object 1 of the second clip is invalid
    for name, value in losses(unrolled(weights, batch), batch, LossConfig())[1].items():
        changed = losses(unrolled(weights, other), other, LossConfig())[1][name]
        assert float(changed) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_an_object_that_appears_later_has_no_loss_before_its_prompt():
    counts = np.asarray(propagated_slices(clips())).reshape(D, B, K)
    assert counts[:, 0, 1].tolist() == [False, False, True, True]
    assert counts[:, 1, 1].tolist() == [False] * 4
    assert counts[:, :, 0].all()


def test_mask_losses_have_a_gradient_where_the_object_score_says_absent(gradients, weights):
    absent = {**weights, "sam_mask_decoder.pred_obj_score_head.layers.2.bias": jnp.array([-50.0])}
    found = gradients(*partition(absent, frozen_patterns(None, pretrained=True)), clips())
    assert float(jnp.abs(found["sam_mask_decoder.output_upscaling.3.kernel"][2]).max()) > 1e-4


def test_training_propagates_a_clip_as_inference_propagates_a_volume(unrolled, weights):
    """One object prompted on the first of D slices: the same masks from the predictor, without postprocessing."""
    from sam2_3dmed_jax import Prompt, VolumePredictor
    from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble
    from sam2_3dmed_jax.runtime.imagenet import normalise

    batch = clips()
    without_context = {**weights, "slice_position.to_features.kernel": weights["slice_position.to_features.kernel"] * 0}
    masks = np.asarray(unrolled(without_context, batch).mask_logits)
    masks = masks.reshape(D, B, K, SIZE // 4, SIZE // 4)[:, 1, 0]
    # Pointer offsets are divided by min(depth, 16) - 1, and training assumes volumes of at least 16 slices.
    slices = np.concatenate([batch["slices"][1], np.zeros((12, SIZE, SIZE), np.float32)])
    model = assemble(without_context, CheckpointInfo(MODEL))
    result = VolumePredictor(model, postprocessing=False).predict(normalise(slices), [Prompt(1, 0, [(30, 20)], [1])])
    np.testing.assert_allclose(result.mask_logits[0, :D], masks, atol=5e-4)


@pytest.mark.parametrize("prompted", [pytest.param(0, marks=pytest.mark.long), 7])
def test_training_and_inference_agree_with_a_slice_context_that_changes_the_masks(prompted):
    """A clip that is a whole volume of D = 16 slices has the context window of inference, wherever the prompt is."""
    from sam2_3dmed_jax import Prompt, VolumePredictor
    from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble
    from sam2_3dmed_jax.runtime.imagenet import normalise

    depth = 16
    model = replace(MODEL, slice_position=replace(MODEL.slice_position, window=depth))
    drawn = random_weights(model, 1)
    rng = np.random.default_rng(2)
    for path in ("slice_position.to_features.kernel", "boundary.to_mask.kernel"):
        drawn[path] = jnp.asarray(0.2 * rng.normal(size=drawn[path].shape), jnp.float32)
    drawn["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += 2.0
    slices = rng.random((depth, SIZE, SIZE), dtype=np.float32)
    two = clips()
    batch = {
        name: value[1:, :1] if name in ("coords", "point_labels", "token_valid") else value[1:]
        for name, value in two.items()
    }
    batch |= {
        "slices": slices[None],
        "masks": np.zeros((1, depth, 1, SIZE, SIZE), np.uint8),
        "slice_valid": np.ones((1, depth), bool),
        "slice_index": np.arange(depth, dtype=np.float32)[None],
        "position_mm": np.arange(depth, dtype=np.float32)[None],
        "object_valid": np.ones((1, 1), bool),
        "prompt_step": np.array([[prompted]], np.int32),
        "multimask": np.ones((1, 1), bool),
    }
    graphdef = abstract_model(model)[0]
    run = jax.jit(lambda weights: unroll_clips(merge(graphdef, weights), batch).mask_logits, compiler_options=QUICK)
    trained = np.asarray(run(drawn))[:, 0]
    without_context = drawn | {"slice_position.to_features.kernel": drawn["slice_position.to_features.kernel"] * 0}
    assert np.abs(np.asarray(run(without_context))[prompted:, 0] - trained[prompted:]).max() > 0.05
    predictor = VolumePredictor(assemble(drawn, CheckpointInfo(model)), postprocessing=False)
    result = predictor.predict(normalise(slices), [Prompt(1, prompted, [(30, 20)], [1])])
    np.testing.assert_allclose(result.mask_logits[0, prompted:], trained[prompted:], atol=5e-4)


@pytest.fixture(scope="module")
def propagated():
    """Rule -> logits of one object in 24 slices from its prompt on slice 2 on, from the unroll and from inference."""
    from sam2_3dmed_jax import Prompt, VolumePredictor
    from sam2_3dmed_jax.inference.predictor import Session
    from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble
    from sam2_3dmed_jax.runtime.imagenet import normalise

    depth, prompted = 24, 2  # 21 slices follow the prompt, more than a bank of 15 holds
    plain = replace(MODEL, srpp=False, bd=False)
    drawn = random_weights(plain, 1)
    drawn["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += 2.0
    drawn["sam_mask_decoder.iou_prediction_head.layers.2.bias"] += 1.0  # above and below the limit of `self-sorting`
    slices = np.random.default_rng(2).random((depth, SIZE, SIZE), dtype=np.float32)
    store = VolumePredictor(assemble(drawn, CheckpointInfo(plain))).encode(normalise(slices))
    features = {name: np.asarray(x)[None] for name, x in store.gather(range(depth))[0]._asdict().items()}
    batch = {name: clips()[name][1:, :1] for name in ("coords", "point_labels", "token_valid", "multimask")} | {
        **features,
        "masks": np.zeros((1, depth, 1, SIZE, SIZE), np.uint8),
        "slice_valid": np.ones((1, depth), bool),
        "object_valid": np.ones((1, 1), bool),
        "prompt_step": np.array([[prompted]], np.int32),
    }

    @functools.cache
    def run(rule):
        model = replace(plain, memory_selection=rule)
        graphdef = abstract_model(model)[0]
        unroll = jax.jit(lambda weights: unroll_clips(merge(graphdef, weights), batch), compiler_options=QUICK)
        session = Session(VolumePredictor(assemble(drawn, CheckpointInfo(model)), postprocessing=False), store)
        session.add([Prompt(1, prompted, [(30, 20)], [1])])
        return np.asarray(unroll(drawn).mask_logits)[prompted:, 0], session.result().mask_logits[0, prompted:]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["confident", "self-sorting"])
def test_training_and_inference_choose_the_same_memories_under_each_rule(propagated, rule):
    in_training, at_inference = propagated(rule)
    np.testing.assert_allclose(at_inference, in_training, atol=5e-4)
    other = {"confident": "self-sorting", "self-sorting": "confident"}[rule]
    assert np.abs(at_inference - propagated(other)[1]).max() > 0.01  # the choice changes the masks


def readers(model, outputs):
    """Paths of all weights, and of those that each output depends on."""
    graphdef, shapes = abstract_model(model)

    def unroll(weights):
        return outputs(unroll_clips(merge(graphdef, weights), jax.tree.map(jnp.asarray, clips())))

    traced, found = jax.make_jaxpr(unroll, return_shape=True)(shapes)
    paths = sorted(shapes)  # in JAX's order

    def read_by(output):
        kept = [output == i for i in range(len(found))]
        return {path for path, used in zip(paths, dce_jaxpr(traced.jaxpr, kept)[1], strict=True) if used}

    return paths, [read_by(output) for output in range(len(found))]


@pytest.mark.parametrize("to_mask", [True, False])
def test_masks_depend_on_the_slice_context_only_with_a_path_to_the_mask(to_mask):
    model = replace(MODEL, slice_position=replace(MODEL.slice_position, to_mask=to_mask))
    paths, (masks, positions) = readers(model, lambda out: (out.mask_logits, out.positions))
    context = {path for path in paths if path.startswith("slice_position.layers.")}
    assert context <= positions
    assert (context & masks) == (context if to_mask else set())
    assert ("slice_position.to_features.kernel" in paths) == to_mask


@pytest.mark.parametrize("memory", [True, False])
def test_positions_depend_on_the_memory_only_with_srpp_memory(memory):
    model = replace(MODEL, slice_position=replace(MODEL.slice_position, to_mask=False, memory=memory))
    paths, (positions,) = readers(model, lambda out: (out.positions,))
    memory_paths = {path for path in paths if path.startswith(("memory_attention.", "memory_encoder."))}
    assert len(memory_paths) > 20 and (memory_paths & positions) == (memory_paths if memory else set())
    assert {path for path in paths if path.startswith("slice_position.")} <= positions


def test_a_context_from_memory_cannot_be_added_to_the_mask_features():
    with pytest.raises(UserError, match="to_mask to false"):
        abstract_model(replace(MODEL, slice_position=replace(MODEL.slice_position, memory=True)))
