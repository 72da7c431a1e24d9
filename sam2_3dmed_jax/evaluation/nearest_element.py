"""Surface elements of two masks and, from each of one, which of the other is nearest: exact, compiled once a size.

The squared Euclidean distance is a minimum of sums over axes, so three passes, an axis each, find it (Felzenszwalb &
Huttenlocher, "Distance Transforms of Sampled Functions", 2012; Saito & Toriwaki 1994). The passes keep where the
nearest element lies, not how far: distances are measured from that in float64, on the host. They look around each
voxel as far as most elements need; a few that lie further off, specks far from the object, ask a k-d tree.

The box is one row of voxels behind another, with strides as data. So a compilation belongs to a number of voxels, not
to a shape, and any box is padded to one of a few numbers (`padded_size`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy.spatial import KDTree

from sam2_3dmed_jax.evaluation.surface_area import CORNERS, FULL

_FIRST_REACH = 8  # voxels of the finer outer axis: most predictions' surfaces are nearer than that
_QUERY = 2e5  # what an element costs in the tree, in voxels that a pass looks at
_NOTHING = 1 << 14  # the step along x in a row without an element; no volume has so many voxels on an axis


class Elements(NamedTuple):
    """The surface elements of one mask: where they are in the box, their codes, and the way to the nearest other."""

    at: np.ndarray  # int64 [E], flat index in the box
    code: np.ndarray  # uint8 [E], see `surface_area`; 1 for voxels
    offset: np.ndarray  # int64 [3, E], voxels along z, y, x to the nearest element of the other mask


def padded_size(voxels: int) -> int:
    """The length that a box of so many voxels is padded to: 2^16, 2^18, 2^20 and from there every power of two."""
    exponent = max(16, (voxels - 1).bit_length())
    return 1 << (exponent if exponent > 20 else exponent + exponent % 2)


def nearest_elements(box: np.ndarray, spacing: Sequence[float], voxels: bool) -> tuple[Elements, Elements]:
    """Elements of both masks, each with the way to the nearest of the other's.

    Args:
        box: uint8 `[D, H, W]`, bit 0 one mask and bit 1 the other, neither empty; its last plane, row and column are 0,
            which keeps the rows apart when they are laid end to end.
        spacing: millimetres between voxels.
        voxels: elements are voxels with one of their six neighbours outside; otherwise crossed cubes, the one at
            (z, y, x) having that voxel as its upper corner.

    Returns:
        Those of bit 0, then those of bit 1. Of elements that are equally near within float32 rounding, any.
    """
    D, H, W = box.shape
    flat = np.zeros(padded_size(box.size), np.uint8)
    flat[: box.size] = box.ravel()
    scale = max(spacing)  # float32 has room for any unit
    unit = np.array(spacing, np.float32) / np.float32(scale)
    codes, (*ways, seen) = jax.device_get(_search(flat, np.array(box.shape, np.int32), unit, voxels))
    indices = [np.flatnonzero(_is_element(code[: box.size])) for code in codes]
    found = []
    for own in (0, 1):
        index, (steps_z, steps_y, steps_x) = indices[own], (way[own] for way in ways)
        dz = steps_z[index].astype(np.int64)
        above = index + dz * H * W
        dy = steps_y[above].astype(np.int64)
        dx = steps_x[above + dy * W].astype(np.int64)
        offset = np.stack([dz, dy, dx])
        squared = np.square(offset * (np.array(spacing)[:, None] / scale)).sum(0)
        far = np.flatnonzero((squared > seen[own]) | (dx == _NOTHING))
        if far.size:
            offset[:, far] = _by_tree(index[far], indices[1 - own], box.shape, spacing)
        found.append(Elements(index, codes[own][index], offset))
    return found[0], found[1]


def _by_tree(index: np.ndarray, others: np.ndarray, shape: tuple[int, ...], spacing: Sequence[float]) -> np.ndarray:
    """Steps in voxels, int64 `[3, E]`, from elements at `index` to the nearest of `others`."""
    start, ends = (np.stack(np.unravel_index(at, shape)) for at in (index, others))
    size = np.array(spacing)[:, None]
    _, nearest = KDTree((ends * size).T, leafsize=32).query((start * size).T)
    return np.asarray(ends[:, nearest] - start)


def _is_element(code):  # type: ignore[no-untyped-def]
    return (code != 0) & (code != FULL)


@partial(jax.jit, static_argnums=3)
def _search(flat: Array, shape: Array, spacing: Array, voxels: bool) -> tuple[Array, tuple[Array, ...]]:
    """Codes `[2, N]` of both masks and, of either, the steps to the other's elements, see `_steps`."""
    at = jnp.arange(flat.size, dtype=jnp.int32)
    _, H, W = shape
    row = lax.div(at, W)  # two plain divisions: jnp's care for signs takes longer than the search
    z = lax.div(row, H)
    y, x = row - z * H, at - row * W
    codes = jnp.stack([_codes((flat >> bit) & 1, H * W, W, voxels) for bit in (0, 1)])
    # Without a barrier XLA works all this out again wherever it is used, also in the innermost loop.
    codes, z, y, x = lax.optimization_barrier((codes, *(c.astype(jnp.int16) for c in (z, y, x))))
    elements = lax.optimization_barrier(_is_element(codes))
    return codes, lax.map(lambda pair: _steps(pair[0], pair[1], (z, y, x), shape, spacing), (elements[::-1], elements))


