"""Perturbed prompts for sweeps: placed in a reference, moved by millimetres, noisy, or on a neighbouring label.

Lengths are in millimetres in the plane of the slice, computed with the affine, so they hold on anisotropic, rotated and
sheared grids. Random draws depend only on the case, the object, the slice and the seed: settings are compared on the
same draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.prompts.prompt_types import PROMPT_TYPES
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts
from sam2_3dmed_jax.prompts.simulation import box_of, centre_point, largest_slice
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.label_classes import Target, written_values

OWN, OTHER = "own", "other"  # values of `PromptVariation.prompt_of`
OBJECT, OUTSIDE = "object", "outside"  # values of `prompted_onto` besides label values of neighbours


def simulated_prompt_types() -> tuple[str, ...]:
    """Return the names of the prompt types that can be simulated from a mask."""
    return tuple(name for name, entry in PROMPT_TYPES.items() if entry.simulate)


@dataclass(frozen=True)
class PromptVariation:
    """How the prompts of an object are simulated and perturbed."""

    prompt: str = "point"  # one of `simulated_prompt_types`
    placement: str = "centre"  # of points: "centre" or "random"
    noise_mm: float = 0.0
    misplacement_mm: float = 0.0
    neighbour: bool = False  # whether the prompt is put on the nearest other label
    prompt_of: str = OWN  # OTHER: each object gets the prompts of another one, see `swap_partners`
    prompted_slices: int = 1


@dataclass(frozen=True)
class Displacement:
    """How far the actual prompts of an object are from its exact ones."""

    # Distance between the middles of the exact and the actual prompt: the mean over slices, or, with prompts of another
    # object, between the means over slices.
    moved_mm: float
    prompted_onto: str  # OBJECT, OUTSIDE, or label values of neighbours or of the other object, joined by "+"
    prompt_of: Target  # the object whose prompts they are


@dataclass(frozen=True)
class _Placed:
    """The prompts of one object, with their middles in mm, `[P, 3]`."""

    prompts: list[VoxelPrompt]
    exact_mm: np.ndarray
    actual_mm: np.ndarray
    prompted_onto: str


def place_prompts(
    variation: PromptVariation, case: str, reference: np.ndarray, grid: Grid, objects: Sequence[Target], seed: int
) -> tuple[ObjectPrompts, dict[Target, Displacement]]:
    """Simulate and perturb the prompts of each object that is in a reference.

    Args:
        variation: how to simulate and perturb.
        case: case id, which the random draws depend on.
        reference: label map `[D, H, W]`.
        grid: its grid.
        objects: label values of each object.
        seed: seed of the random draws.

    Returns:
        The prompts and their displacements, by object. With prompts of other objects, an object without a partner has
        none.
    """
    values = dict(zip(objects, written_values(objects), strict=True))
    placed: dict[Target, _Placed] = {}
    for target, value in values.items():
        mask = np.isin(reference, target)
        if mask.any():
            placed[target] = _place_object(variation, case, reference, mask, grid, target, value, seed)
    if variation.prompt_of == OWN:
        prompts = {target: own.prompts for target, own in placed.items()}
        return prompts, {target: _displacement(own, target) for target, own in placed.items()}
    partners = swap_partners({target: values[target] for target in placed})
    swapped = {
        target: [replace(prompt, object_id=values[target]) for prompt in placed[partners[target]].prompts]
        for target in placed
        if target in partners
    }
    return swapped, {target: _swap(placed[target], placed[partners[target]], partners[target]) for target in swapped}


def swap_partners(values: Mapping[Target, int]) -> dict[Target, Target]:
    """Return the object whose prompts each object of a case gets in a swap.

    It is the next one in the order of label values, after the last one the first. Objects that share a label are left
    out, since one is inside the other: a prompt of the one may be a correct prompt of the other.

    Args:
        values: the label value that each object of the case writes.

    Returns:
        The partner of each object that has one.
    """
    order = sorted(values, key=values.__getitem__)
    partners = {}
    for at, target in enumerate(order):
        following = [*order[at + 1 :], *order[:at]]
        disjoint = [other for other in following if set(other).isdisjoint(target)]
        if disjoint:
            partners[target] = disjoint[0]
    return partners


def _place_object(
    variation: PromptVariation,
    case: str,
    reference: np.ndarray,
    mask: np.ndarray,
    grid: Grid,
    target: Target,
    value: int,
    seed: int,
) -> _Placed:
    """Simulate and perturb the prompts of one object, bool `[D, H, W]`, which is not empty."""
    prompts, exact_mm, actual_mm, prompted_onto = [], [], [], []
    for index in prompted_slices_of(mask, variation.prompted_slices):
        slice_ = _ObjectSlice(variation, reference[index], mask[index], grid, (seed, case, target, index))
        exact = slice_.simulate(mask[index], value)
        perturbed, onto = slice_.perturb(exact, value)
        prompts.append(perturbed)
        exact_mm.append(_middle_mm(exact, grid))
        actual_mm.append(_middle_mm(perturbed, grid))
        prompted_onto.append(onto)
    return _Placed(prompts, np.array(exact_mm), np.array(actual_mm), "+".join(dict.fromkeys(prompted_onto)))


def _displacement(own: _Placed, target: Target) -> Displacement:
    """Return the displacement of an object with its own prompts."""
    distances = np.linalg.norm(own.actual_mm - own.exact_mm, axis=1)
    return Displacement(float(np.mean(distances)), own.prompted_onto, target)


def _swap(own: _Placed, other: _Placed, partner: Target) -> Displacement:
    """Return the displacement of an object with the prompts of its partner."""
    distance = np.linalg.norm(other.actual_mm.mean(0) - own.exact_mm.mean(0))
    return Displacement(float(distance), "+".join(map(str, partner)), partner)


def prompted_slices_of(mask: np.ndarray, count: int) -> list[int]:
    """Choose the slices of an object `[D, H, W]` to prompt, in ascending order.

    They are the middles of `count` equal parts of its extent, moved to the nearest slice with the object. The one
    nearest to the slice with the largest area is replaced by that slice.
    """
    present = np.flatnonzero(mask.any((1, 2)))
    best = largest_slice(mask)
    if count >= len(present):
        return [int(index) for index in present]
    middles = present[0] + (np.arange(count) + 0.5) * (present[-1] - present[0] + 1) / count - 0.5
    middles = np.delete(middles, np.abs(middles - best).argmin())
    chosen = [best]
    for middle in middles:  # `free` is never empty: the object has more than `count` slices.
        free = np.setdiff1d(present, chosen)
        chosen.append(int(free[np.abs(free - middle).argmin()]))
    return sorted(chosen)


class _ObjectSlice:
    """One object on one slice of a case."""

    def __init__(
        self,
        variation: PromptVariation,
        labels: np.ndarray,
        mask: np.ndarray,
        grid: Grid,
        draw_key: tuple[int, str, Target, int],
    ):
        """Take the labels and the mask of a slice `[H, W]`; `draw_key` is (seed, case, object, slice)."""
        self.variation, self.labels, self.mask, self.draw_key = variation, labels, mask, draw_key
        self.plane = grid.canonical_affine[:3, [2, 1]]  # from (x, y) in voxels to mm
        self.spacing = grid.spacing[1:]

    def simulate(self, mask: np.ndarray, value: int) -> VoxelPrompt:
        """Return the exact prompt of a mask on this slice."""
        simulate = PROMPT_TYPES[self.variation.prompt].simulate
        if simulate is None:
            raise ValueError(f"prompts of type '{self.variation.prompt}' cannot be simulated")
        rng = self._generator("placement") if self.variation.placement == "random" else None
        return simulate(mask, self.spacing, value, self.draw_key[3], rng)

    def perturb(self, exact: VoxelPrompt, value: int) -> tuple[VoxelPrompt, str]:
        """Return the perturbed prompt, and what it is put on."""
        variation, prompt, onto = self.variation, exact, OBJECT
        if variation.neighbour:
            label = self._nearest_label()
            if label:
                prompt, onto = self.simulate(self.labels == label, value), str(label)
            else:
                prompt, onto = self._shift(exact, self._offset_to_outside()), OUTSIDE
        elif variation.misplacement_mm:
            # An object has one direction, for all lengths and on all of its slices.
            angle = self._generator("direction", all_slices=True).uniform(0.0, 2 * np.pi)
            offset_mm = variation.misplacement_mm * np.array([np.cos(angle), np.sin(angle)])
            prompt = self._shift(exact, self._voxels_of_mm(offset_mm))
        if variation.noise_mm:
            prompt = self._add_noise(prompt)
        return prompt, onto

    def _add_noise(self, prompt: VoxelPrompt) -> VoxelPrompt:
        """Shift a point or mask, or move each side of a box, by normal noise."""
        noise = self.variation.noise_mm * self._generator("noise").standard_normal(4)
        if prompt.box is None:
            return self._shift(prompt, self._voxels_of_mm(noise[:2]))
        (height, width), (dy, dx) = self.mask.shape, self.spacing
        x0, y0, x1, y1 = np.array(prompt.box) + noise / (dx, dy, dx, dy)
        left, right = np.clip(sorted((x0, x1)), 0, width - 1).tolist()
        top, bottom = np.clip(sorted((y0, y1)), 0, height - 1).tolist()
        return replace(prompt, box=(left, top, right, bottom))

    def _shift(self, prompt: VoxelPrompt, offset: np.ndarray) -> VoxelPrompt:
        """Shift a prompt by (x, y) voxels, as far as all of it stays on the slice; a mask by whole voxels."""
        height, width = self.mask.shape
        x0, y0, x1, y1 = _sides(prompt)
        x, y = np.clip(offset, (-x0, -y0), (width - 1 - x1, height - 1 - y1)).tolist()
        if prompt.mask is not None:
            return replace(prompt, mask=np.roll(prompt.mask, (round(y), round(x)), (0, 1)))  # Nothing wraps around.
        if prompt.box is not None:
            return replace(prompt, box=(x0 + x, y0 + y, x1 + x, y1 + y))
        return replace(prompt, points=tuple((px + x, py + y) for px, py in prompt.points))

    def _voxels_of_mm(self, mm: np.ndarray) -> np.ndarray:
        """Convert millimetres along two orthogonal directions of the plane to (x, y) in voxels."""
        return np.linalg.solve(np.linalg.qr(self.plane)[1], mm)

    def _nearest_label(self) -> int:
        """Return the label nearest to the object on this slice, other than its own labels; 0 without such a label."""
        distance = ndimage.distance_transform_edt(~self.mask, sampling=self.spacing)
        others = [int(v) for v in np.unique(self.labels) if v > 0 and v not in self.draw_key[2]]
        return min(others, key=lambda v: float(distance[self.labels == v].min()), default=0)

    def _offset_to_outside(self) -> np.ndarray:
        """Return the offset from the object's centre to the nearest voxel that is outside by the misplacement.

        Returns:
            (x, y) in voxels; zeros if no voxel of the slice is that far outside.
        """
        distance = ndimage.distance_transform_edt(~self.mask, sampling=self.spacing)
        outside = np.argwhere((distance > 0) & (distance >= self.variation.misplacement_mm))
        if not len(outside):
            return np.zeros(2)
        offsets = outside[:, ::-1] - np.array(centre_point(self.mask, self.spacing))
        return np.asarray(offsets[np.linalg.norm(offsets @ self.plane.T, axis=1).argmin()])

    def _generator(self, purpose: str, all_slices: bool = False) -> np.random.Generator:
        """Return the random generator for one purpose, of this slice or of all slices of the object."""
        key = self.draw_key[:3] if all_slices else self.draw_key
        return np.random.default_rng(int.from_bytes(hashlib.sha256(repr((purpose, *key)).encode()).digest()))


def _sides(prompt: VoxelPrompt) -> tuple[float, float, float, float]:
    """Return (x0, y0, x1, y1) of the smallest box around a prompt."""
    if prompt.mask is not None:
        return box_of(prompt.mask)
    if prompt.box is not None:
        return prompt.box
    (x, y) = prompt.points[0]
    return x, y, x, y


def _middle_mm(prompt: VoxelPrompt, grid: Grid) -> np.ndarray:
    """Return the middle of a prompt in mm, `[3]`."""
    x, y = _middle(prompt)
    return np.asarray(grid.canonical_affine[:3] @ (prompt.slice, y, x, 1))


def _middle(prompt: VoxelPrompt) -> np.ndarray:
    """Return the middle (x, y) of a prompt; the centroid of a mask."""
    if prompt.mask is not None:
        return np.asarray(np.argwhere(prompt.mask).mean(0)[::-1])
    x0, y0, x1, y1 = _sides(prompt)
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2])
