"""Scores of the challenge, compared with its formulas."""

import numpy as np
import pytest
from scipy import integrate

from experiments.segfm3d.scores import area_over_clicks, dsc_and_nsd
from sam2_3dmed_jax.metrics.surface import surface_metrics
from tests.helpers.segfm3d_files import SPACING, reference


@pytest.mark.parametrize("seed", range(4))
def test_dsc_and_nsd_are_means_over_the_classes_of_the_reference(seed: int):
    rng = np.random.default_rng(seed)
    segmentation = np.where(rng.random(reference().shape) < 0.8, reference(), rng.integers(0, 4, reference().shape))
    dsc, nsd = [], []
    for value in (1, 2):
        seg, gt = segmentation == value, reference() == value
        dsc.append(2 * (seg & gt).sum() / (seg.sum() + gt.sum()))
        # This definition is tested against DeepMind's package, which the challenge copied.
        nsd.append(surface_metrics(seg, gt, SPACING, 2.0, "surface-distance")["nsd"])
    # The order in which the areas of surfaces are summed.
    assert dsc_and_nsd(segmentation, reference(), [1, 2], SPACING) == pytest.approx(
        (np.mean(dsc), np.mean(nsd)), abs=1e-12
    )


def test_a_missed_class_counts_as_zero():
    segmentation = np.where(reference() == 1, 1, 0)
    assert dsc_and_nsd(segmentation, reference(), [1, 2], SPACING) == (0.5, 0.5)


@pytest.mark.parametrize(("inside", "has_surface"), [(2, False), (3, True)])
def test_nsd_is_zero_unless_dsc_is_above_a_fifth(inside: int, has_surface: bool):
    gt, segmentation = np.zeros((2, 4, 30), np.uint8), np.zeros((2, 4, 30), np.uint8)
    gt[0, 0, :10] = 1
    segmentation[0, 0, 10 - inside : 20 - inside] = 1  # DSC is inside / 10
    dsc, nsd = dsc_and_nsd(segmentation, gt, [1], (1, 1, 1))
    assert dsc == inside / 10 and (nsd > 0) == has_surface


def test_the_area_is_by_the_trapezoid_rule_over_the_five_clicks_only():
    curve = [0.9, 0.1, 0.4, 0.5, 0.7, 0.6]
    expected = integrate.cumulative_trapezoid(np.array(curve[-5:]), np.arange(5))[-1]
    assert area_over_clicks(curve) == pytest.approx(expected, abs=1e-15)
    assert area_over_clicks(curve) == pytest.approx(0.05 + 0.4 + 0.5 + 0.7 + 0.3)
    assert area_over_clicks([0.0] + [1.0] * 5) == 4.0
