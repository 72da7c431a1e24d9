"""From a reference and a setting to prompts: placed, moved by millimetres, noisy, or on the neighbouring organ.

Lengths are in the plane of the slice and in millimetres by the affine, so they hold on anisotropic, rotated and sheared
grids. All draws belong to a case, an object and a slice, and to nothing else: settings are compared on the same draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.prompts.protocols import ObjectPrompts
from sam2_3dmed_jax.prompts.simulation import box_of, centre_point, largest_slice, random_point
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.label_classes import Target, painted_values

OBJECT, OUTSIDE = "object", "outside"  # what a prompt was put on, beside labels of neighbours


@dataclass(frozen=True)
class PromptVariation:
    """How the prompts of an object are made and disturbed."""

    prompt: str = "point"  # "point", "box" or "mask"
    placement: str = "centre"  # of points: "centre" or "random"
    noise_mm: float = 0.0
    misplacement_mm: float = 0.0
    neighbour: bool = False  # the prompt is put on the nearest other label
    prompted_slices: int = 1


@dataclass(frozen=True)
class Placed:
    """What became of an object's prompts."""

    moved_mm: float  # mean over its slices, from the middle of the undisturbed prompt to that of the given one
    onto: str  # OBJECT, OUTSIDE, or label values of neighbours


def place_prompts(
    setting: PromptVariation, case: str, reference: np.ndarray, grid: Grid, objects: Sequence[Target], seed: int
) -> tuple[ObjectPrompts, dict[Target, Placed]]:
    """The prompts of each object that a reference holds.

    Args:
        setting: of the prompts.
        case: its id, to which the draws belong.
        reference: label map `[D, H, W]`.
        grid: its grid.
        objects: label values of each.
        seed: of the draws.

    Returns:
        ObjectPrompts, and what became of them, by object.
    """
    prompts: ObjectPrompts = {}
    placed = {}
    for target, value in zip(objects, painted_values(objects), strict=True):
        mask = np.isin(reference, target)
        if not mask.any():
            continue
        made, moved, onto = [], [], []
        for index in chosen_slices(mask, setting.prompted_slices):
            slice_ = _Slice(setting, reference[index], mask[index], grid, (seed, case, target, index))
            exact = slice_.prompt(mask[index], value)
            given, name = slice_.disturbed(exact, value)
            made.append(given)
            moved.append(float(np.linalg.norm(slice_.plane @ (_middle(given) - _middle(exact)))))
            onto.append(name)
        prompts[target] = made
        placed[target] = Placed(float(np.mean(moved)), "+".join(dict.fromkeys(onto)))
    return prompts, placed


def chosen_slices(mask: np.ndarray, count: int) -> list[int]:
    """The slices of an object `[D, H, W]` to prompt, in ascending order.

    They are the middles of `count` equal parts of its extent, moved to the nearest slice that holds it; of these, the
    one nearest to the slice with its largest area gives way to that slice.
    """
    present = np.flatnonzero(mask.any((1, 2)))
    best = largest_slice(mask)
    if count >= len(present):
        return [int(index) for index in present]
    middles = present[0] + (np.arange(count) + 0.5) * (present[-1] - present[0] + 1) / count - 0.5
    middles = np.delete(middles, np.abs(middles - best).argmin())
    chosen = [best]
    for middle in middles:  # there are more slices than are chosen
        free = np.setdiff1d(present, chosen)
        chosen.append(int(free[np.abs(free - middle).argmin()]))
    return sorted(chosen)


