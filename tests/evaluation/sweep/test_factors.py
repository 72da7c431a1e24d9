"""Settings of a sweep, and specs that are refused."""

from dataclasses import replace

import pytest

from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.sweep.factors import Setting, base_of, check_spec, for_model, settings_of

SPEC = SweepSpec(checkpoints=("c",), data="d", prompt=("point",), misplacement_mm=(0,))


def test_a_product_has_every_combination_once():
    spec = replace(SPEC, misplacement_mm=(0, 2, 5), order=("sequential", "independent"), threshold=(0, 1))
    settings = settings_of(spec)
    assert len(settings) == len(set(settings)) == 12
    assert Setting(misplacement_mm=5.0, order="independent", threshold=1.0) in settings


def test_a_box_has_no_placement_so_its_placements_are_one_setting():
    spec = replace(SPEC, prompt=("point", "box"), placement=("centre", "random"))
    assert [(one.prompt, one.placement) for one in settings_of(spec)] == [
        ("point", "centre"),
        ("point", "random"),
        ("box", "none"),
    ]


def test_one_at_a_time_varies_one_factor_around_the_base_and_combines_crossed_ones():
    spec = replace(SPEC, prompt=("point", "box"), misplacement_mm=(0, 2), threshold=(0, 1, 2), design="one-at-a-time")
    assert len(settings_of(spec)) == 1 + 1 + 1 + 2
    crossed = settings_of(replace(spec, crossed=("prompt",)))
    assert len(crossed) == 2 * (1 + 1 + 2)
    assert not [one for one in crossed if one.misplacement_mm and one.threshold]
    assert base_of(spec) == crossed[0] == Setting()


def test_the_prompt_of_another_object_is_not_put_on_a_neighbour_too():
    spec = replace(SPEC, neighbour=(False, True), prompt_of=("own", "other"))
    assert [(one.neighbour, one.prompt_of) for one in settings_of(spec)] == [
        (False, "own"),
        (False, "other"),
        (True, "own"),
    ]


def test_corrections_are_a_factor_that_the_prompt_of_another_object_ignores():
    settings = settings_of(replace(SPEC, corrections=(0, 3), prompt_of=("own", "other")))
    assert [(one.corrections, one.prompt_of) for one in settings] == [(0, "own"), (3, "own"), (0, "other")]


@pytest.mark.parametrize("wrong", [-1, 1.5, 101, True])
def test_a_wrong_number_of_corrections_is_refused(wrong: float):
    with pytest.raises(UserError, match=r"corrections: .* give a number of clicks from 0 to 100"):
        check_spec(replace(SPEC, corrections=(wrong,)))


def test_a_model_without_the_boundary_branch_has_each_setting_once():
    settings = settings_of(replace(SPEC, bd=(True, False)))
    assert [one.bd for one in settings] == ["on", "off"]
    assert [one.bd for one in for_model(settings, False)] == ["none"] and for_model(settings, True) == settings


def test_memory_selections_are_settings_and_unknown_ones_are_refused():
    settings = settings_of(replace(SPEC, memory_selection=("stored", "recent", "self-sorting")))
    assert [one.memory_selection for one in settings] == ["stored", "recent", "self-sorting"]
    with pytest.raises(UserError, match="memory_selection: 'best' does not exist; choose from stored, recent"):
        check_spec(replace(SPEC, memory_selection=("best",)))


def test_settings_equal_to_a_protocol_have_its_name():
    assert Setting().protocol == "one-click" and Setting("box", "none").protocol == "box-mid"
    others = (
        Setting(placement="random"),
        Setting(noise_mm=1.0),
        Setting(prompted_slices=2),
        Setting(corrections=1),
        Setting(neighbour=True),
        Setting(prompt_of="other"),
    )
    assert {one.protocol for one in others} == {"sweep"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ("circle",)}, "prompt: 'circle' does not exist; choose from point, box, mask"),
        ({"prompt_of": ("mine",)}, "prompt_of: 'mine' does not exist; choose from own, other"),
        ({"threshold": ()}, "threshold: it is empty, so the sweep has no cells"),
        ({"checkpoints": ()}, "checkpoints: it is empty, so the sweep has no cells"),
        ({"threshold": (0.0, 0.0)}, "threshold: 0.0 is given twice"),
        ({"threshold": 0.5}, "threshold: it is 0.5; give a tuple"),
        ({"threshold": (float("nan"),)}, "threshold: nan is not allowed"),
        ({"misplacement_mm": (-1,)}, "misplacement_mm: -1 is not allowed; give a length in mm"),
        ({"prompted_slices": (0,)}, "prompted_slices: 0 is not allowed"),
        ({"data": ""}, "data: it is empty"),
        ({"crossed": ("mood",)}, "crossed: the factor 'mood' does not exist"),
        ({"crossed": ("prompt",)}, "crossed: the design 'product' combines all factors"),
    ],
)
def test_an_invalid_spec_is_refused_with_the_field(changes, message):
    with pytest.raises(UserError, match="^" + message.replace("(", r"\(")):
        check_spec(replace(SPEC, **{"design": "one-at-a-time"} if "mood" in str(changes) else {}, **changes))
