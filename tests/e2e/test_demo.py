"""The demo from data to pictures, too small for meaningful scores."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from sam2_3dmed_jax.commands import demo
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a demo of five phantoms and four steps."""
    out = tmp_path_factory.mktemp("demo") / "run"
    whole = demo.demo_config

    def config(data: str):
        full = whole(data)
        return full.replace(
            model=replace(full.model, image_size=64),
            data=replace(full.data, slices=2),
            training=replace(full.training, steps=4, batch_size=2, warmup_steps=1, log_every=2),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "CASES", 5)
        patch.setattr(demo, "demo_config", config)
        assert main(["demo", "--out", str(out)]) == 0
    return out


def test_the_demo_writes_a_segmentation_pictures_scores_and_a_checkpoint(small):
    for name in ("overlay.png", "loss_curve.png"):
        assert (small / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    segmentation = nibabel.load(small / "prediction.nii.gz")
    images = [nibabel.load(case.image) for case in read_dataset(small / "data").cases]
    assert any(
        image.shape == segmentation.shape and np.array_equal(image.affine, segmentation.affine) for image in images
    )
    assert (small / "run" / "final" / "config.json").exists()
    for method in ("trained", "untrained", "region_growing"):
        assert (small / "evaluation" / method / "cases.csv").read_text().count("\n") == 2  # one held-out phantom


def test_a_demo_with_another_seed_and_other_files_are_not_overwritten(small, tmp_path, capsys):
    assert main(["demo", "--out", str(small), "--seed", "1"]) == 2
    assert "another seed" in capsys.readouterr().err
    (tmp_path / "thesis.tex").write_text("precious")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def example(case: str, dice: float, at_click: int) -> demo._Example:
    """Return a case of one voxel, which is clicked, and its label in the segmentation."""
    labels = np.full((1, 1, 1), at_click)
    prompt = VoxelPrompt(object_id=1, slice=0, points=((0.0, 0.0),), labels=(1,))
    return demo._Example(case, dice, None, labels, [prompt], SimpleNamespace(labels=labels))


@pytest.mark.parametrize("inside, shown", [({"a": 0, "b": 1, "c": 1}, "b"), ({"a": 0, "b": 0, "c": 0}, "a")])
def test_the_picture_shows_the_case_nearest_to_the_mean_whose_mask_contains_the_click(inside, shown, monkeypatch):
    dices = {"c": 0.5, "a": 0.81, "b": 0.85}
    monkeypatch.setattr(demo, "_example", lambda _, __, case, dice: example(case.id, dice, inside[case.id]))
    scores = demo.Scores([{"case": case, "dice": dice} for case, dice in dices.items()], {"macro_dice": 0.8})
    assert demo._typical_example(None, None, [SimpleNamespace(id=case) for case in dices], scores).case == shown


def test_the_demo_reports_that_the_srpp_loss_hardly_falls(tmp_path: Path):
    log = tmp_path / "log.csv"
    for last, noted in ((0.95, True), (0.5, False)):
        lines = ["loss_seg,loss_srpp,loss_bd", *["2.0,1.0,0.4"] * 5, *["1.0,0.9,0.3"] * 15, *[f"0.5,{last},0.1"] * 5]
        log.write_text("\n".join(lines))
        _, seg, srpp, bd = demo._loss_lines(log)
        assert seg.split()[1:] == ["2.00", "->", "0.50"] and bd.split()[1:] == ["0.40", "->", "0.10"]
        assert f"1.00 -> {last:.2f}" in srpp and ("hardly falls" in srpp) == noted
