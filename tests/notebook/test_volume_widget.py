"""The widget without a front end: its scan, its messages, its files, and missing packages."""

import importlib
import subprocess
import sys
from importlib import resources

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import Scan, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.notebook import VolumeWidget
from sam2_3dmed_jax.notebook.shared_scan import CHANGES, PROPERTIES, READS
from sam2_3dmed_jax.server.page.display_grid import DisplayGrid
from tests.helpers.scans import scan_file, small_model
from tests.helpers.widget_screen import WidgetScreen

CLICK, OTHER = (5, 9, 10), (9, 15, 18)
pytestmark = pytest.mark.filterwarnings("ignore::sam2_3dmed_jax.errors.FileWarning")


@pytest.fixture
def image(tmp_path):
    return scan_file(tmp_path / "ct.nii.gz")


@pytest.fixture
def screen(monkeypatch):
    screen = WidgetScreen()
    monkeypatch.setattr(VolumeWidget, "send", lambda _, content, buffers=None: screen.send(content, buffers))
    return screen


def receive(widget, message):
    """Deliver a message of the front end as Jupyter does."""
    widget._handle_custom_msg(message, [])


def test_a_click_is_saved_as_the_mask_that_predict_writes(tmp_path, image, screen):
    save_model(small_model(), tmp_path / "model")
    widget = VolumeWidget(image, tmp_path / "model")
    receive(widget, {"type": "ready"})
    for voxel, inside in ((CLICK, True), (OTHER, False)):
        at = DisplayGrid(widget.scan.volume.grid).from_file(voxel)
        receive(widget, {"type": "click", "object": 1, "voxel": at, "inside": inside})
    widget.scan.save(tmp_path / "clicked.nii.gz")
    widget.scan.save_prompts(tmp_path / "prompts.json")
    widget.close()
    out = tmp_path / "predicted.nii.gz"
    words = ["predict", tmp_path / "model", image, "--prompts", tmp_path / "prompts.json", "--out", out]
    assert main([str(word) for word in words]) == 0
    clicked, predicted = nib.load(tmp_path / "clicked.nii.gz"), nib.load(out)
    np.testing.assert_array_equal(np.asarray(clicked.dataobj), np.asarray(predicted.dataobj))
    np.testing.assert_array_equal(clicked.affine, predicted.affine)
    assert np.asarray(predicted.dataobj).any()


def test_prompts_of_a_program_appear_in_the_widget_and_masks_are_those_of_a_scan(image, predictor, screen):
    widget = VolumeWidget(image, predictor)
    receive(widget, {"type": "ready"})
    widget.scan.name_object(1, "spleen")
    widget.scan.click(CLICK, object="spleen")
    mask = widget.scan.mask("spleen")
    screen.wait_for_masks(1)
    assert screen.last("state")["objects"][0]["name"] == "spleen" and screen.mask(1).sum() == mask.sum() > 0
    scan = Scan(image, predictor)
    scan.click(CLICK)
    np.testing.assert_array_equal(mask, scan.mask(1))
    assert widget.scan.undo() and not widget.scan.prompts and not widget.scan.undo()
    widget.close()


def test_mistakes_of_a_program_are_raised_in_its_cell(image, predictor):
    widget = VolumeWidget(image, predictor)
    with pytest.raises(UserError, match="no prompts"):
        widget.scan.mask()
    with pytest.raises(UserError, match="outside"):
        widget.scan.click((999, 0, 0))
    with pytest.raises(AttributeError, match="masks"):
        widget.scan.masks()
    widget.close()
    with pytest.raises(UserError, match="has ended"):
        widget.scan.click(CLICK)


def test_a_scan_is_shown_as_it_is_and_takes_no_other_model(image, predictor):
    scan = Scan(image, predictor)
    scan.click(CLICK)
    widget = VolumeWidget(scan)
    assert widget.scan.prompts is scan.prompts and widget.scan.mask(1).any()
    widget.close()
    with pytest.raises(UserError, match="leave them out"):
        VolumeWidget(scan, predictor)
    with pytest.raises(UserError, match="leave them out"):
        VolumeWidget(scan, modality="ct")


def test_an_image_that_cannot_be_read_is_a_mistake(tmp_path, predictor):
    with pytest.raises(UserError, match=r"missing\.nii\.gz"):
        VolumeWidget(tmp_path / "missing.nii.gz", predictor)


def test_the_shared_scan_has_all_properties_and_methods_of_a_scan_with_their_docstrings(image, predictor):
    public = {name for name in dir(Scan) if not name.startswith("_")}
    properties = {name for name in public if isinstance(getattr(Scan, name), property)}
    assert properties == PROPERTIES and public - properties == CHANGES | READS and not CHANGES & READS
    widget = VolumeWidget(image, predictor)
    assert public <= set(dir(widget.scan)) and widget.scan.click.__doc__ == Scan.click.__doc__
    widget.close()


def test_the_front_end_is_packaged_and_loads_nothing():
    static = resources.files("sam2_3dmed_jax.notebook") / "static"
    script, style = ((static / name).read_text(encoding="utf-8") for name in ("widget.js", "widget.css"))
    assert not any(word in script for word in ("http:", "https:", "import ", "import(", "fetch(", "eval("))
    assert "url(" not in style and "@import" not in style


def test_a_missing_package_is_one_sentence_with_the_command(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("sam2_3dmed_jax.notebook")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(UserError, match=r"needs anywidget; pip install 'sam2-3dmed-jax\[notebook\]'"):
        importlib.import_module("sam2_3dmed_jax.notebook")


def test_the_widget_needs_no_package_of_the_server():
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['starlette', 'uvicorn', 'websockets', 'blosc2']))\n"
        "import sam2_3dmed_jax.notebook"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
