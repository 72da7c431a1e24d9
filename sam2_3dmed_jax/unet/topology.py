"""Where a U-Net halves its maps, and how wide its kernels are: nnU-Net's rule from patch and spacing.

Isensee et al. 2021; `get_pool_and_conv_props` of nnU-Net v2. An axis is halved once its voxels are less than twice the
smallest ones, so that maps become isotropic first; kernels span an axis from then on. Ours: a patch that the strides do
not divide is refused, not enlarged.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from sam2_3dmed_jax.config import UNetConfig
from sam2_3dmed_jax.errors import UserError

SMALLEST = 4  # voxels of a map along an axis, at least, after it was halved

Triple = tuple[int, int, int]


class Stage(NamedTuple):
    """One resolution of the encoder."""

    stride: Triple  # of its first convolution, (z, y, x)
    kernel: Triple
    features: int
    blocks: int


def stages_of(config: UNetConfig) -> tuple[Stage, ...]:
    """The stages of a U-Net, from the patch's own resolution to the coarsest.

    Raises:
        UserError: settings that make no network, or a patch that the strides do not divide.
    """
    _check(config)
    size, spacing = list(config.patch), list(config.spacing)
    kernel, stride = [1, 1, 1], [1, 1, 1]
    stages: list[Stage] = []
    for number, blocks in enumerate(config.blocks):
        if number:
            halved = _halved_axes(size, spacing)
            if not halved:
                break
            stride = [2 if axis in halved else 1 for axis in range(3)]
            size = [-(-n // s) for n, s in zip(size, stride, strict=True)]
            spacing = [mm * s for mm, s in zip(spacing, stride, strict=True)]
        kernel = [3 if k == 3 or mm < 2 * min(spacing) else 1 for k, mm in zip(kernel, spacing, strict=True)]
        features = min(config.features * 2**number, config.max_features)
        stages.append(Stage(_triple(stride), _triple(kernel), features, blocks))
    total = [math.prod(stage.stride[axis] for stage in stages) for axis in range(3)]
    if any(n % t for n, t in zip(config.patch, total, strict=True)):
        fits = " ".join(str(-(-n // t) * t) for n, t in zip(config.patch, total, strict=True))
        told = " x ".join(map(str, config.patch))
        raise UserError(f"model.unet.patch: {told} is not divisible by the strides {tuple(total)}; use {fits}")
    return tuple(stages)


def _halved_axes(size: list[int], spacing: list[float]) -> list[int]:
    """The axes that the next stage halves; none if this is the coarsest."""
    long = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST]
    if not long:
        return []
    finest = min(spacing[axis] for axis in long)
    axes = [axis for axis in long if spacing[axis] < 2 * finest]
    # One axis alone is halved only where that leaves it some room, as in nnU-Net.
    return [] if len(axes) == 1 and size[axes[0]] < 3 * SMALLEST else axes


def _check(config: UNetConfig) -> None:
    if min(config.patch) < 1:
        raise UserError(f"model.unet.patch: {config.patch} is no patch; give voxels along z, y and x")
    if not all(math.isfinite(mm) and mm > 0 for mm in config.spacing):
        raise UserError(f"model.unet.spacing: {config.spacing} is no spacing; give mm along z, y and x")
    if len(config.blocks) < 2 or min(config.blocks) < 1:
        raise UserError(f"model.unet.blocks: {config.blocks} makes no U-Net; give 1 or more for two stages or more")
    if min(config.features, config.max_features) < 1:
        raise UserError("model.unet.features, model.unet.max_features: give 1 or more")


def _triple(values: list[int]) -> Triple:
    z, y, x = values
    return z, y, x
