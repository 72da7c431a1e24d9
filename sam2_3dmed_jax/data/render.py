"""Rendering of clips and patches: from stored voxels to the arrays that models are trained on, in compiled programs.

The host sends slices and labels as they are stored, with a window, a map and random parameters; the first part of each
compiled step computes what the model takes. `warp` and `masks` contain the formulas that the host uses too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from sam2_3dmed_jax.config import AugmentationConfig
from sam2_3dmed_jax.data.augment import moves_pixels
from sam2_3dmed_jax.data.clips import Clip, RenderedClip
from sam2_3dmed_jax.data.masks import covered
from sam2_3dmed_jax.data.warp import linear, nearest
from sam2_3dmed_jax.volume import device_intensity

Arrays = dict[str, jax.Array]
_BYTES_SD = math.sqrt(4 * (256**2 - 1) / 12)  # of the sum of four uniform bytes
_BYTES_MEAN = 4 * 255 / 2
_STORED = frozenset(("grey", "labels", "window", "vertical", "horizontal", "inverse_map", "intensity", "noise_key"))


def render_clips(batch: Arrays, augmentation: AugmentationConfig) -> Arrays:
    """Render a batch of clips.

    Args:
        batch: fields of `clips.Clip`, with a leading axis B.
        augmentation: of the clips; changes that are off take no time.

    Returns:
        The batch with `masks` uint8 `[B, D, K, S, S]` and, unless it has cached features, `slices` float32
        `[B, D, S, S]` in [0, 1], zeros for padding, instead of stored voxels and parameters.
    """
    rendered: Arrays = jax.vmap(functools.partial(_render_clip, augmentation=augmentation))(batch)
    return rendered


@functools.partial(jax.jit, static_argnames="augmentation")
def _render_one(clip: Arrays, augmentation: AugmentationConfig) -> Arrays:
    return _render_clip(clip, augmentation)


def rendered_clip(clip: Clip, augmentation: AugmentationConfig) -> RenderedClip:
    """Render one clip of slices outside of a step, such as for a picture; without an axis B."""
    rendered: RenderedClip = jax.device_get(_render_one(dict(clip), augmentation))
    return rendered


def render_patches(batch: Arrays, augmentation: AugmentationConfig, shape: tuple[int, int]) -> Arrays:
    """Render a batch of patches.

    Args:
        batch: fields of `patches.Patch`, with a leading axis B.
        augmentation: of the patches (`patches.patch_augmentation`).
        shape: (H, W) of the result.

    Returns:
        `image` float32 `[B, D, H, W]` in [0, 1], and `labels` uint8 `[B, D, H, W]`.
    """

    def render(patch: Arrays) -> Arrays:
        image, labels = _to_unit(patch, None, None), patch["labels"]
        if moves_pixels(augmentation):
            image, labels = _warped(linear, image, patch, shape), _warped(nearest, labels, patch, shape)
        return {"image": change_intensity(image, patch, augmentation), "labels": labels}

    rendered: Arrays = jax.vmap(render)(batch)
    return rendered


def change_intensity(slices: jax.Array, parameters: Mapping[str, jax.Array], config: AugmentationConfig) -> jax.Array:
    """Change contrast, brightness, gamma and noise. A setting of zero leaves the values bit for bit unchanged.

    The noise is the sum of four uniform bytes of the generator Threefry: close to normal within 2.5 SD, and limited to
    3.5 SD. It depends on the key and on the position in the clip only.

    Args:
        slices: float32 `[n, H, W]` in [0, 1].
        parameters: `augment.IntensityChange`.
        config: the settings.

    Returns:
        float32 `[n, H, W]` in [0, 1].
    """
    contrast, brightness, gamma, noise = parameters["intensity"]
    if config.intensity:
        slices = (slices * contrast + brightness).clip(0, 1)
    if config.gamma:
        slices = jnp.exp(gamma * jnp.log(slices))  # a fifth of the time of `power` on CPU; 0 stays 0
    if config.noise:
        words = jax.random.bits(jax.random.wrap_key_data(parameters["noise_key"], impl="threefry2x32"), slices.shape)
        total = (words & 255) + ((words >> 8) & 255) + ((words >> 16) & 255) + (words >> 24)
        deviation = (total.astype(jnp.float32) - _BYTES_MEAN) * (noise / _BYTES_SD)
        slices = (slices + deviation).clip(0, 1)
    return slices


def _render_clip(clip: Arrays, augmentation: AugmentationConfig) -> Arrays:
    """Render one clip, without an axis B."""
    vertical, horizontal = clip.get("vertical"), clip.get("horizontal")
    rendered = {name: value for name, value in clip.items() if name not in _STORED}
    rendered["masks"] = _masks(clip, vertical, horizontal, augmentation).astype(jnp.uint8)
    if "grey" in clip:
        slices = _to_unit(clip, vertical, horizontal)
        if moves_pixels(augmentation):
            slices = _warped(linear, slices, clip)
        slices = change_intensity(slices, clip, augmentation)
        rendered["slices"] = jnp.where(clip["slice_valid"][:, None, None], slices, 0)
    return rendered


def _to_unit(stored: Arrays, vertical: jax.Array | None, horizontal: jax.Array | None) -> jax.Array:
    """Window and resize the stored slices of a clip or patch."""
    low, width = stored["window"]
    return device_intensity.prepare(stored["grey"], low, width, vertical, horizontal)


def _masks(
    clip: Arrays, vertical: jax.Array | None, horizontal: jax.Array | None, augmentation: AugmentationConfig
) -> jax.Array:
    """Return the masks of the objects of a clip, bool `[D, K, S, S]`."""
    labels, (objects,) = clip["labels"], clip["object_valid"].shape
    bits = jnp.arange(objects, dtype=labels.dtype)[None, :, None, None]
    masks = (labels[:, None] >> bits) & 1 != 0
    if vertical is not None and horizontal is not None:
        with jax.default_matmul_precision("highest"):
            masks = covered(masks.astype(jnp.float32), vertical, horizontal)
    if moves_pixels(augmentation):
        flat = masks.reshape(-1, *masks.shape[2:])
        masks = _warped(nearest, flat, clip).reshape(masks.shape)
    return masks


def _warped(
    resample: Callable[[jax.Array, jax.Array, tuple[int, int]], jax.Array],
    slices: jax.Array,
    parameters: Arrays,
    shape: tuple[int, int] | None = None,
) -> jax.Array:
    """Resample slices `[n, h, w]` to `[n, *shape]`, or to their own shape, by the map of a clip or patch."""
    _, h, w = slices.shape
    return resample(slices, parameters["inverse_map"], shape or (h, w))
