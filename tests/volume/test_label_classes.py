"""What is scored, and what is prompted, from the words of users."""

import numpy as np
import pytest

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.case_reader import targets_to_segment
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.label_classes import (
    LabelClass,
    declared_classes,
    parse_classes,
    parse_remap,
    parse_targets,
    prompted_targets,
    with_tolerances,
    with_tumours,
    written_values,
)

PANCREAS = {1: "pancreas", 2: "cancer"}


def words(classes: list[LabelClass]) -> list[tuple[str, tuple[int, ...], bool]]:
    return [(entry.name, entry.values, entry.tumour) for entry in classes]


def test_classes_are_values_names_and_unions():
    found = parse_classes("1=head,2, 1+2 = all,3+4", {})
    assert words(found) == [
        ("head", (1,), False),
        ("2", (2,), False),
        ("all", (1, 2), False),
        ("3+4", (3, 4), False),
    ]
    assert words(parse_classes("cancer,pancreas+cancer", PANCREAS)) == [
        ("cancer", (2,), True),
        ("pancreas+cancer", (1, 2), False),
    ]


def test_a_declared_pancreas_is_scored_alone_and_together_with_its_tumour():
    found = declared_classes(PANCREAS)
    assert [entry.values for entry in found] == [(1,), (2,), (1, 2)] and found[1].tumour
    assert prompted_targets(found) == [(1, 2), (2,)]
    assert [entry.values for entry in declared_classes({1: "Vessel", 2: "Tumour"})] == [(1,), (2,)]
    assert [entry.values for entry in declared_classes({1: "cancer"})] == [(1,)]


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("1=a,2=b", [(1,), (2,)]),
        ("1=pancreas,2=cancer,1+2=all", [(1, 2), (2,)]),
        ("1=pancreas,1+2=all", [(1, 2), (2,)]),
        ("1+2=kidneys", [(1, 2)]),
        ("1=left,2=right,1+2=kidneys", [(1,), (2,)]),
        ("1=kidney,2=tumour,3=lesion,1+2+3=all,2+3=bad", [(1, 2, 3), (2, 3), (3,)]),
    ],
)
def test_unions_of_an_organ_with_its_tumours_are_prompted_and_others_are_only_scored(text: str, targets: list):
    assert prompted_targets(parse_classes(text, {})) == targets


def test_an_object_writes_the_first_label_that_no_later_one_has():
    assert written_values([(1, 2), (2,)]) == [1, 2]
    assert written_values([(1, 2, 3), (3, 2), (2,)]) == [1, 3, 2]
    assert parse_targets("1+2, 2", {}) == [(1, 2), (2,)]
    with pytest.raises(UserError, match="all labels of 2 belong to later objects"):
        parse_targets("2,1+2", {})


def test_tolerances_come_from_the_task_from_a_number_or_by_class():
    classes = parse_classes("1=liver,2=cancer", {})

    def tolerances(text: str | None, task: str = "") -> list[float]:
        return [entry.tolerance_mm for entry in with_tolerances(classes, text, task)]

    assert tolerances(None) == [3.0, 3.0]
    assert tolerances(None, "Task06_Lung") == [2.0, 2.0] and tolerances(None, "Pancreas") == [5.0, 5.0]
    assert tolerances("1.5") == [1.5, 1.5] and tolerances("4,cancer=2", "Lung") == [4.0, 2.0]
    assert tolerances("cancer=2", "Spleen") == [3.0, 2.0]


def test_tumours_are_known_by_name_or_named():
    classes = parse_classes("1=liver,2=Liver Tumour,3=lesions", {})
    assert [entry.tumour for entry in with_tumours(classes, None)] == [False, True, True]
    assert [entry.tumour for entry in with_tumours(classes, "liver,lesions")] == [True, False, True]
    assert not any(entry.tumour for entry in with_tumours(classes, "none"))


def test_a_remap_is_read_as_label_sets_with_the_values_that_replace_theirs():
    assert parse_remap("2=1, 3+4=0") == {2: 1, 3: 0, 4: 0} and parse_remap(None) == {}


def test_one_text_means_the_same_labels_as_classes_targets_and_classes_to_train():
    text, labels = "pancreas+2=both,2=cancer", [(1, 2), (2,)]
    assert [entry.values for entry in parse_classes(text, PANCREAS)] == labels
    assert parse_targets(text, PANCREAS) == labels
    assert list(targets_to_segment(DataConfig(classes=(text,)), PANCREAS, "data")) == labels
    assert list(targets_to_segment(DataConfig(classes=("1+2", 2)), PANCREAS, "data")) == labels


def test_a_label_whose_name_has_a_plus_is_found_by_its_whole_name():
    assert parse_targets("fat+air,3", {7: "fat+air"}) == [(7,), (3,)]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: parse_classes("0=air", {}), "--classes: 0 is the background, in '0=air'"),
        (lambda: parse_classes("1,1+2=1", {}), "'1\\+2=1' repeats the name 1"),
        (lambda: parse_classes("1+1", {}), "give each once"),
        (lambda: parse_classes("5", PANCREAS), "no label 5"),
        (lambda: parse_classes("1+knee", PANCREAS), "one of pancreas, cancer"),
        (lambda: with_tolerances([LabelClass("a", (1,))], "many"), "--tolerance-mm: 'many'"),
        (lambda: with_tolerances([LabelClass("a", (1,))], "-1"), "--tolerance-mm: '-1'"),
        (lambda: with_tolerances([LabelClass("a", (1,))], "b=1"), "class 'b' is not scored; choose from a"),
        (lambda: with_tumours([LabelClass("a", (1,))], "b"), "class 'b' is not scored; choose from a"),
        (lambda: parse_remap("1"), "--remap: '1'"),
        (lambda: parse_remap("1=2,1=3"), "--remap: '1=3'"),
        (lambda: parse_targets("1++2", {}), "--targets: '1\\+\\+2'"),
    ],
)
def test_invalid_options_are_refused_with_the_offending_text(call, named: str):
    with pytest.raises(UserError, match=named):
        call()


def test_the_mask_of_a_class_has_only_its_own_values():
    labels = np.array([[[0, 1, 2, 3]]])
    assert LabelClass("both", (1, 3)).mask(labels).tolist() == [[[False, True, False, True]]]
    assert LabelClass("one", (2,)).mask(labels).tolist() == [[[False, False, True, False]]]
