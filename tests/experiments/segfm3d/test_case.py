"""Cases of the challenge: classes, boxes and clicks as its code stores them, and refusals of everything else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.segfm3d.case import Case, ClassBox, Click, case_files, read_case, read_evaluation_case
from sam2_3dmed_jax.errors import UserError
from tests.helpers.segfm3d_files import SHAPE, SPACING, boxes, image, reference, write_case

TWO = [{"fg": [[1, 2, 3], [4, 5, 6]], "bg": [[7, 8, 9]]}, {"fg": [], "bg": []}]


def read(tmp_path: Path, **changes: Any) -> Case:
    return read_case(write_case(tmp_path / "a.npz", **changes))


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def test_a_case_with_boxes_has_them_as_indices_of_the_array(tmp_path: Path):
    case = read(tmp_path)
    assert case.boxes == (ClassBox(1, 7, 4, 2, 2, 19, 14), ClassBox(6, 8, 7, 12, 14, 23, 19))
    assert case.clicks is None and case.classes == 2 and case.name == "a.npz"
    assert case.spacing == SPACING and np.array_equal(case.images, image())


def test_clicks_are_in_the_order_of_clicks_order(tmp_path: Path):
    case = read(tmp_path, clicks=TWO, clicks_order=np.array([["fg", "bg", "fg"], [None, None, None]], object))
    first, second, third = Click((1, 2, 3), True), Click((7, 8, 9), False), Click((4, 5, 6), True)
    assert case.clicks == ((first, second, third), ())


def test_clicks_without_an_order_have_the_foreground_first(tmp_path: Path):
    case = read(tmp_path, with_boxes=False, clicks=TWO)
    assert case.boxes is None and case.classes == 2
    assert [click.inside for click in case.clicks[0]] == [True, True, False]


def changed_box(**values: Any) -> list[dict[str, Any]]:
    first, second = boxes(reference())
    return [first, second | values]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"imgs": image().astype(np.float32)}, "imgs is float32"),
        ({"imgs": image()[0]}, "imgs is uint8 (22, 26)"),
        ({"imgs": None}, "imgs is missing"),
        ({"imgs": objects([image()])}, "imgs is missing, or is not numbers"),
        ({"imgs": image()[:0]}, "imgs is uint8 (0, 22, 26)"),
        ({"spacing": np.array([1.0, 1.0])}, "spacing is [1.0, 1.0]"),
        ({"spacing": np.array([1.0, 0.0, 1.0])}, "three positive numbers"),
        ({"spacing": np.array([1.0, np.nan, 1.0])}, "three positive numbers"),
        ({"spacing": None}, "spacing is []"),
        ({"boxes": None}, "neither boxes nor clicks"),
        ({"boxes": np.zeros((2, 7))}, "boxes is not a list"),
        ({"boxes": np.array([])}, "boxes is not a list"),
        ({"boxes": objects([{}, {}])}, "boxes of class 1 is not a dict of whole numbers z_min"),
        ({"boxes": changed_box(z_max=10)}, "box of class 2 is not inside of imgs"),
        ({"boxes": changed_box(z_mid=5)}, "box of class 2 is not inside of imgs"),
        ({"boxes": changed_box(z_mid_x_min=24)}, "box of class 2 is not inside of imgs"),
        ({"boxes": changed_box(z_min=6.5)}, "boxes of class 2 is not a dict of whole numbers"),
        ({"boxes": changed_box(z_min=True)}, "boxes of class 2 is not a dict of whole numbers"),
        ({"clicks": TWO[:1]}, "boxes of 2 classes and clicks of 1"),
        ({"clicks": [{"fg": []}, {"fg": []}]}, "clicks of class 1 is not a dict with the lists fg and bg"),
        ({"clicks": [TWO[1], {"fg": [[1, 2]], "bg": []}]}, "clicks of class 2: one of them is not three whole numbers"),
        ({"clicks": [TWO[1], {"fg": [[10, 2, 3]], "bg": []}]}, "(10, 2, 3) is outside of imgs"),
        ({"clicks": [TWO[1], {"fg": [[-1, 2, 3]], "bg": []}]}, "(-1, 2, 3) is outside of imgs"),
        ({"clicks": [TWO[1], {"fg": [[1, 2, 3]] * 257, "bg": []}]}, "more than 256 clicks"),
        ({"clicks": TWO, "clicks_order": [["fg", "fg"], ["fg", "fg"]]}, "clicks_order does not list each of them"),
        ({"clicks": TWO, "clicks_order": np.array([["fg", "fg", "bg"]])}, "class 2: clicks_order"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_case_of_another_form_is_refused_with_its_file_and_field(changes: Any, words: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        read(tmp_path, **changes)
    assert words in str(error.value) and "a.npz" in str(error.value)
    assert len(str(error.value)) - len(str(tmp_path)) <= 300


def test_a_case_for_evaluation_has_its_reference_from_its_file_or_another_folder(tmp_path: Path):
    one = read_evaluation_case(write_case(tmp_path / "a.npz"), None)
    assert one.classes == [1, 2] and np.array_equal(one.reference, reference())
    assert one.boxes == [{name: int(value) for name, value in box.items()} for box in boxes(reference())]
    write_case(tmp_path / "gts" / "a.npz", gts=reference() * 2)
    other = read_evaluation_case(write_case(tmp_path / "a.npz", with_boxes=False, gts=None), tmp_path / "gts")
    assert other.classes == [2, 4] and other.boxes is None


@pytest.mark.parametrize(
    ("gts", "words"),
    [
        (None, "has no integer array gts; give --gts DIR"),
        (reference().astype(np.float32), "has no integer array gts"),
        (reference()[1:], "gts has the shape (9, 22, 26), and imgs (10, 22, 26)"),
        (reference() * 0, "gts is empty"),
        (reference().astype(np.int32) - 1, "values other than 0 to 255"),
    ],
)
def test_a_reference_of_another_form_is_refused(gts: Any, words: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        read_evaluation_case(write_case(tmp_path / "a.npz", gts=gts), None)
    assert words in str(error.value)


def test_a_wrong_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is not a folder"):
        case_files(tmp_path / "absent")
    (tmp_path / "readme.txt").touch()
    with pytest.raises(UserError, match=r"has no \.npz files"):
        case_files(tmp_path)
    write_case(tmp_path / "b.npz")
    write_case(tmp_path / "a.npz")
    (tmp_path / ".c.tmp.npz").touch()
    assert [path.name for path in case_files(tmp_path)] == ["a.npz", "b.npz"] and SHAPE[0] == 10
