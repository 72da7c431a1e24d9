"""Augmentation: image, mask, boundary and prompt are transformed together, and positions do not change.

The values of the volumes are coordinates: three cases with the same label map have the row, the column and the slice of
each voxel as values, and are cut with the same random numbers. So the values of a clip are the origin of each pixel.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.config import DataConfig, PreprocessingConfig, PromptConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION, draw_intensity_change, draw_spatial_map
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.render import change_intensity
from sam2_3dmed_jax.data.warp import IDENTITY, ONE, fixed_point_map, linear, nearest
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.targets import boundary_target
from tests.helpers.prepared_files import write_prepared
from tests.helpers.rendered import cut_and_render

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
    clips = {case.id: cut_and_render(reader, case, config, np.random.default_rng(seed)) for case in dataset.cases}
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


def changed_intensity(slices, config, seed):
    """Draw a change on the host and apply it in a compiled function."""
    change = draw_intensity_change(config, np.random.default_rng(seed))
    return np.asarray(jax.jit(lambda slices, change: change_intensity(slices, change, config))(slices, change))


@pytest.mark.parametrize("name", ["intensity", "gamma"])
def test_brightness_contrast_and_gamma_have_their_formula_and_keep_the_order_of_grey_values(name):
    grey = np.tile(np.linspace(0, 1, 101, dtype=np.float32), (2, 101, 1))
    config = replace(NO_AUGMENTATION, **INTENSITIES[name])
    for seed in range(20):
        shaded = changed_intensity(grey, config, seed)
        assert (np.diff(shaded[0, 0]) >= 0).all()
        contrast, brightness, gamma, noise = draw_intensity_change(config, np.random.default_rng(seed))["intensity"]
        expected = np.power(np.clip(grey * contrast + brightness, 0, 1), gamma)
        np.testing.assert_allclose(shaded, expected, rtol=0, atol=5e-7)  # exp and log in float32
        assert not noise


def test_noise_has_the_drawn_sd_zero_mean_no_correlation_and_a_limit():
    grey, config = np.full((3, 128, 128), 0.5, np.float32), replace(NO_AUGMENTATION, noise=0.1)
    drawn = []
    for seed in range(20):
        noise = changed_intensity(grey, config, seed) - grey
        drawn.append(float(draw_intensity_change(config, np.random.default_rng(seed))["intensity"][3]))
        # 5 SD of the SD, of the mean, and of the correlation, of 49152 values
        assert noise.std() == pytest.approx(drawn[-1], rel=0.02)
        assert abs(noise.mean()) < 5 * drawn[-1] / 220
        assert abs(np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1]) < 0.025
        assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.04
        assert 3 * drawn[-1] < np.abs(noise).max() < 3.46 * drawn[-1]  # four bytes, of which each is within 127.5
    assert 0 < min(drawn) < 0.03 and 0.07 < max(drawn) < 0.1


def test_the_noise_of_a_clip_does_not_depend_on_the_other_clips_of_its_batch():
    config = replace(NO_AUGMENTATION, noise=0.1)
    changes = [draw_intensity_change(config, np.random.default_rng(seed)) for seed in range(3)]
    grey = jnp.full((3, 2, 16, 16), 0.5)

    @jax.jit
    def batch(grey, changes):
        return jax.vmap(lambda slices, change: change_intensity(slices, change, config))(grey, changes)

    together = batch(grey, {name: np.stack([change[name] for change in changes]) for name in changes[0]})
    alone = batch(grey[2:], {name: value[None] for name, value in changes[2].items()})
    np.testing.assert_array_equal(together[2], alone[0])
    assert not np.array_equal(together[0], together[1])


def test_settings_of_zero_leave_clips_bit_for_bit_unchanged():
    rng = np.random.default_rng(0)
    slices = rng.random((3, 16, 16), np.float32)
    np.testing.assert_array_equal(draw_spatial_map(16, (1.0, 1.0), NO_AUGMENTATION, rng), IDENTITY)
    np.testing.assert_array_equal(changed_intensity(slices, NO_AUGMENTATION, 0), slices)


def test_maps_by_whole_pixels_keep_values_bit_for_bit():
    slices = np.random.default_rng(0).random((3, 16, 16), np.float32)
    flipped = np.array([[-ONE, 0, 15 * ONE], [0, ONE, 0]], np.int32)
    np.testing.assert_array_equal(jax.jit(linear, static_argnums=2)(slices, IDENTITY, (16, 16)), slices)
    np.testing.assert_array_equal(jax.jit(linear, static_argnums=2)(slices, flipped, (16, 16)), slices[:, ::-1])
    np.testing.assert_array_equal(nearest(slices, flipped, (16, 16)), slices[:, ::-1])


def test_flips_are_as_frequent_as_set_and_come_after_the_affine_map():
    config = replace(NO_AUGMENTATION, flip_probability=0.5, rotation=20.0)
    kinds = set()
    for seed in range(20):
        inverse = draw_spatial_map(9, (1.0, 1.0), config, np.random.default_rng(seed))
        plain = draw_spatial_map(9, (1.0, 1.0), replace(config, flip_probability=0.0), np.random.default_rng(seed))
        signs = np.sign(inverse[[0, 1], [0, 1]])
        kinds.add(tuple(signs))
        np.testing.assert_array_equal(inverse[:, :2], plain[:, :2] * signs[:, None])
        expected = np.where(signs < 0, 8 * ONE - plain[:, 2], plain[:, 2])
        np.testing.assert_allclose(inverse[:, 2], expected, atol=1)  # rounded once more
    assert len(kinds) == 4


def test_a_transform_that_moves_the_object_out_of_the_prompted_slice_is_left_out(coordinates):
    for seed in range(30):
        clip, *_ = cut(coordinates, augmented(shift=2.0), seed)
        assert clip["object_valid"][0] and clip["prompt_step"][0] == 0


def test_a_shift_beyond_the_fixed_point_range_is_refused():
    with pytest.raises(UserError, match=r"^data\.augmentation: it moves pixels by .*; lower shift"):
        fixed_point_map(np.eye(2), np.array([0, 20_000]), (64, 64))


def test_a_rotation_preserves_distances_in_millimetres():
    config = replace(NO_AUGMENTATION, rotation=90.0)
    inverse = draw_spatial_map(65, (1.0, 2.0), config, np.random.default_rng(0)) / ONE

    def mm(a, b):
        return np.hypot(*((inverse[:, :2] @ np.subtract(a, b)) * (1.0, 2.0)))

    # 8 rows are 8 mm, and 4 columns are 8 mm, before and after the rotation. Maps have steps of 1/65536 pixel.
    assert mm((32, 32), (40, 32)) == pytest.approx(8, abs=3e-4) == mm((32, 32), (32, 36))


def test_the_warp_agrees_with_scipy():
    from scipy import ndimage

    rng = np.random.default_rng(0)
    slices, labels = rng.random((2, 30, 40), np.float32), rng.integers(0, 4, (2, 30, 40)).astype(np.uint8)
    inverse = fixed_point_map(np.array([[0.9123, -0.3147], [0.2571, 1.1039]]), np.array([3.3719, -6.7183]), (50, 36))
    matrix, offset = inverse[:, :2] / ONE, inverse[:, 2] / ONE
    moved, near = jax.jit(linear, static_argnums=2)(slices, inverse, (50, 36)), nearest(labels, inverse, (50, 36))
    for n in range(2):
        options = {"output_shape": (50, 36), "mode": "grid-constant"}
        expected = ndimage.affine_transform(slices[n].astype(np.float64), matrix, offset, order=1, **options)
        np.testing.assert_allclose(moved[n], expected, atol=5e-7)  # float32 values up to 1, exact coordinates
        expected = ndimage.affine_transform(labels[n], matrix, offset, order=0, **options)
        assert (near[n] != expected).mean() < 1e-3  # where two pixels are equally near
