"""Segmentation of a case: the order of its prompts, its classes, its boxes' extent, and the real model."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from experiments.segfm3d import segment
from experiments.segfm3d.__main__ import main
from experiments.segfm3d.case import Case, ClassBox, Click, read_case
from experiments.segfm3d.segment import Segmenter
from sam2_3dmed_jax import VolumePredictor, save_model
from sam2_3dmed_jax.inference.compiled_programs import propagate_block
from sam2_3dmed_jax.inference.label_maps import label_map
from sam2_3dmed_jax.inference.predictor import Session
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.runtime.imagenet import normalise
from tests.helpers.scans import small_model
from tests.helpers.segfm3d_files import SHAPE, SPACING, boxes, image, reference, write_case

SIZE = 64
IN, OUT = True, False


@dataclass
class Recorder:
    """In place of a session: it records prompts, and segments the k-th class everywhere with logit k."""

    predictor: Any
    store: Any
    progress: Any = None
    prompts: ClassVar[list[list[Prompt]]] = []

    def __post_init__(self) -> None:
        self.prompts.append([])

    def add(self, prompts: list[Prompt]) -> None:
        self.prompts[-1] += prompts

    def result(self) -> Any:
        return SimpleNamespace(mask_logits=np.full((1, SHAPE[0], SIZE // 4, SIZE // 4), float(len(self.prompts))))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[Prompt]]:
    """The prompts of each class that `segmenter` gives to its sessions."""
    monkeypatch.setattr(segment, "Session", Recorder)
    monkeypatch.setattr(Recorder, "prompts", [])
    return Recorder.prompts


@pytest.fixture
def segmenter() -> Segmenter:
    """A segmenter whose predictor encodes nothing, and keeps the slices."""
    model = SimpleNamespace(config=SimpleNamespace(image_size=SIZE))
    return Segmenter(SimpleNamespace(model=model, encode=lambda slices, progress: slices))


def case(clicks: Any = None, with_boxes: bool = True, images: np.ndarray | None = None) -> Case:
    found = tuple(ClassBox(**{name: int(value) for name, value in box.items()}) for box in boxes(reference()))
    return Case("a.npz", image() if images is None else images, SPACING, found if with_boxes else None, clicks)


def test_a_class_starts_with_its_box_on_the_middle_slice_and_continues_with_its_clicks(recorded, segmenter):
    clicks = ((Click((7, 3, 5), OUT), Click((4, 8, 8), IN)), ())
    segmenter.segment(case(clicks))
    first, second = recorded
    assert [prompt.slice for prompt in first] == [4, 7, 4] and [prompt.slice for prompt in second] == [7]
    # Voxel index x is at pixel (x + 0.5) * S / W - 0.5; the box has the centres of its outermost voxels.
    depth, height, width = SHAPE
    corners = np.array([(2.5 / width, 2.5 / height), (19.5 / width, 14.5 / height)]) * SIZE - 0.5
    assert first[0].box == pytest.approx(corners.ravel().tolist(), abs=1e-5)  # float32
    assert first[1].labels == (0,) and first[2].labels == (1,)
    assert first[1].points[0] == pytest.approx((5.5 * SIZE / width - 0.5, 3.5 * SIZE / height - 0.5), abs=1e-5)


def test_without_a_box_the_first_click_inside_comes_first(recorded, segmenter):
    clicks = ((Click((1, 3, 5), OUT), Click((4, 8, 8), IN), Click((5, 8, 8), IN)), (Click((7, 15, 15), IN),))
    segmenter.segment(case(clicks, with_boxes=False))
    assert [[prompt.slice for prompt in prompts] for prompts in recorded] == [[4, 1, 5], [7]]


def test_a_class_without_a_box_and_a_click_inside_is_empty(recorded, segmenter):
    clicks = ((Click((1, 3, 5), OUT),), (Click((7, 15, 15), IN),), ())
    labels = segmenter.segment(case(clicks, with_boxes=False))
    assert [len(prompts) for prompts in recorded] == [0, 1, 0] and set(np.unique(labels)) == {2}


def test_slices_beyond_a_box_are_empty_and_the_larger_logit_counts_where_classes_overlap(recorded, segmenter):
    labels = segmenter.segment(case())
    assert labels.dtype == np.uint8 and labels.shape == SHAPE
    # The boxes have slices 1 to 7 and 6 to 8; the logits of class 2 are larger.
    assert [np.unique(plane).tolist() for plane in labels] == [[0], *[[1]] * 5, *[[2]] * 3, [0]]


def test_without_boxes_a_class_may_be_on_all_slices(recorded, segmenter):
    labels = segmenter.segment(case(((Click((4, 8, 8), IN),),), with_boxes=False))
    assert (labels == 1).all()


def test_intensities_are_normalised_as_grey_slices_from_0_to_1(segmenter):
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)
    slices = segmenter._features(case(images=images), SIZE, None)
    np.testing.assert_allclose(slices[0:3], normalise(images.astype(np.float32) / 255), atol=1e-6)  # float32
    assert slices.volume.spacing == pytest.approx(SPACING) and slices.volume.array.dtype == np.uint8


@pytest.mark.slow
def test_predict_writes_the_masks_of_an_interactive_session_with_and_without_boxes(tmp_path: Path):
    save_model(small_model(), tmp_path / "model")
    one = np.where(reference() == 1, 1, 0).astype(np.uint8)
    click = [{"fg": [], "bg": [[4, 8, 14]]}]
    for name, prompts in {
        "box.npz": {"boxes": boxes(one)},
        "corrected.npz": {"boxes": boxes(one), "clicks": click, "clicks_order": [["bg"]], "prev_pred": one},
        "click.npz": {"clicks": [{"fg": [[4, 8, 8]], "bg": []}]},
        "two.npz": {"boxes": boxes(reference()), "imgs": image()[:9], "gts": None},
    }.items():
        write_case(tmp_path / "in" / name, **{"boxes": None, "gts": one, **prompts})
    assert main(["predict", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(tmp_path / "model")]) == 0
    found = {}
    for path in (tmp_path / "out").iterdir():
        with np.load(path, allow_pickle=False) as written:
            assert written.files == ["segs"] and written["segs"].dtype == np.uint8
            found[path.name] = written["segs"]
    assert sorted(found) == ["box.npz", "click.npz", "corrected.npz", "two.npz"]
    assert found["two.npz"].shape == (9, *SHAPE[1:])

    predictor = VolumePredictor(small_model())
    segmenter = Segmenter(predictor)
    programs = propagate_block._cache_size()
    session = Session(predictor, segmenter._features(read_case(tmp_path / "in" / "box.npz"), SIZE, None))
    scale = np.array([SIZE / SHAPE[2], SIZE / SHAPE[1]])
    low, high, outside = (
        ((np.array(xy) + 0.5) * scale - 0.5).astype(np.float32).tolist() for xy in ((2, 2), (19, 14), (14, 8))
    )
    steps = [Prompt(1, 4, box=(*low, *high)), Prompt(1, 4, [tuple(outside)], [0])]
    for name, prompt in zip(("box.npz", "corrected.npz"), steps, strict=True):
        session.add([prompt])
        expected = label_map(session.result().mask_logits, [1], SHAPE[1:])
        expected[[0, 8, 9]] = 0  # beyond the box
        np.testing.assert_array_equal(found[name], expected)
    assert found["box.npz"].any() and (found["box.npz"] != found["corrected.npz"]).any()
    assert found["click.npz"].any() and (found["click.npz"] != found["box.npz"]).any()
    assert programs == propagate_block._cache_size() <= 1 + programs  # other depths and classes compiled nothing more