class _Slice:
    """One object on one slice."""

    def __init__(
        self,
        setting: PromptVariation,
        labels: np.ndarray,
        mask: np.ndarray,
        grid: Grid,
        whose: tuple[int, str, Target, int],
    ):
        self.setting, self.labels, self.mask, self.whose = setting, labels, mask, whose
        self.plane = grid.canonical_affine[:3, [2, 1]]  # from (x, y) in voxels to mm
        self.spacing = grid.spacing[1:]

    def prompt(self, mask: np.ndarray, value: int) -> VoxelPrompt:
        """The undisturbed prompt of a mask on this slice."""
        index = self.whose[3]
        if self.setting.prompt == "box":
            return VoxelPrompt(value, index, box=box_of(mask))
        if self.setting.prompt == "mask":
            return VoxelPrompt(value, index, mask=mask)
        if self.setting.placement == "random":
            return VoxelPrompt(value, index, (random_point(mask, self._draws("placement")),), (1,))
        return VoxelPrompt(value, index, (centre_point(mask, self.spacing),), (1,))

    def disturbed(self, exact: VoxelPrompt, value: int) -> tuple[VoxelPrompt, str]:
        """The prompt as it is given, and what it was put on."""
        setting, onto = self.setting, OBJECT
        if setting.neighbour:
            label = self._nearest_label()
            if label:
                exact, onto = self.prompt(self.labels == label, value), str(label)
            else:
                exact, onto = self._moved(exact, self._out()), OUTSIDE
        elif setting.misplacement_mm:
            # The direction is an object's, the same for all lengths and on all its slices.
            angle = self._draws("direction", all_slices=True).uniform(0.0, 2 * np.pi)
            exact = self._moved(exact, self._voxels(setting.misplacement_mm * np.array([np.cos(angle), np.sin(angle)])))
        if setting.noise_mm:
            exact = self._noisy(exact)
        return exact, onto

    def _noisy(self, prompt: VoxelPrompt) -> VoxelPrompt:
        noise = self.setting.noise_mm * self._draws("noise").standard_normal(4)
        if prompt.box is None:
            return self._moved(prompt, self._voxels(noise[:2]))
        (height, width), (dy, dx) = self.mask.shape, self.spacing
        x0, y0, x1, y1 = np.array(prompt.box) + noise / (dx, dy, dx, dy)
        left, right = np.clip(sorted((x0, x1)), 0, width - 1).tolist()
        top, bottom = np.clip(sorted((y0, y1)), 0, height - 1).tolist()
        return replace(prompt, box=(left, top, right, bottom))

    def _moved(self, prompt: VoxelPrompt, offset: np.ndarray) -> VoxelPrompt:
        """A prompt moved by (x, y) voxels, as far as all of it stays on the slice; a mask by whole voxels."""
        height, width = self.mask.shape
        x0, y0, x1, y1 = _sides(prompt)
        x, y = np.clip(offset, (-x0, -y0), (width - 1 - x1, height - 1 - y1)).tolist()
        if prompt.mask is not None:
            return replace(prompt, mask=np.roll(prompt.mask, (round(y), round(x)), (0, 1)))  # nothing comes round
        if prompt.box is not None:
            return replace(prompt, box=(x0 + x, y0 + y, x1 + x, y1 + y))
        return replace(prompt, points=tuple((px + x, py + y) for px, py in prompt.points))

    def _voxels(self, mm: np.ndarray) -> np.ndarray:
        """From millimetres along two orthogonal directions of the plane to (x, y) in voxels."""
        return np.linalg.solve(np.linalg.qr(self.plane)[1], mm)

    def _nearest_label(self) -> int:
        """The label on this slice nearest to the object that is none of its own; 0: there is none."""
        distance = ndimage.distance_transform_edt(~self.mask, sampling=self.spacing)
        others = [int(v) for v in np.unique(self.labels) if v > 0 and v not in self.whose[2]]
        return min(others, key=lambda v: float(distance[self.labels == v].min()), default=0)

    def _out(self) -> np.ndarray:
        """From the object's centre to the nearest voxel that lies outside by the misplacement, (x, y) in voxels."""
        distance = ndimage.distance_transform_edt(~self.mask, sampling=self.spacing)
        there = np.argwhere((distance > 0) & (distance >= self.setting.misplacement_mm))
        if not len(there):
            return np.zeros(2)
        offsets = there[:, ::-1] - np.array(centre_point(self.mask, self.spacing))
        return np.asarray(offsets[np.linalg.norm(offsets @ self.plane.T, axis=1).argmin()])

    def _draws(self, what: str, all_slices: bool = False) -> np.random.Generator:
        whose = self.whose[:3] if all_slices else self.whose
        return np.random.default_rng(int.from_bytes(hashlib.sha256(repr((what, *whose)).encode()).digest()))


def _sides(prompt: VoxelPrompt) -> tuple[float, float, float, float]:
    if prompt.mask is not None:
        return box_of(prompt.mask)
    if prompt.box is not None:
        return prompt.box
    (x, y) = prompt.points[0]
    return x, y, x, y


def _middle(prompt: VoxelPrompt) -> np.ndarray:
    """(x, y): of a mask its centroid."""
    if prompt.mask is not None:
        return np.argwhere(prompt.mask).mean(0)[::-1]
    x0, y0, x1, y1 = _sides(prompt)
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2])
