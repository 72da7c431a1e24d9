"""Strides and kernel sizes of a U-Net from patch and spacing, by nnU-Net's rule.

Isensee et al. 2021; `get_pool_and_conv_props` of nnU-Net v2. A stage halves the axes whose spacing is less than twice
the smallest one, so that maps become isotropic first; from then on kernels are 3 wide along an axis. Ours: a patch that
the strides do not divide is an error; nnU-Net enlarges it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from sam2_3dmed_jax.config import UNetConfig
from sam2_3dmed_jax.errors import UserError

MIN_MAP_SIZE = 4  # smallest number of voxels along an axis after it was halved

Triple = tuple[int, int, int]


class Stage(NamedTuple):
    """One resolution of the encoder."""

    stride: Triple  # stride of the first convolution, (z, y, x)
    kernel: Triple
    features: int
    blocks: int  # number of residual blocks


def unet_stages(config: UNetConfig) -> tuple[Stage, ...]:
    """Return the stages of a U-Net, from the resolution of the patch to the coarsest.

    Raises:
        UserError: the settings do not describe a network, or the strides do not divide the patch.
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
        enlarged = " ".join(str(-(-n // t) * t) for n, t in zip(config.patch, total, strict=True))
        patch = " x ".join(map(str, config.patch))
        raise UserError(f"model.patch: {patch} is not divisible by the strides {tuple(total)}; use {enlarged}")
    return tuple(stages)


def _halved_axes(size: list[int], spacing: list[float]) -> list[int]:
    """Return the axes that the next stage halves; none if this stage is the coarsest."""
    long = [axis for axis in range(3) if size[axis] >= 2 * MIN_MAP_SIZE]
    if not long:
        return []
    finest = min(spacing[axis] for axis in long)
    axes = [axis for axis in long if spacing[axis] < 2 * finest]
    # A single axis is halved only if it is long enough, as in nnU-Net.
    return [] if len(axes) == 1 and size[axes[0]] < 3 * MIN_MAP_SIZE else axes


def _check(config: UNetConfig) -> None:
    if min(config.patch) < 1:
        raise UserError(
            f"model.patch: {config.patch} is not a patch size; give positive numbers of voxels along z, y and x"
        )
    if not all(math.isfinite(mm) and mm > 0 for mm in config.spacing):
        raise UserError(f"model.spacing: {config.spacing} is not a spacing; give positive mm along z, y and x")
    if len(config.blocks) < 2 or min(config.blocks) < 1:
        raise UserError(
            f"model.blocks: {config.blocks} does not describe a U-Net; give at least 2 stages of at least 1 block"
        )
    if min(config.features, config.max_features) < 1:
        raise UserError("model.features, model.max_features: numbers of channels must be positive; give 1 or more")


def _triple(values: list[int]) -> Triple:
    z, y, x = values
    return z, y, x
