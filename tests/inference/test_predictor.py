"""Propagation over a volume: orders, objects, corrections, depth and compilations."""

import weakref
from dataclasses import replace

import numpy as np
import pytest

from sam2_3dmed_jax import Prompt, VolumePredictor, new_model
from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference import compiled_programs, feature_store, object_batches
from sam2_3dmed_jax.inference.host_arrays import HostArrays
from sam2_3dmed_jax.inference.prompt_tokens import prompt_tokens
from sam2_3dmed_jax.inference.propagation import merge_directions
from sam2_3dmed_jax.model.build import random_weights
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble

SIZE = 64
# The order of float32 sums depends on the batch size; logits are of order 5.
TOLERANCE = 2e-4
COME_AND_GO = 0.58  # added to the object scores of `busy_model`: its object is on some slices only


def volume(depth, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(depth, SIZE // 8, SIZE // 8, 3))
    return coarse.repeat(8, 1).repeat(8, 2).astype(np.float32)


def click(slice, x=30.0, y=26.0, object_id=1, label=1):
    return Prompt(object_id, slice, [(x, y)], [label])


def busy_model(presence=1.0, **modules):
    """Return a nano model with random instead of zero projections; `presence` is added to its object scores."""
    config = ModelConfig("nano", SIZE, **modules)
    config = replace(config, slice_position=replace(config.slice_position, dim=32, window=4))
    weights = random_weights(config, 3)
    rng = np.random.default_rng(5)
    for path, value in weights.items():
        if path.endswith(("to_features.kernel", "to_mask.kernel")):
            weights[path] = 0.3 * rng.normal(size=value.shape).astype(np.float32)
        if path == "sam_mask_decoder.pred_obj_score_head.layers.2.bias":
            weights[path] = value + presence
        if path.endswith("gamma"):
            weights[path] = value + 0.5
    return assemble(weights, CheckpointInfo(config))


@pytest.fixture(scope="module")
def model():
    return busy_model()


@pytest.fixture(scope="module")
def one_click(model):
    """The result of one click on slice 4 of `volume(9)`."""
    return VolumePredictor(model).predict(volume(9), [click(4)])


@pytest.mark.parametrize("order", ["sequential", "independent"])
def test_untrained_srpp_and_bd_do_not_change_the_masks_of_sam2(order):
    slices = volume(9)
    prompts = [click(4), click(7), Prompt(2, 2, box=(10, 12, 40, 44))]
    plain = VolumePredictor(new_model("nano", SIZE), order).predict(slices, prompts)
    full = VolumePredictor(new_model("nano", SIZE, with_3dmed=True), order).predict(slices, prompts)
    np.testing.assert_array_equal(full.mask_logits, plain.mask_logits)
    np.testing.assert_array_equal(full.object_score_logits, plain.object_score_logits)


def test_trained_srpp_and_bd_change_the_masks(one_click):
    slices = volume(9)
    plain = VolumePredictor(busy_model(srpp=False, bd=False)).predict(slices, [click(4)])
    srpp = VolumePredictor(busy_model(bd=False)).predict(slices, [click(4)])
    assert np.abs(srpp.mask_logits - plain.mask_logits).max() > 0.01
    assert np.abs(one_click.mask_logits - srpp.mask_logits).max() > 0.01


@pytest.mark.parametrize("order", ["sequential", "independent"])
def test_every_slice_has_a_result_for_any_depth_and_prompted_slice(model, order):
    predictor = VolumePredictor(model, order)
    for depth, prompted in ((1, 0), (2, 1), (17, 0), (17, 16), (33, 20)):
        result = predictor.predict(volume(depth), [click(prompted)])
        assert result.mask_logits.shape == (1, depth, SIZE // 4, SIZE // 4)
        assert np.isfinite(result.mask_logits).all()
        assert (np.abs(result.object_score_logits) > 0).all()  # 0 would mean that a slice was left out


@pytest.mark.parametrize("order", ["sequential", "independent"])
def test_an_object_has_the_same_mask_alone_and_among_16_objects(model, order):
    slices = volume(20)
    others = [click(11, 10, 50, 1), Prompt(7, 3, box=(5, 5, 30, 30)), click(18, 50, 10, 9), click(14, 51, 9, 7)]
    others += [click(k % 20, 3.0 * k, 63 - 2.0 * k, k) for k in range(10, 22)]
    alone = VolumePredictor(model, order).predict(slices, [click(8, object_id=4)])
    with_others = VolumePredictor(model, order).predict(slices, [*others, click(8, object_id=4)])
    assert len(with_others.object_ids) == 16 and with_others.object_ids[1] == 4
    np.testing.assert_allclose(with_others.mask_logits[1], alone.mask_logits[0], atol=TOLERANCE)


def test_the_independent_order_is_symmetric_under_a_flip_along_z(model):
    slices, depth = volume(21), 21
    prompts = [click(5), click(12, 40, 40), click(9, 20, 20, 2)]
    flipped = [replace(prompt, slice=depth - 1 - prompt.slice) for prompt in prompts]
    predictor = VolumePredictor(model, "independent")
    forward = predictor.predict(slices, prompts)
    backward = predictor.predict(slices[::-1].copy(), flipped)
    np.testing.assert_allclose(backward.mask_logits[:, ::-1], forward.mask_logits, atol=TOLERANCE)
    np.testing.assert_allclose(backward.object_score_logits[:, ::-1], forward.object_score_logits, atol=TOLERANCE)


def test_a_correction_encodes_no_slice_again_and_changes_the_masks(model, monkeypatch):
    session = VolumePredictor(model).start(volume(12))
    session.add([click(4)])
    before = session.result().mask_logits.copy()
    monkeypatch.setattr(feature_store, "encode_block", lambda *_: pytest.fail("a slice was encoded again"))
    session.add([click(9, 12, 50, label=0)])
    after = session.result().mask_logits
    assert np.abs(after[0, 9] - before[0, 9]).max() > 1e-3
    assert np.abs(after[0, 11] - before[0, 11]).max() > 1e-5  # and slices that follow it


@pytest.mark.parametrize("preview", [False, True])
def test_corrections_of_one_round_do_not_depend_on_their_order(model, preview):
    slices = volume(12)
    corrections = [click(9, 12, 50, label=0), click(2, 40, 12)]
    masks = []
    for order in (corrections, corrections[::-1]):
        session = VolumePredictor(model).start(slices)
        session.add([click(5)])
        session.result()
        for prompt in order:
            session.add([prompt])
            if preview:
                session.preview()
        masks.append(session.result().mask_logits)
    np.testing.assert_array_equal(masks[0], masks[1])


@pytest.mark.long  # by hand: compiles the programs of one more model for both orders and corrections
@pytest.mark.parametrize("order", ["sequential", "independent"])
@pytest.mark.parametrize("rule", ["confident", "self-sorting"])
def test_each_memory_selection_works_in_both_orders_and_corrections_change_its_masks(model, rule, order):
    slices = volume(33)
    session = VolumePredictor(model, order, memory_selection=rule).start(slices)
    session.add([click(16)])
    first = session.result()
    assert np.isfinite(first.mask_logits).all() and (np.abs(first.object_score_logits) > 0).all()
    assert (
        np.abs(first.mask_logits - VolumePredictor(model, order).predict(slices, [click(16)]).mask_logits).max() > 0.01
    )
    session.add([click(30, 10.0, 50.0)])
    second = session.result()
    assert (
        np.isfinite(second.mask_logits).all() and (np.abs(second.mask_logits - first.mask_logits)[0, 28:] > 0.01).any()
    )


def test_a_preview_of_corrections_does_not_change_the_result(model):
    slices = volume(12)
    corrections = [click(9, 12, 50, label=0), click(2, 40, 12)]
    session = VolumePredictor(model).start(slices)
    masks = []
    for with_preview in (False, True):
        session.reset()
        session.add([click(5)])
        session.result()
        session.add(corrections)
        if with_preview:
            preview = session.preview()
        masks.append(session.result().mask_logits)
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(preview[1, 9], masks[1][0, 9])


@pytest.mark.parametrize("order", ["sequential", "independent"])
def test_each_slice_has_a_predicted_iou_and_a_mask_prompt_has_1(model, order):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[20:40, 20:40] = True
    result = VolumePredictor(model, order).predict(volume(9), [click(2), Prompt(2, 3, mask=mask), click(7)])
    assert result.predicted_iou.shape == (2, 9)
    assert (result.predicted_iou > 0).all() and (result.predicted_iou < 1).sum() == 17
    assert result.predicted_iou[1, 3] == 1


def test_the_predicted_iou_of_a_click_is_the_one_of_the_decoder():
    model = busy_model(srpp=False)
    prompt = click(2)
    features = model.encode_image(volume(5)[2:3])
    candidates = model.candidates(model.without_memory(features.embedding), features, prompt_tokens(prompt, SIZE))
    predicted = VolumePredictor(model).predict(volume(5), [prompt]).predicted_iou[0, 2]
    # `nano` has a single candidate. Programs that are compiled in another way round differently.
    assert predicted == pytest.approx(float(candidates.ious[0, 0]), abs=1e-4)


def test_directions_that_disagree_never_give_a_present_object_with_a_gated_mask():
    logits = np.arange(-7, 9, dtype=np.float32).reshape(4, 4)
    absent = np.full((4, 4), -1024, np.float32)
    mask, score = merge_directions((absent, logits), (-1.0, 2.0))
    assert score == 0.5
    np.testing.assert_array_equal(mask, logits)
    mask, score = merge_directions((absent, logits), (-2.0, 1.0))
    assert score == -0.5
    np.testing.assert_array_equal(mask, absent)
    mask, score = merge_directions((logits + 2, logits), (1.0, 2.0))
    assert score == 1.5
    np.testing.assert_array_equal(mask, logits + 1)


def test_independent_propagation_gates_a_mask_exactly_where_its_score_is_not_positive():
    predictor = VolumePredictor(busy_model(presence=COME_AND_GO), "independent")
    result = predictor.predict(volume(21), [click(2), click(18, 40, 40)])
    between = result.object_score_logits[0, 3:18]
    assert (between > 0).any() and (between < 0).any()
    np.testing.assert_array_equal((result.mask_logits < -100).any((-1, -2)), result.object_score_logits <= 0)


def test_a_preview_segments_the_prompted_slices_and_the_result_reuses_them(model):
    slices = volume(9)
    session = VolumePredictor(model).start(slices)
    session.add([click(4), Prompt(2, 6, box=(10, 12, 40, 44))])
    preview = session.preview()
    assert set(preview) == {(1, 4), (2, 6)}
    result = session.result()
    np.testing.assert_array_equal(result.mask_logits[0, 4], preview[1, 4])
    np.testing.assert_array_equal(result.mask_logits[1, 6], preview[2, 6])
    without_preview = VolumePredictor(model).predict(slices, [click(4), Prompt(2, 6, box=(10, 12, 40, 44))])
    np.testing.assert_array_equal(result.mask_logits, without_preview.mask_logits)


def test_a_second_click_before_propagation_refines_the_mask_of_the_first(model):
    slices = volume(9)
    session = VolumePredictor(model).start(slices)
    session.add([click(4)])
    first = session.preview()[1, 4]
    session.add([click(4, 40, 12, label=0)])
    refined = session.preview()[1, 4]
    at_once = VolumePredictor(model).predict(slices, [click(4), click(4, 40, 12, label=0)]).mask_logits[0, 4]
    assert np.abs(refined - first).max() > 1e-3
    assert np.abs(refined - at_once).max() > 1e-3  # the second click is combined with the first mask
    np.testing.assert_array_equal(session.result().mask_logits[0, 4], refined)


def test_a_session_that_is_reset_keeps_its_features(model, one_click, monkeypatch):
    session = VolumePredictor(model).start(volume(9))
    session.add([click(2, object_id=3)])
    session.result()
    session.reset()
    with pytest.raises(UserError, match="the session has none"):
        session.result()
    monkeypatch.setattr(feature_store, "encode_block", lambda *_: pytest.fail("a slice was encoded again"))
    session.add([click(4)])
    np.testing.assert_array_equal(session.result().mask_logits, one_click.mask_logits)


def test_volumes_of_different_depth_share_their_compiled_programs(model):
    predictor = VolumePredictor(model)
    predictor.predict(volume(18), [click(3)])
    programs = (compiled_programs.propagate_block, compiled_programs.segment_from_points, feature_store.encode_block)
    compilations = [program._cache_size() for program in programs]
    predictor.predict(volume(27), [click(22)])
    assert [program._cache_size() for program in programs] == compilations


def test_weights_are_arguments_of_the_compiled_propagation(model):
    slices = volume(5)
    one = VolumePredictor(model).predict(slices, [click(2)])
    size = compiled_programs.propagate_block._cache_size()
    other = busy_model()
    other.no_mem_embed[...] = other.no_mem_embed[...] + 1.0
    two = VolumePredictor(other).predict(slices, [click(2)])
    assert compiled_programs.propagate_block._cache_size() == size
    assert np.abs(one.mask_logits - two.mask_logits).max() > 1e-3


def test_a_mask_prompt_is_the_result_of_its_slice_and_an_empty_mask_means_absent(model):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[16:40, 20:44] = True
    result = VolumePredictor(model).predict(
        volume(7), [Prompt(1, 3, mask=mask), Prompt(1, 6, mask=np.zeros((SIZE, SIZE), bool))]
    )
    np.testing.assert_array_equal(result.mask_logits[0, 3] > 0, mask[2::4, 2::4])
    assert result.object_score_logits[0, 3] == 10 and result.object_score_logits[0, 6] == -10
    assert not (result.mask_logits[0, 6] > 0).any()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (click(12), "slices 0 to 11"),
        (click(-1), "slices 0 to 11"),
        (click(3, 64.0), "outside the slice"),
        (Prompt(1, 3), "is empty"),
        (Prompt(1, 3, [(1, 1)], [2]), "labels"),
        (Prompt(1, 3, [(1, 1)], [1, 1]), "one label per point"),
        (Prompt(1, 3, box=(20, 20, 10, 30)), "smaller x and y"),
        (Prompt(1, 3, mask=np.zeros((8, 8), bool)), "64, 64"),
        (Prompt(1, 3, [(1, 1)], [1], mask=np.zeros((SIZE, SIZE), bool)), "excludes points"),
    ],
)
def test_a_prompt_that_does_not_fit_is_rejected_and_no_prompt_is_added(model, prompt, message):
    session = VolumePredictor(model).start(volume(12))
    with pytest.raises(UserError, match=message):
        session.add([click(2, object_id=5), prompt])
    with pytest.raises(UserError, match="the session has none"):
        session.result()


def test_slices_of_another_size_are_rejected(model):
    with pytest.raises(UserError, match=r"\[D, 64, 64, 3\]"):
        VolumePredictor(model).start(np.zeros((4, 32, 32, 3), np.float32))


@pytest.fixture
def seven_objects(monkeypatch):
    """Prompts of seven objects, two of them on two slices, which are propagated in batches of four and three rows."""
    monkeypatch.setattr(object_batches, "object_rows", lambda: (1, 4))
    prompts = [click(k % 9, 6.0 * k, 60 - 5.0 * k, k) for k in range(1, 8)]
    return [*prompts, click(2, 40, 40, 3), click(7, 20, 20, 7)]


@pytest.mark.parametrize(
    "order",
    [pytest.param("sequential", marks=pytest.mark.slow), pytest.param("independent", marks=pytest.mark.long)],
)
def test_batches_of_objects_share_one_compilation_and_give_the_mask_of_each_object(model, order, seven_objects):
    slices, notes, depth = volume(9), set(), 9
    predictor = VolumePredictor(model, order)
    compiled = compiled_programs.propagate_block._cache_size()
    result = predictor.predict(slices, seven_objects, lambda what, done, total, note="": notes.add(note))
    assert compiled_programs.propagate_block._cache_size() <= compiled + 1
    assert notes == {"", "objects 1-4 of 7", "objects 5-7 of 7"}
    assert result.object_ids == tuple(range(1, 8)) and result.mask_logits.shape == (7, depth, SIZE // 4, SIZE // 4)
    for object_id in (1, 6):
        own = [prompt for prompt in seven_objects if prompt.object_id == object_id]
        alone = predictor.predict(slices, own)
        np.testing.assert_allclose(result.logits_of(object_id), alone.mask_logits[0], atol=TOLERANCE)
        scores = result.object_score_logits[object_id - 1], result.predicted_iou[object_id - 1]
        np.testing.assert_allclose(scores, (alone.object_score_logits[0], alone.predicted_iou[0]), atol=TOLERANCE)


@pytest.mark.slow
def test_a_session_in_batches_reports_each_slice_once_and_takes_corrections(model, seven_objects):
    slices, reported = volume(9), []
    predictor = VolumePredictor(model)
    session = predictor.start(slices)
    session.add(seven_objects)
    kept = session.result(lambda object_id, index, logits: reported.append((object_id, index)))
    assert len(reported) == len(set(reported)) == 7 * 9
    # `predict` forgets each batch, and runs the same programs.
    np.testing.assert_array_equal(kept.mask_logits, predictor.predict(slices, seven_objects).mask_logits)
    session.add([click(6, 20, 20, 1, label=0)])
    corrected = session.result()
    assert (corrected.mask_logits[0, 6] != kept.mask_logits[0, 6]).any()
    for prompt in seven_objects:  # their slices keep their own results
        row = prompt.object_id - 1
        np.testing.assert_array_equal(corrected.mask_logits[row, prompt.slice], kept.mask_logits[row, prompt.slice])


@pytest.mark.slow
def test_a_session_that_forgets_has_the_arrays_of_one_batch_of_objects_at_a_time(model, seven_objects, monkeypatch):
    arrays, in_use = [], []
    zeros = HostArrays.zeros

    def recorded(self, shape, dtype):
        array = zeros(self, shape, dtype)
        if shape in ((9, (SIZE // 16) ** 2, model.config.mem_dim), (9, SIZE // 4, SIZE // 4)):
            arrays.append(weakref.ref(array))
            in_use.append(sum(array() is not None for array in arrays))
        return array

    monkeypatch.setattr(HostArrays, "zeros", recorded)
    VolumePredictor(model).predict(volume(9), seven_objects)
    assert in_use == [*range(1, 9), *range(1, 7)]  # memories and logits of four objects, then of three
