"""The demo from data to pictures, too small for meaningful scores."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from sam2_3dmed_jax.commands import demo
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.data.datasets import read_dataset


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
