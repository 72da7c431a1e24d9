"""Summaries of rows: means, counts, empty masks, and that a missed structure never improves a mean."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.class_rows import score_labels
from sam2_3dmed_jax.evaluation.result_files import case_columns
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.evaluation.summary import summarise
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.mask_pair import MetricSettings
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.label_classes import LabelClass, parse_classes

SHAPE = (4, 8, 8)
DISTANCES = ("hd95_mm", "hd_mm", "assd_mm")
GRID = Grid((8, 8, 4), np.diag([-1.0, -1.0, 3.0, 1.0]))


def row(dice: float, name: str = "spleen", empty: str = "", case: str = "a", **more: Any) -> dict[str, Any]:
    return {**dict.fromkeys(case_columns(), 0.0), "case": case, "class": name, "dice": dice, "empty": empty, **more}


@st.composite
def blocks(draw: st.DrawFn) -> np.ndarray:
    """Draw a label map of boxes of the classes 1 and 2, each of which may be absent."""
    labels = np.zeros(SHAPE, int)
    for value in draw(st.lists(st.sampled_from((1, 2)), max_size=3)):
        corner = [draw(st.integers(0, n - 1)) for n in SHAPE]
        size = [draw(st.integers(1, 5)) for _ in SHAPE]
        labels[tuple(slice(at, at + n) for at, n in zip(corner, size, strict=True))] = value
    return labels


def test_a_missed_organ_counts_and_an_absent_one_does_not():
    rows = [row(1.0), row(0.0, empty="prediction", case="b"), row(math.nan, empty="both", case="c")]
    spleen = summarise(rows)["classes"]["spleen"]
    expected = {"mean": 0.5, "sd": pytest.approx(math.sqrt(0.5)), "q1": 0.25, "median": 0.5, "q3": 0.75, "n": 2}
    assert {name: spleen["dice"][name] for name in expected} == expected and spleen["dice"]["ci95"] == [0, 1]
    assert spleen["cases"] == 3 and spleen["empty"] == {"both": 1, "prediction": 1, "reference": 0}


def test_the_macro_mean_is_over_classes_and_not_over_cases():
    rows = [row(1.0), row(1.0, case="b"), row(1.0, case="c"), row(0.0, "cancer"), row(math.nan, "nodule", "both")]
    summary = summarise(rows)
    assert summary["macro_dice"] == 0.5 == summary["macro"]["dice"]["mean"]
    assert summary["macro_classes"] == ["spleen", "cancer", "nodule"]


def test_a_union_of_other_classes_is_not_averaged_with_them():
    rows = [
        row(dice, name, labels=labels) for dice, name, labels in ((1.0, "a", "1"), (0.0, "b", "2"), (0.9, "c", "1+2"))
    ]
    summary = summarise(rows)
    assert summary["macro_classes"] == ["a", "b"] and summary["macro_dice"] == 0.5
    assert summarise(rows[2:])["macro_dice"] == 0.9


def test_results_that_were_scored_or_prompted_differently_are_not_averaged():
    for column, values in (("block", ("automatic", "reference-prompted")), ("definition", ("monai", "medpy"))):
        with pytest.raises(UserError, match=f"differ in {column} \\({values[0]}|differ in {column} \\({values[1]}"):
            summarise([row(1.0, case=case, **{column: value}) for case, value in zip("ab", values, strict=True)])
    with pytest.raises(UserError, match="differ in tolerance_mm of spleen"):
        summarise([row(1.0), row(1.0, case="b", tolerance_mm=2.0)])
    with pytest.raises(UserError, match="case a has two results for class spleen and seed 0"):
        summarise([row(1.0, seed="0"), row(0.9, seed="0")])


def test_seeds_and_folds_of_a_method_are_summarised_together_and_separately():
    rows = [
        row(dice, case=case, seed=seed, fold=fold)
        for case, fold, scores in (("a", "0", (0.2, 0.4)), ("b", "1", (0.6, 0.8)))
        for seed, dice in zip("01", scores, strict=True)
    ]
    result = summarise(rows)["classes"]["spleen"]
    assert result["cases"] == result["dice"]["n"] == 2 and result["dice"]["mean"] == pytest.approx(0.5)
    assert result["dice"]["sd_seeds"] == pytest.approx(np.std([0.4, 0.6], ddof=1))
    assert result["dice"]["sd_folds"] == pytest.approx(np.std([0.3, 0.7], ddof=1))


def test_with_the_policy_nan_a_miss_makes_mean_distances_undefined_but_empty_masks_do_not():
    reference = np.zeros(SHAPE, int)
    reference[1:3, 2:5, 2:5] = 1
    empty = np.zeros(SHAPE, int)
    evaluation = EvaluationSettings([LabelClass("organ", (1,))], metrics=MetricSettings(empty="nan"))
    hit, both = (
        score_labels("a", reference, reference, GRID, evaluation),
        score_labels("b", empty, empty, GRID, evaluation),
    )
    missed = score_labels("c", empty, reference, GRID, evaluation)
    fine, spoilt = summarise([*hit, *both]), summarise([*hit, *both, *missed])
    assert fine["classes"]["organ"]["hd95_mm"]["mean"] == fine["macro_hd95_mm"] == 0
    for metric in DISTANCES:
        assert spoilt["classes"]["organ"][metric]["mean"] is None is spoilt["macro"][metric]["mean"]
        assert spoilt["classes"]["organ"][metric]["ci95"] is None
    assert spoilt["macro_dice"] == spoilt["macro_nsd"] == 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(blocks(), blocks()), min_size=1, max_size=2), st.integers(0, 3), st.booleans())
def test_missing_a_structure_never_improves_any_mean(cases: list, missed: int, prompted: bool):
    evaluation = EvaluationSettings(parse_classes("1=organ,2=cancer,1+2=both", {}), "one-click" if prompted else "")
    present = [(at, value) for at, (_, reference) in enumerate(cases) for value in (1, 2) if (reference == value).any()]
    assume(present)
    where, gone = present[missed % len(present)]
    means = []
    for miss in (False, True):
        rows = []
        for number, (prediction, reference) in enumerate(cases):
            result = np.where((prediction == gone) & miss & (number == where), 0, prediction)
            rows += score_labels(str(number), result, reference, GRID, evaluation)
        means.append(summarise(rows))
    before, after = means
    for metric in registry.names_requiring("masks", "surfaces", "prompts"):
        registered = registry.metric(metric)
        if registered is None or not registered.compared:
            continue
        worse = -1 if registered.better == "lower" else 1
        for one, other in (
            (before["macro"][metric]["mean"], after["macro"][metric]["mean"]),
            *(
                (before["classes"][name][metric]["mean"], after["classes"][name][metric]["mean"])
                for name in ("organ", "cancer")
            ),
        ):
            assert (one is None) == (other is None)
            assert one is None or worse * other <= worse * one + 1e-12
