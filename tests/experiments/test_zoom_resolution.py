"""The table of resolution with and without zoom: exact for a target of whole cells, and better with zoom."""

import numpy as np
import pytest

from experiments.benchmarks.zoom import best_mask, main, rows
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.io import write_nifti
from sam2_3dmed_jax.volume.zoom import Region


def ball(radius: float = 6.0) -> np.ndarray:
    """A ball in slices of 256 x 256 mm, 3 mm thick; bool `[5, 256, 256]`."""
    z, y, x = np.ogrid[:5, :256, :256]
    return ((z - 2) * 3.0) ** 2 + (y - 101.3) ** 2 + (x - 57.8) ** 2 <= radius**2


def test_a_mask_of_whole_cells_is_expressed_exactly():
    mask = np.zeros((2, 64, 64), bool)
    mask[0, 8:16, 24:40] = True
    np.testing.assert_array_equal(best_mask(mask, Region(0, 0, 64, 64), 256), mask)


def test_zoom_gives_a_small_target_more_pixels_and_a_smaller_distance_to_the_best_mask():
    volume = Volume(np.zeros((5, 256, 256), np.float32), Grid((256, 256, 5), np.diag([-1.0, -1.0, 3.0, 1.0])))
    whole, zoom = rows(volume, ball(), 128)
    assert (whole["region (mm)"], zoom["region (mm)"]) == (256, 64)
    assert zoom["mask pixels"] == pytest.approx(16 * whole["mask pixels"], rel=0.1)  # each pixel is 4 x 4 smaller
    assert zoom["mean distance (mm)"] < 0.5 * whole["mean distance (mm)"] and zoom["Dice"] > whole["Dice"]


def test_the_table_has_a_line_without_and_one_with_zoom(tmp_path, capsys):
    write_nifti(tmp_path / "labels.nii.gz", ball().T.astype(np.uint8), np.diag([-1.0, -1.0, 3.0, 1.0]))
    main([str(tmp_path / "labels.nii.gz"), "--image-size", "128"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["slices", "---", "whole", "zoom"]
