"""The preview of training clips: positions and meanings of its marks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from sam2_3dmed_jax.config import BdConfig, ModelConfig
from sam2_3dmed_jax.data.clips import Clip
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.targets import boundary_target
from sam2_3dmed_jax.pictures.overlay import plt
from sam2_3dmed_jax.pictures.preview import CLIPS, COLOURS, preview_figure, write_preview

SIZE, STEPS = 48, 4
MODEL = ModelConfig(boundary=BdConfig(width=3))
POINT, BOX = (17.0, 20.0), ((30.0, 2.0), (47.0, 13.0))


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def make_clip() -> Clip:
    """A clip downwards beyond the lowest slice. Object 1 has a point; object 2, in a corner, has a box on step 1."""
    masks = np.zeros((STEPS, 2, SIZE, SIZE), np.uint8)
    masks[:2, 0, 16:26, 10:24] = 1
    masks[:3, 1, :12, 32:] = 1
    coords = np.zeros((2, 4, 2), np.float32)
    coords[0, 0], coords[1, :2] = POINT, BOX
    return Clip(
        slices=np.full((STEPS, SIZE, SIZE), 0.5, np.float32) * np.array([1, 1, 1, 0], np.float32)[:, None, None],
        masks=masks,
        slice_valid=np.array([True, True, True, False]),
        slice_index=np.array([4, 2, 0, -2], np.float32),
        position_mm=np.array([10.0, 5.0, 0.0, 0.0], np.float32),
        object_valid=np.array([True, True]),
        prompt_step=np.array([0, 1], np.int32),
        coords=coords,
        point_labels=np.array([[1, -1, -1, -1], [2, 3, -1, -1]], np.int32),
        token_valid=np.ones((2, 4), bool),
        multimask=np.array([True, False]),
    )


def tiles(figure: plt.Figure) -> tuple[list[plt.Axes], list[plt.Axes]]:
    """Whole slices and enlarged ones."""
    return figure.axes[:STEPS], figure.axes[STEPS : 2 * STEPS]


def words(axis: plt.Axes) -> set[str]:
    return {text.get_text() for text in axis.texts} | {axis.get_title()}


def pixel(picture: np.ndarray, axis: plt.Axes, x: float, y: float) -> np.ndarray:
    """The colour of a picture where `axis` has its data coordinates x, y."""
    (x0, x1), (y0, y1), box = axis.get_xlim(), axis.get_ylim(), axis.get_position()
    column = (box.x0 + box.width * (x - x0) / (x1 - x0)) * picture.shape[1]
    row = (1 - box.y0 - box.height * (y - y0) / (y1 - y0)) * picture.shape[0]
    return picture[int(row), int(column), :3]


def test_the_preview_is_a_complete_png_of_the_figures_size(tmp_path: Path):
    figure = preview_figure([make_clip()], MODEL)
    path = tmp_path / "new" / "sheet.png"
    write_preview(path, [make_clip()], MODEL)
    assert path.read_bytes().startswith(b"\x89PNG") and [file.name for file in path.parent.iterdir()] == [path.name]
    width, height = figure.get_size_inches() * 110
    assert imread(path).shape == (int(height), int(width), 4)


def test_a_prompt_is_drawn_in_its_objects_colour_only_on_its_step(tmp_path: Path):
    figure = preview_figure([make_clip()], MODEL)
    write_preview(tmp_path / "sheet.png", [make_clip()], MODEL)
    picture = imread(tmp_path / "sheet.png")
    for row in tiles(figure):
        np.testing.assert_allclose(pixel(picture, row[0], *POINT), to_rgb(COLOURS[0]), atol=0.02)
        np.testing.assert_allclose(pixel(picture, row[1], *POINT), 0.5, atol=0.02)  # the slice's own grey
        boxes = [[patch.get_bbox() for patch in axis.patches if patch.get_linestyle() == "--"] for axis in row]
        assert [len(found) for found in boxes] == [0, 1, 0, 0]
        np.testing.assert_allclose(boxes[1][0].get_points(), BOX)


def test_an_outline_encloses_exactly_the_pixels_of_its_mask():
    clip = make_clip()
    y, x = np.mgrid[-1 : SIZE + 1, -1 : SIZE + 1]
    inside = np.pad(clip["masks"][0, :], ((0, 0), (1, 1), (1, 1))).astype(bool)
    for row in tiles(preview_figure([clip], MODEL)):
        for k, contour in enumerate(row[0].collections):
            (path,) = contour.get_paths()
            found = path.contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(x.shape)
            np.testing.assert_array_equal(found, inside[k])


def test_boundary_targets_are_those_of_training_from_the_prompt_on():
    clip = make_clip()
    expected = np.asarray(boundary_target(clip["masks"], 3)) > 0
    whole, enlarged = tiles(preview_figure([clip], MODEL))
    bands = [[np.asarray(image.get_array())[..., 3] > 0 for image in axis.images[1:]] for axis in enlarged]
    assert [len(found) for found in bands] == [1, 2, 1, 0]  # before its prompt, object 2 has none on step 0
    np.testing.assert_array_equal(bands[0][0], expected[0, 0])
    np.testing.assert_array_equal(bands[1], expected[1])
    np.testing.assert_array_equal(bands[2][0], expected[2, 1])
    assert all(len(axis.images) == 1 for axis in whole)
    without = preview_figure([clip], ModelConfig(bd=False))
    assert all(len(axis.images) == 1 for axis in without.axes)
    assert not any("boundary" in text.get_text() for text in without.legends[0].get_texts())


def test_the_enlarged_part_contains_every_mask_and_prompt():
    clip = make_clip()
    _, enlarged = tiles(preview_figure([clip], MODEL))
    (x0, x1), (y1, y0) = enlarged[0].get_xlim(), enlarged[0].get_ylim()
    assert x0 <= 9.5 and x1 >= 47.5 and y0 <= -0.5 and y1 >= 25.5
    assert x0 >= -0.5 and x1 <= 47.5 and y0 >= -0.5 and y1 <= 47.5 and x1 - x0 == pytest.approx(y1 - y0)


def test_tiles_and_headers_show_positions_and_the_states_of_objects():
    figure = preview_figure([make_clip()], MODEL, ["case_07"])
    whole, _ = tiles(figure)
    assert words(whole[0]) == {"slice 4, 10.0 mm", "1 prompted", "2 before its prompt"}
    assert words(whole[1]) == {"slice 2, 5.0 mm", "1 present", "2 prompted"}
    assert words(whole[2]) == {"slice 0, 0.0 mm", "1 absent", "2 present"}
    assert words(whole[3]) == {"slice -2, outside", "padding"}
    header = next(text.get_text() for text in figure.texts if "case_07" in text.get_text())
    assert "propagated down, towards the feet, 2 slices per step" in header
    assert "object 1 prompted by a point on step 1; object 2 prompted by a box on step 2" in header


def test_an_invalid_object_is_not_drawn_and_a_jump_is_shown():
    clip = make_clip()
    clip["object_valid"] = np.array([True, False])
    clip["slice_index"] = np.array([4, 20, 21, 22], np.float32)
    figure = preview_figure([clip], MODEL)
    header = next(text.get_text() for text in figure.texts if text.get_text().startswith("clip 1"))
    assert "towards the head, 1 slice per step, after a jump of 16" in header
    assert "object 2 is not in this clip" in header
    assert len(tiles(figure)[0][0].collections) == 1


def test_a_preview_of_too_many_clips_shows_how_many_are_drawn():
    clip = {name: value[:1] if len(value) == STEPS else value for name, value in make_clip().items()}
    figure = preview_figure([clip] * (CLIPS + 1), ModelConfig(bd=False))  # type: ignore[list-item]
    assert len(figure.axes) == 2 * CLIPS
    assert any(f"the first {CLIPS} of {CLIPS + 1} clips" in text.get_text() for text in figure.texts)


def test_no_clips_and_an_unwritable_file_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no clips to draw"):
        write_preview(tmp_path / "sheet.png", [], MODEL)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_preview(tmp_path / "file" / "sheet.png", [make_clip()], MODEL)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_prepare_draws_the_clips_of_an_experiment(tmp_path, capsys):
    from sam2_3dmed_jax.commands.main import main
    from tests.helpers.source_files import some_cases

    source = str(some_cases(tmp_path / "data", 2, (40, 40, 7)))
    sheet, experiment = tmp_path / "sheet.png", tmp_path / "experiment.py"
    experiment.write_text(
        "from sam2_3dmed_jax.config import ClipConfig, DataConfig, ExperimentConfig, ModelConfig\n\n\n"
        "def get_config():\n"
        "    return ExperimentConfig(ModelConfig('nano', 64), DataConfig(slices=2, clips=ClipConfig(objects=2)))\n"
    )
    words = ["prepare", source, str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--preview", str(sheet), "--experiment", str(experiment)]) == 0
    assert f"preview in {sheet}" in capsys.readouterr().out
    height, width = plt.imread(sheet).shape[:2]
    assert height > 1.5 * width  # two clips of two slices, two rows each
    assert main([*words, "--experiment", str(experiment)]) == 2
    assert "give --preview PNG too" in capsys.readouterr().err
    experiment.write_text("def get_config():\n    return 1\n")
    assert main([*words, "--preview", str(sheet), "--experiment", str(experiment)]) == 2
    assert "return an ExperimentConfig" in capsys.readouterr().err