def _codes(mask: Array, plane: Array, row: Array, voxels: bool) -> Array:
    """The code of the cube that ends at each voxel; or 1 at voxels of the surface. What lies before the box is 0."""
    N = mask.size
    padded = jnp.pad(mask, N)

    def moved(by: Array) -> Array:
        return lax.dynamic_slice(padded, (N + by,), (N,))

    if voxels:
        inside = mask
        for stride in (plane, row, jnp.int32(1)):
            inside = inside & moved(stride) & moved(-stride)
        return mask & ~inside
    code = jnp.zeros_like(mask)
    for bit, (z, y, x) in enumerate(CORNERS):
        code = code | moved((z - 1) * plane + (y - 1) * row + (x - 1)) << bit
    return code


def _steps(others: Array, own: Array, at: tuple[Array, ...], shape: Array, spacing: Array) -> tuple[Array, ...]:
    """Steps from the elements `own` towards the nearest of `others`.

    The pass along x looks at the whole row. Those along y and z look as far as `reach`, which doubles while it is
    cheaper to look further than to ask the tree about all elements to which something unseen could be nearer.

    Returns:
        Steps along z, y, x, int16 `[N]` each: the one along z is read at an element, the one along y where that leads,
        and the one along x where both lead. Last, float32, the squared distance up to which they are exact.
    """
    D, H, W = shape
    dz, dy, dx = spacing
    z, y, x = at
    along_x, steps_x = _row_pass(others, x, W, dx)
    none = jnp.zeros(others.size, jnp.int16)

    def widen(state: tuple[Array, ...]) -> tuple[Array, ...]:
        reach, seen_y, along_y, steps_y, *_ = state
        ny = jnp.minimum(jnp.ceil(reach / dy).astype(jnp.int32), H - 1)
        nz = jnp.minimum(jnp.ceil(reach / dz).astype(jnp.int32), D - 1)
        along_y, steps_y = _shift_pass(along_x, (along_y, steps_y), y, H, W, dy, seen_y + 1, ny)
        squared, steps_z = _shift_pass(along_y, (along_y, none), z, D, H * W, dz, 1, nz)
        unseen_y = jnp.where(ny < H - 1, jnp.square(dy * (ny + 1)), jnp.inf)
        unseen_z = jnp.where(nz < D - 1, jnp.square(dz * (nz + 1)), jnp.inf)
        exact = (1 - 1e-5) * jnp.minimum(unseen_y, unseen_z)  # less more roundings than there are
        far = jnp.count_nonzero(own & (squared > exact)).astype(jnp.float32)
        looking = 2.0 * others.size * (ny + 2 * nz).astype(jnp.float32)
        return 2 * reach, ny, along_y, steps_y, steps_z, exact, far * _QUERY > looking

    first = _FIRST_REACH * jnp.minimum(dz, dy)
    state: tuple[Array, ...] = (first, jnp.int32(0), along_x, none, none, jnp.float32(0), jnp.bool_(True))
    *_, steps_y, steps_z, exact, _ = lax.while_loop(lambda state: state[-1], widen, state)
    return steps_z, steps_y, steps_x, exact


def _row_pass(others: Array, x: Array, width: Array, spacing: Array) -> tuple[Array, Array]:
    """Squared distance to the nearest element of the same row, or inf, and the step to it, or `_NOTHING`."""
    N = others.size

    def double(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        # Voxels to the nearest element before and after, of all those up to 2^k away; then up to twice as far.
        before, after = state
        step = jnp.int32(1) << k
        earlier = lax.dynamic_slice(jnp.concatenate([before, before]), (N - step,), (N,)) + step.astype(jnp.int16)
        later = lax.dynamic_slice(jnp.concatenate([after, after]), (step,), (N,)) + step.astype(jnp.int16)
        before = jnp.where(x >= step, jnp.minimum(before, earlier), before)
        after = jnp.where(x < width - step, jnp.minimum(after, later), after)
        return before, after

    none = jnp.where(others, jnp.int16(0), jnp.int16(_NOTHING))
    before, after = lax.fori_loop(0, 32 - lax.clz(width - 1), double, (none, none))
    step = jnp.where(before < after, -before, after)
    nothing = step == _NOTHING
    return jnp.where(nothing, jnp.inf, jnp.square(step.astype(jnp.float32) * spacing)), step


def _shift_pass(
    squared: Array,
    best: tuple[Array, Array],
    at: Array,
    size: Array,
    stride: Array,
    spacing: Array,
    first: Array | int,
    last: Array,
) -> tuple[Array, Array]:
    """The least of `best` and of squared distances found `first` to `last` voxels away on an axis, and that step.

    Args:
        squared: float32 `[N]`, from the passes before.
        best: float32 and int16 `[N]`: what nearer voxels gave, and the steps to them.
        at: int16 `[N]`, positions on the axis.
        size: voxels on the axis.
        stride: between its voxels.
        spacing: between them too, in units of distance.
        first: step.
        last: step.
    """
    N = squared.size
    twice = jnp.concatenate([squared, squared])  # a slice of this is a rotation; `at` tells what came round

    def shift(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        least, steps = state
        step = k.astype(jnp.int16)
        added = jnp.square(k.astype(jnp.float32) * spacing)
        for start, sign in ((k * stride, 1), (N - k * stride, -1)):
            there = at + sign * step
            value = lax.dynamic_slice(twice, (start,), (N,)) + added
            nearer = (there >= 0) & (there < size) & (value < least)
            least, steps = jnp.where(nearer, value, least), jnp.where(nearer, sign * step, steps)
        return least, steps

    return lax.fori_loop(first, last + 1, shift, best)
