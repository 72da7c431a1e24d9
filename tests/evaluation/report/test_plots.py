"""Plots show the given numbers: matplotlib stores each text as a comment in the SVG, which is read here."""

import re

import numpy as np
import pytest

from sam2_3dmed_jax.evaluation.report import plots
from sam2_3dmed_jax.metrics.statistics import spread


def texts(svg: bytes) -> list[str]:
    return re.findall("<!-- (.*?) -->", svg.decode())


def entry(metric: str, values: np.ndarray) -> dict[str, dict[str, object]]:
    return {metric: {**spread(values[:, None]), "ci95": [float(np.nanmin(values)), float(np.nanmax(values))]}}


def test_box_plots_name_their_classes_and_use_a_logarithmic_axis_only_for_misses():
    values = {"a": np.array([1.0, 2.0, np.nan]), "$b$": np.array([3.0, 4.0, 5.0]), "never": np.full(3, np.nan)}
    summary = {name: entry("hd95_mm", v) if name != "never" else {"hd95_mm": {}} for name, v in values.items()}
    drawn = texts(plots.boxes("hd95_mm", values, summary))
    assert {"a", "$b$", "never", "HD95 (mm)"} <= set(drawn) and not plots.is_logarithmic("hd95_mm", values)
    values["a"][0] = 500.0
    summary["a"] = entry("hd95_mm", values["a"])
    drawn = texts(plots.boxes("hd95_mm", values, summary))
    assert plots.is_logarithmic("hd95_mm", values) and {"10", "100"} <= set(drawn)
    assert not any("math" in text for text in drawn)
    alike = {"a": np.array([205.0, 225.0])}
    assert {"0", "10", "100"} <= set(texts(plots.boxes("hd95_mm", alike, {"a": entry("hd95_mm", alike["a"])})))


def test_the_same_numbers_give_the_same_bytes():
    sizes = {"a": np.array([10.0, 100.0, np.nan])}, {"a": np.array([0.5, 0.9, np.nan])}
    assert plots.dice_against_size(*sizes) == plots.dice_against_size(*sizes)
    assert "reference volume (mL)" in texts(plots.dice_against_size(*sizes))


def test_agreement_of_a_single_case_is_drawn_without_limits():
    one = np.array([10.0])
    assert "an organ" in texts(plots.bland_altman(one, one + 2, (-2.0, None, None), "an organ"))


def test_curves_have_one_line_per_series_and_accept_a_point_without_a_mean():
    points = [
        {"x": x, "series": series, "mean": mean, "ci95": ci}
        for series in ("ours", "theirs")
        for x, mean, ci in ((5, 0.7, (0.6, 0.8)), (0, 0.9, (0.8, 0.95)), (10, None, None))
    ]
    drawn = texts(plots.curves(points, "misplacement (mm)", "Dice"))
    assert {"ours", "theirs", "misplacement (mm)", "Dice"} <= set(drawn)


@pytest.mark.parametrize("name", ["a\nb", "\x07", "x" * 300, "-->", "中文"])
def test_any_name_can_be_drawn(name: str):
    values = {name: np.array([0.5, 0.6])}
    assert b"<svg" in plots.boxes("dice", values, {name: entry("dice", values[name])})
