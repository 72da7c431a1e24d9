"""Augmentation: image, mask, boundary and prompt are transformed together, and positions do not change.

The values of the volumes are coordinates: three cases with the same label map have the row, the column and the slice of
each voxel as values, and are cut with the same random numbers. So the values of a clip are the origin of each pixel.
"""

from dataclasses import replace

import numpy as np
import pytest

from sam2_3dmed_jax.config import DataConfig, PreprocessingConfig, PromptConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION, augment_intensity, draw_spatial_transform
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.clips import cut_clip
from sam2_3dmed_jax.data.warp import Warp
from sam2_3dmed_jax.model.targets import boundary_target
from tests.helpers.prepared_files import write_prepared

SIZE, DEPTH = 64, 9
STEP = 10  # HU per voxel
STILL = DataConfig(
    slices=4,
    prompts=PromptConfig(box_prompt_probability=0),
    preprocessing=PreprocessingConfig(window="500,1000"),  # HU 0 to 1000 become 0 to 1
    augmentation=NO_AUGMENTATION,
)
TRANSFORMS = {
    "flip": {"flip_probability": 0.5},
    "rotation": {"rotation": 25.0},
    "scaling": {"scaling": 0.2},
    "shift": {"shift": 0.1},
    "all": {"flip_probability": 0.5, "rotation": 15.0, "scaling": 0.1, "shift": 0.05},
}
INTENSITIES = {"intensity": {"intensity": 0.1}, "gamma": {"gamma": 0.3}, "noise": {"noise": 0.05}}


def augmented(**changes):
    return replace(STILL, augmentation=replace(NO_AUGMENTATION, **changes))


def label_map():
    """A tilted L, which no flip or rotation maps onto itself, and which moves from slice to slice."""
    d, r, c = np.mgrid[:DEPTH, :SIZE, :SIZE]
    labels = ((r > 18 + d) & (r < 40) & (c > 20) & (c < 30)) | ((r > 32) & (r < 40) & (c > 20) & (c < 46 - d))
    labels[0] = labels[-1] = False
    return labels.astype(np.uint8)


@pytest.fixture(scope="module")
def coordinates(tmp_path_factory):
    grid = np.mgrid[:DEPTH, :SIZE, :SIZE].astype(np.int16) + 1  # 0 is outside of the slice
    cases = {name: (values * STEP, label_map()) for name, values in zip("drc", grid, strict=True)}
    return write_prepared(tmp_path_factory.mktemp("coordinates") / "data", cases, {1: "organ"}, (2.5, 0.7, 0.9))


def cut(dataset, config, seed):
    """Cut the same clip of the three cases; return it with the original slice, row and column of each pixel."""
    reader = CaseReader(dataset, config, SIZE)
    clips = {case.id: cut_clip(reader, case, config, np.random.default_rng(seed)) for case in dataset.cases}
    origin = {name: clip["slices"] * 1000 / STEP - 1 for name, clip in clips.items()}
    return clips["d"], origin["d"], origin["r"], origin["c"]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_spatial_transforms_keep_image_mask_boundary_prompt_and_position_aligned(coordinates, name):
    labels, moved = label_map(), 0
    for seed in range(12):
        clip, slices, rows, columns = cut(coordinates, augmented(**TRANSFORMS[name]), seed)
        still = cut(coordinates, STILL, seed)[0]
        for field in ("slice_index", "position_mm", "slice_valid"):
            np.testing.assert_array_equal(clip[field], still[field])
        np.testing.assert_allclose(clip["position_mm"], np.clip(clip["slice_index"], 0, DEPTH - 1) * 2.5)
        moved += not np.array_equal(clip["masks"], still["masks"])
        for step in np.flatnonzero(clip["slice_valid"]):
            d, r, c = slices[step], rows[step], columns[step]
            inside = (
                (r > 0.5) & (c > 0.5) & (r < SIZE - 1.5) & (c < SIZE - 1.5) & (d > clip["slice_index"][step] - 0.01)
            )
            # Halfway between two voxels either label is right; the window rounds to about 1e-4 of a voxel.
            clear = inside & (np.abs(r % 1 - 0.5) > 1e-3) & (np.abs(c % 1 - 0.5) > 1e-3)
            assert clear.mean() > 0.5
            np.testing.assert_allclose(d[clear], clip["slice_index"][step], atol=1e-2)
            source = labels[int(clip["slice_index"][step])]
            expected = source[r[clear].round().astype(int), c[clear].round().astype(int)]
            np.testing.assert_array_equal(clip["masks"][step, 0][clear], expected)
            check_boundary(clip["masks"][step, 0], source, r, c, clear)
        x, y = clip["coords"][0, 0].astype(int)
        step = clip["prompt_step"][0]
        assert clip["masks"][step, 0, y, x] == 1
        assert labels[int(clip["slice_index"][step]), round(rows[step, y, x]), round(columns[step, y, x])] == 1
    assert moved >= 4


