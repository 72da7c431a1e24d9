"""Plots show the given numbers: matplotlib stores each text as a comment in the SVG, which is read here."""

import re

import numpy as np
import pytest

from sam2_3dmed_jax.evaluation.report import plots
from sam2_3dmed_jax.metrics.statistics import spread


def texts(svg: bytes) -> list[str]:
    return re.findall("<!-- (.*?) -->", svg.decode())


def places(svg: bytes) -> dict[str, float]:
    """Return the distance in points of the start of each text from the left edge of the picture."""
    found = re.findall(r"<!-- (.*?) -->\s*<g[^>]*translate\(([-\d.]+)", svg.decode())
    return {text: float(x) for text, x in found}


def box(name: str, *values: float, method: str = "") -> plots.Box:
    cases = np.array(values)
    ends = None if np.isnan(cases).all() else [float(np.nanmin(cases)), float(np.nanmax(cases))]
    return plots.Box(name, method, cases, {**spread(cases[:, None]), "ci95": ends})


def test_box_plots_name_their_classes_and_use_a_logarithmic_axis_only_for_misses():
    near, absent = box("$b$", 3.0, 4.0, 5.0), box("never", np.nan, np.nan)
    boxes = [box("a", 1.0, 2.0, np.nan), near, absent]
    drawn = texts(plots.boxes("hd95_mm", boxes))
    assert {"a", "$b$", "never", "HD95 (mm)"} <= set(drawn) and not plots.is_logarithmic("hd95_mm", boxes)
    boxes = [box("a", 500.0, 2.0, np.nan), near, absent]
    drawn = texts(plots.boxes("hd95_mm", boxes))
    assert plots.is_logarithmic("hd95_mm", boxes) and {"10", "100"} <= set(drawn)
    assert not any("math" in text for text in drawn)
    assert {"0", "10", "100"} <= set(texts(plots.boxes("hd95_mm", [box("a", 205.0, 225.0)])))


def test_box_plots_of_two_methods_name_each_class_once_and_both_methods():
    boxes = [box(name, 0.5, 0.6, method=method) for name in ("liver", "spleen") for method in ("ours", "theirs")]
    drawn = texts(plots.boxes("dice", boxes))
    assert [drawn.count(text) for text in ("liver", "spleen", "ours", "theirs")] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["W" * 60, "M" * 30, "il" * 12, "spleen"])
def test_no_label_of_a_box_plot_is_cut_at_the_left_edge(name: str):
    assert min(places(plots.boxes("dice", [box(name, 0.5, 0.6)])).values()) > 2


def test_long_names_that_start_alike_stay_distinguishable():
    names = [f"a structure with a rather long anatomical name, number {number}" for number in range(3)]
    drawn = texts(plots.boxes("dice", [box(name, 0.5, 0.6) for name in names]))
    assert {text[-8:] for text in drawn if text.startswith("a structure")} == {"number 0", "number 1", "number 2"}


@pytest.mark.parametrize("sizes", [(170.0, 180.0), (100.0,), (86.0, 320.0), (0.3, 0.4), (0.002, 900.0), ()])
def test_the_axis_of_sizes_has_at_least_two_numbers_around_the_cases(sizes: tuple[float, ...]):
    volumes = np.array([*sizes, 0.0])
    drawn = places(plots.dice_against_size({"a": volumes}, {"a": np.full(len(volumes), 0.5)}))
    below_axis = [float(text) for text in drawn if re.fullmatch(r"[\d.]+(e[-+]\d+)?", text)]
    numbers = [number for number in below_axis if number not in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0) or number == 1.0]
    assert len(numbers) >= 2
    if sizes:
        assert min(below_axis) <= min(sizes) and max(numbers) >= max(sizes)


def test_curves_over_numbers_of_slices_have_no_half_slices():
    points = [{"x": x, "series": "ours", "mean": 0.5, "ci95": None} for x in (1, 2, 3)]
    numbers = [text for text in texts(plots.curves(points, "prompted slices", "score")) if re.match(r"\d", text)]
    assert {"1", "2", "3"} <= set(numbers) and not {"1.5", "2.5", "1.0", "2.0"} & set(numbers)


def test_large_differences_of_volumes_leave_room_for_the_label_of_the_axis():
    reference = np.array([10_000.0, 90_000.0])
    drawn = places(plots.bland_altman(reference / 2, reference, (-3e4, -9e4, 3e4), "an organ"))
    numbers = [x for text, x in drawn.items() if re.search(r"\d{5}", text)]
    assert min(numbers) > drawn["prediction minus reference (mL)"] + 2 > 8


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
    assert b"<svg" in plots.boxes("dice", [box(name, 0.5, 0.6)])
