"""The losses, each compared under changes that must not affect it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.training import losses
from sam2_3dmed_jax.training.objective import weight_at


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def disc(size=32, radius=6.0, x=14.0, y=17.0):
    rows, columns = np.mgrid[:size, :size]
    return ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).astype(np.float32)


@pytest.mark.parametrize("unit", [np.arange(10.0), np.arange(10.0) * 2.5 - 7])
def test_the_srpp_target_of_a_pair_of_slices_ignores_direction_and_stride(unit):
    def target(slices):  # of the pair (slice 6, slice 2)
        matrix = np.asarray(losses.srpp_targets(jnp.asarray(unit[slices], jnp.float32)[None], 3.0))[0]
        return matrix[slices.index(6), slices.index(2)]

    expected = (unit[2] - unit[6]) / 3.0
    for slices in ([0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [2, 4, 6, 8], [8, 6, 4, 2]):
        assert target(slices) == pytest.approx(expected, abs=1e-6)


def test_the_srpp_loss_is_the_papers_mean_over_ordered_pairs():
    predicted, positions = random(1, 4, 4), np.array([[3.0, 4.0, 5.0, 6.0]], np.float32)
    expected = np.mean([(predicted[0, i, j] - (j - i)) ** 2 for i in range(4) for j in range(4) if i != j])
    loss = losses.srpp_loss(jnp.asarray(predicted), positions, positions, jnp.ones((1, 4), bool), 1.0)
    assert float(loss.mean()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stride", [1, 5])
def test_the_srpp_loss_leaves_out_pairs_across_a_jump_and_keeps_those_of_a_stride(stride):
    """A clip jumps from slice 3 to slice 60; positions are in mm, and the limit is in slices."""
    index = np.array([[3.0, *(60.0 + stride * np.arange(3))]], np.float32)
    predicted, valid = jnp.asarray(random(1, 4, 4)), jnp.ones((1, 4), bool)
    jump = losses.srpp_loss(predicted, index * 2.5, index, valid, 6.0)
    without = losses.srpp_loss(predicted[:, 1:, 1:], index[:, 1:] * 2.5, index[:, 1:], valid[:, 1:], 6.0)
    assert float(jump.divisor) == 6
    assert float(jump.mean()) == pytest.approx(float(without.mean()), rel=1e-6)


def test_the_srpp_loss_ignores_padding_slices():
    predicted, positions = random(1, 4, 4), np.array([[3.0, 4.0, 99.0, 99.0]], np.float32)
    valid = jnp.array([[True, True, False, False]])
    short = losses.srpp_loss(predicted[:, :2, :2], positions[:, :2], positions[:, :2], valid[:, :2], 6.0)
    loss = losses.srpp_loss(predicted, positions, positions, valid, 6.0)
    assert float(loss.mean()) == pytest.approx(float(short.mean()))


@pytest.mark.parametrize("normaliser", ["balanced", "paper"])
def test_the_bd_loss_does_not_change_when_the_image_is_tiled_larger(normaliser):
    logits, target = random(32, 32), np.asarray(losses.boundary_target(jnp.asarray(disc()), 3))
    one = losses.boundary_loss(logits[None], target[None], jnp.ones(1, bool), normaliser)
    tiled = losses.boundary_loss(
        np.tile(logits, (2, 3))[None], np.tile(target, (2, 3))[None], jnp.ones(1, bool), normaliser
    )
    assert float(tiled.mean()) == pytest.approx(float(one.mean()), rel=1e-5)


def test_the_balanced_bd_loss_does_not_vanish_on_a_nodule_unlike_the_papers():
    def loss(radius, normaliser):
        target = losses.boundary_target(jnp.asarray(disc(256, radius, 100, 100)), 3)
        return float(losses.boundary_loss(jnp.zeros((256, 256)), target, jnp.array(True), normaliser).mean())

    assert loss(2.0, "balanced") == pytest.approx(np.log(2), rel=1e-5) == loss(60.0, "balanced")
    assert loss(2.0, "paper") < 0.1 * loss(60.0, "paper")


def test_the_boundary_is_a_ring_around_the_edge():
    mask = np.zeros((20, 20), np.float32)
    mask[5:15, 5:15] = 1
    ring = np.asarray(losses.boundary_target(jnp.asarray(mask), 3))
    assert ring[10].tolist() == [0] * 4 + [1, 1] + [0] * 8 + [1, 1] + [0] * 4


def test_dice_is_over_all_slices_of_a_clip_that_contain_the_object():
    target = np.stack([disc(), disc(radius=3.0), np.zeros((32, 32), np.float32)])[:, None]  # [D, 1, H, W]
    logits = random(3, 1, 32, 32)
    holds = jnp.asarray(target.any((-2, -1)))
    whole = losses.clip_dice(logits, target, holds)
    noisy = losses.clip_dice(np.concatenate([logits[:2], logits[2:] + 9]), target, holds)
    assert float(whole.divisor) == 1 and float(whole.mean()) == pytest.approx(float(noisy.mean()))
    probability = 1 / (1 + np.exp(-logits[:2].astype(np.float64)))
    overlap, sizes = (probability * target[:2]).sum(), probability.sum() + target[:2].sum()
    assert float(whole.mean()) == pytest.approx(1 - (2 * overlap + 1) / (sizes + 1), rel=1e-5)


def test_the_object_score_loss_counts_every_propagated_slice():
    scores, holds = jnp.array([[2.0], [-3.0], [1.0]]), jnp.array([[True], [False], [False]])
    loss = losses.object_score_bce(scores, holds, jnp.array([[True], [True], [False]]))
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-3.0))) / 2
    assert float(loss.divisor) == 2 and float(loss.mean()) == pytest.approx(expected, rel=1e-6)


def test_the_best_candidate_is_an_eligible_one():
    target = disc()
    good, bad = 8 * (target - 0.5), -8 * (target - 0.5)
    logits = np.stack([np.stack([good, bad, bad, good]), np.stack([bad, good, bad, bad])])
    best = losses.best_candidate(jnp.asarray(logits), jnp.asarray([target, target]), jnp.array([True, False]))
    assert best.tolist() == [3, 0]


def test_the_iou_loss_compares_with_the_true_iou_of_eligible_candidates():
    target = disc()
    exact, twice = 8 * (target - 0.5), 8 * (disc(radius=12.0) - 0.5)
    true = target.sum() / disc(radius=12.0).sum()
    logits = np.stack([twice, exact, exact, twice])[None]
    perfect = jnp.array([[0.0, 1.0, 1.0, true]])
    on = jnp.array([True])
    assert float(losses.iou_error(perfect, logits, target[None], on, on).mean()) == pytest.approx(0, abs=1e-6)
    assert float(losses.iou_error(perfect, logits, target[None], ~on, on).mean()) == pytest.approx(true, abs=1e-6)


def test_a_loss_weight_may_be_a_schedule():
    schedule = ((0, 0.0), (100, 0.1), (200, 0.1))
    values = [float(weight_at(schedule, jnp.asarray(step))) for step in (0, 50, 100, 500)]
    assert values == pytest.approx([0.0, 0.05, 0.1, 0.1])
    assert float(weight_at(0.3, jnp.asarray(7))) == pytest.approx(0.3)


def test_a_loss_with_nothing_to_count_and_its_gradient_are_zero():
    def loss(logits):
        none = jnp.zeros((2, 1), bool)
        target = jnp.zeros((2, 1, 8, 8))
        terms = (losses.mask_bce(logits, target, none), losses.clip_dice(logits, target, none))
        bd = losses.boundary_loss(logits, target, none, "balanced")
        return sum(term.mean() for term in (*terms, bd))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(random(2, 1, 8, 8)))
    assert float(value) == 0 and float(jnp.abs(gradient).max()) == 0