def check_boundary(mask, source, rows, columns, clear):
    """Check that the boundary target is within 3 voxels of the transformed edge of the source, and nowhere else."""
    target = np.asarray(boundary_target(mask.astype(np.float32), 3)) > 0
    at = target & clear
    near = np.asarray(boundary_target(source.astype(np.float32), 7)) > 0
    assert near[rows[at].round().astype(int), columns[at].round().astype(int)].all()
    edge = np.asarray(boundary_target(source.astype(np.float32), 3)) > 0
    arrived = (
        clear & edge[np.clip(rows, 0, SIZE - 1).round().astype(int), np.clip(columns, 0, SIZE - 1).round().astype(int)]
    )
    close = np.asarray(boundary_target(mask.astype(np.float32), 7)) > 0
    assert close[arrived].all()


@pytest.mark.parametrize("name", INTENSITIES)
def test_intensity_augmentation_leaves_masks_prompts_and_positions_unchanged(coordinates, name):
    changed = 0
    for seed in range(6):
        clip, *_ = cut(coordinates, augmented(**INTENSITIES[name]), seed)
        still, *_ = cut(coordinates, STILL, seed)
        for field in set(clip) - {"slices", "coords"}:  # random points are drawn after the noise
            np.testing.assert_array_equal(clip[field], still[field], err_msg=field)
        x, y = clip["coords"][0, 0].astype(int)
        assert clip["masks"][clip["prompt_step"][0], 0, y, x] == 1
        changed += not np.array_equal(clip["slices"], still["slices"])
        difference = np.abs(clip["slices"] - still["slices"])
        assert difference.max() < 0.21 and clip["slices"].min() >= 0 and clip["slices"].max() <= 1
    assert changed >= 5


@pytest.mark.parametrize("name", ["intensity", "gamma"])
def test_brightness_contrast_and_gamma_keep_the_order_of_grey_values(name):
    grey = np.tile(np.linspace(0, 1, 101, dtype=np.float32), (2, 101, 1))
    for seed in range(20):
        shaded = grey.copy()
        augment_intensity(shaded, replace(NO_AUGMENTATION, **INTENSITIES[name]), np.random.default_rng(seed))
        assert (np.diff(shaded[0, 0]) >= 0).all()


def test_noise_has_the_drawn_sd_zero_mean_and_no_correlation():
    grey = np.full((3, 128, 128), 0.5, np.float32)
    drawn = []
    for seed in range(20):
        noisy = grey.copy()
        augment_intensity(noisy, replace(NO_AUGMENTATION, noise=0.1), np.random.default_rng(seed))
        noise = noisy - grey
        drawn.append(float(noise.std()))
        # 5 SD of the mean, and of the correlation, of 49152 values
        assert abs(noise.mean()) < 5 * drawn[-1] / 220
        assert abs(np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1]) < 0.025
        assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.04
    assert 0 < min(drawn) < 0.03 and 0.07 < max(drawn) < 0.1


def test_settings_of_zero_leave_clips_bit_for_bit_unchanged():
    rng = np.random.default_rng(0)
    slices, labels = rng.random((3, 16, 16), np.float32), rng.integers(0, 3, (3, 16, 16)).astype(np.uint8)
    transform = draw_spatial_transform(16, (1.0, 1.0), NO_AUGMENTATION, rng)
    assert transform.warp is None
    np.testing.assert_array_equal(transform.slices(slices), slices)
    np.testing.assert_array_equal(transform.labels(labels), labels)
    shaded = slices.copy()
    augment_intensity(shaded, NO_AUGMENTATION, rng)
    np.testing.assert_array_equal(shaded, slices)


def test_a_transform_that_moves_the_object_out_of_the_prompted_slice_is_left_out(coordinates):
    for seed in range(30):
        clip, *_ = cut(coordinates, augmented(shift=2.0), seed)
        assert clip["object_valid"][0] and clip["prompt_step"][0] == 0


def test_a_rotation_preserves_distances_in_millimetres():
    config = replace(NO_AUGMENTATION, rotation=90.0)
    warp = draw_spatial_transform(65, (1.0, 2.0), config, np.random.default_rng(0)).warp
    assert warp is not None
    rows, columns = warp._rows - 1, warp._columns - 1  # origins of the pixels

    def mm(a, b):
        return np.hypot((rows[a] - rows[b]) * 1.0, (columns[a] - columns[b]) * 2.0)

    # 8 rows are 8 mm, and 4 columns are 8 mm, before and after the rotation. Coordinates are float32.
    assert mm((32, 32), (40, 32)) == pytest.approx(8, abs=1e-4) == mm((32, 32), (32, 36))


def test_the_warp_agrees_with_scipy():
    from scipy import ndimage

    rng = np.random.default_rng(0)
    slices, labels = rng.random((2, 40, 40), np.float32), rng.integers(0, 4, (2, 40, 40)).astype(np.uint8)
    matrix, offset = np.array([[0.9123, -0.3147], [0.2571, 1.1039]]), np.array([3.3719, -6.7183])
    warp = Warp(40, matrix, offset)
    for moved, slice_ in zip(warp.linear(slices), slices, strict=True):
        expected = ndimage.affine_transform(slice_, matrix, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(moved, expected, atol=2e-5)  # float32 coordinates up to 40
    for moved, slice_ in zip(warp.nearest(labels), labels, strict=True):
        expected = ndimage.affine_transform(slice_, matrix, offset, order=0, mode="grid-constant")
        assert (moved != expected).mean() < 1e-3  # where two pixels are equally near
