"""Prompts of training as users give them: several prompted slices, mask prompts, and clicks on errors."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax import Prompt, VolumePredictor, load_model
from sam2_3dmed_jax.config import ClipConfig, CorrectionConfig, LossConfig, ModelConfig, PromptConfig
from sam2_3dmed_jax.data.case_reader import StoredSlices
from sam2_3dmed_jax.model.build import abstract_model, random_weights
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble
from sam2_3dmed_jax.runtime.imagenet import normalise
from sam2_3dmed_jax.sam2.layers import resize_masks
from sam2_3dmed_jax.sam2.parameters import merge, split
from sam2_3dmed_jax.training.compilation import compile_step
from sam2_3dmed_jax.training.error_pixels import draw_error_clicks
from sam2_3dmed_jax.training.losses import LOSSES, clip_inputs
from sam2_3dmed_jax.training.methods.clips import ClipMethod
from sam2_3dmed_jax.training.objective import objective
from sam2_3dmed_jax.training.setup import set_up
from sam2_3dmed_jax.training.unroll import unroll_clips
from tests.helpers.quick import ONLY_DECODER, QUICK
from tests.helpers.run_files import rows
from tests.training.conftest import Small

pytestmark = pytest.mark.slow  # compiles a model with clicks twice

SIZE, D, P, Q, C = 64, 4, 2, 1, 2
MODEL = ModelConfig("nano", SIZE, srpp=False, bd=False)
ROWS = 3


@pytest.fixture(scope="module")
def weights():
    drawn = random_weights(MODEL, 1)
    drawn["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += 2.0
    return drawn


def clips(clicks, further=(-1, -1, -1), corrected=(-1, -1, -1), by_mask=(False, False, False)):
    """Three clips of noise with a square, all prompted by one point on slice 0; `clicks` per slot, `[ROWS, P + Q]`."""
    rng = np.random.default_rng(0)
    masks = np.zeros((ROWS, D, 1, SIZE, SIZE), np.uint8)
    for d in range(D):
        masks[:, d, 0, 10 : 40 - 4 * d, 20:44] = 1
    batch = {
        "slices": rng.random((ROWS, D, SIZE, SIZE), dtype=np.float32),
        "masks": masks,
        "slice_valid": np.ones((ROWS, D), bool),
        "slice_index": np.tile(np.arange(D, dtype=np.float32), (ROWS, 1)),
        "object_valid": np.ones((ROWS, 1), bool),
        "prompt_step": np.zeros((ROWS, 1), np.int32),
        "coords": np.zeros((ROWS, 1, 4, 2), np.float32),
        "point_labels": np.full((ROWS, 1, 4), -1, np.int32),
        "token_valid": np.tile(np.array([True, True, False, False]), (ROWS, 1, 1)),
        "multimask": np.ones((ROWS, 1), bool),
        "further_step": np.array(further, np.int32).reshape(ROWS, 1, 1),
        "corrected_step": np.array(corrected, np.int32).reshape(ROWS, 1, 1),
        "mask_prompt": np.array(by_mask).reshape(ROWS, 1),
        "clicks": np.array(clicks, np.int32).reshape(ROWS, 1, P + Q),
        "click_draw": np.full((ROWS, 1, P + Q, C), -1.0, np.float32),
    }
    batch["coords"][:, 0, 0], batch["point_labels"][:, 0, 0] = (30, 20), 1
    for name in ("coords", "point_labels", "token_valid", "multimask"):
        batch[f"further_{name}"] = batch[name][:, :, None].copy()
    return batch


NO_CLICKS = np.zeros((ROWS, P + Q), int)


@pytest.fixture(scope="module")
def unrolled():
    graphdef = abstract_model(MODEL)[0]
    return jax.jit(lambda weights, batch: unroll_clips(merge(graphdef, weights), batch), compiler_options=QUICK)


@pytest.fixture(scope="module")
def predictor(weights):
    return VolumePredictor(assemble(weights, CheckpointInfo(MODEL)), postprocessing=False)


def session_on(predictor, batch, row):
    # Pointer offsets are divided by min(depth, 16) - 1, and training assumes volumes of at least 16 slices.
    slices = np.concatenate([batch["slices"][row], np.zeros((12, SIZE, SIZE), np.float32)])
    return predictor.start(normalise(slices))


def user_click(logits, reference):
    """The point and label of the click at the deepest point of the error of logits at S/4."""
    predicted = resize_masks(jnp.asarray(logits)[None], SIZE) > 0
    placed = draw_error_clicks(predicted, jnp.asarray(reference)[None] > 0, jnp.array([-1.0]))
    return tuple(np.asarray(placed.coords[0]).tolist()), int(placed.inside[0])


def test_without_clicks_and_further_prompts_nothing_changes(unrolled, weights):
    batch = clips(NO_CLICKS)
    plain = {name: value for name, value in batch.items() if not name.startswith(("further", "click", "corr", "mask_"))}
    with_room, without = unrolled(weights, batch), unrolled(weights, plain)
    assert without.clicks is None
    np.testing.assert_allclose(with_room.mask_logits, without.mask_logits, atol=2e-4)  # other sums of masked slots


def test_clicks_on_the_prompted_slice_give_the_masks_of_a_session(unrolled, weights, predictor):
    """After each click, and on the other slices, which remember the last one."""
    batch = clips([(2, 0, 0), (1, 0, 0), (0, 0, 0)])
    out = unrolled(weights, batch)
    for row, count in enumerate((2, 1, 0)):
        session = session_on(predictor, batch, row)
        session.add([Prompt(1, 0, [(30, 20)], [1])])
        logits = session.preview()[1, 0]
        np.testing.assert_allclose(out.mask_logits[0, row], logits, atol=5e-4)
        for click in range(count):
            point, label = user_click(logits, batch["masks"][row, 0, 0])
            session.add([Prompt(1, 0, [point], [label])])
            logits = session.preview()[1, 0]
            np.testing.assert_allclose(out.clicks.candidates.logits[0, click, row, 0], logits, atol=5e-4)
        propagated = session.result().mask_logits[0, 1:D]
        np.testing.assert_allclose(out.mask_logits[1:, row], propagated, atol=1e-3)


def test_further_prompted_slices_are_remembered_by_all_slices_as_in_a_session(unrolled, weights, predictor):
    batch = clips([(0, 0, 0), (0, 1, 0), (0, 0, 0)], further=(2, 3, -1))
    out = unrolled(weights, batch)
    for row, further in enumerate((2, 3)):
        session = session_on(predictor, batch, row)
        session.add([Prompt(1, index, [(30, 20)], [1]) for index in (0, further)])
        logits = session.preview()[1, further]
        np.testing.assert_allclose(out.mask_logits[further, row], logits, atol=5e-4)
        if row == 1:
            point, label = user_click(logits, batch["masks"][row, further, 0])
            session.add([Prompt(1, further, [point], [label])])
        others = [index for index in range(1, D) if index != further]
        np.testing.assert_allclose(
            out.mask_logits[np.array(others), row], session.result().mask_logits[0, others], atol=1e-3
        )


def test_a_corrected_slice_becomes_a_prompted_slice_for_later_ones(unrolled, weights, predictor):
    """As in a session that is propagated to the slice, corrected there, and propagated again."""
    batch = clips([(0, 0, 1), (0, 0, 2), (0, 0, 0)], corrected=(1, 1, 1))
    out, without = unrolled(weights, batch), unrolled(weights, clips(NO_CLICKS))
    np.testing.assert_allclose(out.mask_logits[:2], without.mask_logits[:2], atol=1e-5)  # before the clicks
    np.testing.assert_allclose(out.mask_logits[:, 2], without.mask_logits[:, 2], atol=2e-4)
    for row in (0, 1):
        assert np.abs(out.mask_logits[2:, row] - without.mask_logits[2:, row]).max() > 1e-3
    session = session_on(predictor, batch, 0)
    session.add([Prompt(1, 0, [(30, 20)], [1])])
    point, label = user_click(session.result().mask_logits[0, 1], batch["masks"][0, 1, 0])
    session.add([Prompt(1, 1, [point], [label])])
    np.testing.assert_allclose(out.clicks.candidates.logits[2, 0, 0, 0], session.preview()[1, 1], atol=1e-3)
    # A session propagates again from slice 1, with memories of the first pass behind it that training has not.
    assert np.isfinite(session.result().mask_logits).all()


def test_a_mask_prompt_is_the_output_and_the_memory_of_its_slice_and_has_no_loss(unrolled, weights, predictor):
    batch = clips(NO_CLICKS, by_mask=(True, False, False))
    out = unrolled(weights, batch)
    session = session_on(predictor, batch, 0)
    session.add([Prompt(1, 0, mask=batch["masks"][0, 0, 0])])
    np.testing.assert_allclose(out.mask_logits[:, 0], session.result().mask_logits[0, :D], atol=1e-3)
    counted = np.asarray(clip_inputs(out, batch).slices.counted)
    assert counted[:, 0].tolist() == [False, True, True, True] and counted[:, 1:].all()


def test_each_click_has_losses_of_its_own(unrolled, weights):
    batch = clips([(2, 0, 1), (1, 0, 0), (0, 0, 0)], corrected=(2, -1, -1))
    out = unrolled(weights, batch)
    method = ClipMethod(MODEL)
    terms = method.terms(out, batch, LossConfig(focal=20.0))
    slices, clicks = ROWS * D, 4
    for column in ("loss_bce", "loss_focal", "loss_iou", "loss_object_score"):
        assert float(terms[column].divisor) == slices + clicks, column
    # A click counts as one slice of its row, of which Dice is a mean per row.
    assert float(terms["loss_dice"].divisor) == pytest.approx(ROWS + clicks / D)
    inputs = clip_inputs(out, batch)
    assert inputs.clicks is not None
    counted = np.asarray(inputs.clicks.counted).reshape(P + Q, C, ROWS)
    assert counted[0].T.tolist() == [[True, True], [True, False], [False, False]]
    assert counted[2].T.tolist() == [[True, False], [False, False], [False, False]] and not counted[1].any()
    np.testing.assert_array_equal(  # the third slot is the corrected slice 2
        np.asarray(inputs.clicks.target).reshape(P + Q, C, ROWS, SIZE, SIZE)[2, 0, 0], batch["masks"][0, 2, 0]
    )


def test_the_gradient_passes_from_a_click_through_the_masks_before_it(weights):
    """Into the dense prompt, and through it into the result of the click before."""
    graphdef = abstract_model(MODEL)[0]
    batch = jax.tree.map(jnp.asarray, clips([(2, 0, 0)] * ROWS))

    path = "sam_prompt_encoder.mask_downscaling.0.kernel"  # only dense prompts pass through it

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.value_and_grad
    def second_click(kernel, weights):
        out = unroll_clips(merge(graphdef, {**weights, path: kernel}), batch)
        return jnp.square(out.clicks.candidates.logits[0, 1]).mean()

    _, gradient = second_click(weights[path], weights)
    norm = float(jnp.linalg.norm(gradient))
    assert norm > 1e-6
    step = 3e-3 / norm  # float32 differences of a loss of order 1
    above, below = (second_click(weights[path] + sign * step * gradient, weights)[0] for sign in (1, -1))
    assert float(above - below) / (2 * step) == pytest.approx(norm**2, rel=0.05)


def test_the_focal_loss_is_neither_computed_nor_logged_without_a_weight(unrolled, weights):
    batch = clips(NO_CLICKS)
    out = unrolled(weights, batch)
    method = ClipMethod(MODEL)
    assert "loss_focal" not in method.terms(out, batch) | method.terms(out, batch, LossConfig())
    sam2 = LossConfig(bce=0.0, focal=20.0)
    terms = method.terms(out, batch, sam2)
    loss, values = objective(terms, LOSSES["sam2"], sam2, jnp.asarray(0))
    others = values["loss_dice"] + values["loss_iou"] + values["loss_object_score"]
    assert float(loss) == pytest.approx(float(20 * values["loss_focal"] + others), rel=1e-5)


def test_a_run_with_corrections_that_failed_resumes_to_the_same_bits(one_step, tmp_path):
    prompts = PromptConfig(
        mask_prompt_probability=0.3, prompted_slices=2, corrections=CorrectionConfig(clicks=2, corrected_slices=1)
    )
    config = one_step.replace(
        data=replace(one_step.data, slices=3, clips=ClipConfig(), prompts=prompts),
        training=replace(
            one_step.training, steps=4, log_every=1, checkpoint_every=2, images_every=0, frozen=ONLY_DECODER
        ),
    )
    compiled = compile_step(set_up(config), StoredSlices(48, 48, resized=True))
    small = Small(compiled.config, compiled)

    class StopError(Exception):
        pass

    def stop(what, done, total, note=""):
        if done == 3:
            raise StopError

    small.train(tmp_path / "whole")
    with pytest.raises(StopError):
        small.train(tmp_path / "run", stop)
    small.train(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole") and len(rows(tmp_path / "run")) == 4
    expected = split(load_model(tmp_path / "whole" / "final"))[1]
    for path, value in split(load_model(tmp_path / "run" / "final"))[1].items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


@pytest.mark.parametrize("part", ["clicks", "further_step"])
def test_rows_do_not_depend_on_the_prompts_of_other_rows(unrolled, weights, part):
    batch = clips([(1, 0, 0), (0, 0, 0), (0, 0, 0)], further=(2, -1, -1))
    others = {**batch, part: batch[part].copy()}
    others[part][1] = [[2, 0, 0]] if part == "clicks" else 3
    one, two = unrolled(weights, batch), unrolled(weights, others)
    np.testing.assert_allclose(two.mask_logits[:, 0], one.mask_logits[:, 0], atol=1e-5)
    assert np.abs(two.mask_logits[:, 1] - one.mask_logits[:, 1]).max() > 1e-3
