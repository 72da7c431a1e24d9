"""Surface elements of two masks and, from each of one, which of the other is nearest: exact, compiled once a size.

The squared Euclidean distance is a minimum of sums over axes, so three passes, an axis each, find it (Felzenszwalb &
Huttenlocher, "Distance Transforms of Sampled Functions", 2012; Saito & Toriwaki 1994). The passes keep where the
nearest element lies, not how far: distances are measured from that in float64, on the host. They look around each
voxel as far as most elements need. Elements that lie further off, or all if they are few in a large box, ask a k-d
tree.

The box is one row of voxels behind another, with strides as data. So a compilation belongs to a number of voxels, not
to a shape, and any box is padded to one of a few numbers (`padded_size`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy.spatial import KDTree

from sam2_3dmed_jax.metrics.surface_area import CORNERS, FULL

_FIRST_REACH = 8  # voxels of the finer outer axis: most predictions' surfaces are nearer than that
# What an element costs in the tree, in voxels that a pass looks at: measured on a CPU, guessed elsewhere.
_QUERY = {"cpu": 3e3}
_QUERY_ELSEWHERE = 1e6
_AT_ONCE = 4  # shifts in one go: what is known of a voxel is then read and written a quarter as often
_NOTHING = 1 << 14  # the step along x in a row without an element; no volume has so many voxels on an axis


class Elements(NamedTuple):
    """The surface elements of one mask: where they are in the box, their codes, and the way to the nearest other."""

    at: np.ndarray  # int64 [E], flat index in the box
    code: np.ndarray  # uint8 [E], see `surface_area`; 1 for voxels
    offset: np.ndarray  # int64 [3, E], voxels along z, y, x to the nearest element of the other mask


def padded_size(voxels: int) -> int:
    """The length that a box of so many voxels is padded to: 2^16, 2^19 and from there every power of two."""
    exponent = (voxels - 1).bit_length()
    return 1 << (16 if exponent <= 16 else max(exponent, 19))


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
    query = np.float32(_QUERY.get(jax.default_backend(), _QUERY_ELSEWHERE))
    codes, (*ways, seen) = jax.device_get(
        _search(flat, np.array(box.shape, np.int32), unit, query, np.int32(2), voxels)
    )
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


def _is_element(code: Any) -> Any:
    return (code != 0) & (code != FULL)


@partial(jax.jit, static_argnums=5)
def _search(
    flat: Array, shape: Array, spacing: Array, query: Array, masks: Array, voxels: bool
) -> tuple[Array, tuple[Array, ...]]:
    """Codes `[2, N]` of both masks and, of either, the steps to the other's elements, see `_steps`.

    `masks` is 2, told as data: XLA would unroll loops over two and then work out again, in every consumer, whatever it
    can see through.
    """
    N = flat.size
    at = jnp.arange(N, dtype=jnp.int32)
    _, H, W = shape
    row = lax.div(at, W)  # jnp's own division cares for signs, and takes longer
    z = lax.div(row, H)
    places = tuple(c.astype(jnp.int16) for c in (z, row - z * H, at - row * W))

    def encode(bit: Array, codes: Array) -> Array:
        return codes.at[bit].set(_codes((flat >> bit.astype(jnp.uint8)) & 1, H * W, W, voxels))

    codes = lax.fori_loop(0, masks, encode, jnp.zeros((2, N), jnp.uint8))

    def search(bit: Array, ways: tuple[Array, ...]) -> tuple[Array, ...]:
        own, others = (_is_element(codes[which]) for which in (bit, 1 - bit))
        found = _steps(others, own, places, shape, spacing, query)
        return tuple(way.at[bit].set(value) for way, value in zip(ways, found, strict=True))

    ways = (*(jnp.zeros((2, N), jnp.int16),) * 3, jnp.zeros(2, jnp.float32))
    return codes, lax.fori_loop(0, masks, search, ways)


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


def _steps(
    others: Array, own: Array, at: tuple[Array, ...], shape: Array, spacing: Array, query: Array
) -> tuple[Array, ...]:
    """Steps from the elements `own` towards the nearest of `others`.

    The passes look as far as `reach`, which doubles while it is cheaper to look that far than to ask the tree about all
    elements to which something unseen could be nearer.

    Returns:
        Steps along z, y, x, int16 `[N]` each: the one along z is read at an element, the one along y where that leads,
        and the one along x where both lead. Last, float32, the squared distance up to which they are exact.
    """
    D, H, W = shape
    dz, dy, dx = spacing
    z, y, x = at
    none = jnp.zeros(others.size, jnp.int16)

    def looks(reach: Array) -> tuple[Array, Array, Array]:
        """Voxels along z and y and doublings along x that cover a reach."""
        nz, ny, nx = jnp.minimum(jnp.ceil(reach / spacing), shape.astype(jnp.float32) - 1).astype(jnp.int32)
        return nz, ny, 32 - lax.clz(nx)

    def worthwhile(reach: Array, left: Array) -> Array:
        nz, ny, doublings = looks(reach)
        far = jnp.count_nonzero(left).astype(jnp.float32)
        return far * query > 2.0 * others.size * (nz + ny + doublings)

    def widen(state: tuple[Array, ...]) -> tuple[Array, ...]:
        reach = state[0]
        nz, ny, doublings = looks(reach)
        along_x, steps_x = _row_pass(others, x, W, dx, doublings)
        along_y, steps_y = _shift_pass(along_x, y, H, W, dy, ny)
        squared, steps_z = _shift_pass(along_y, z, D, H * W, dz, nz)
        unseen = [
            jnp.where(seen < size - 1, jnp.square(step * (seen + 1)), jnp.inf)
            for seen, size, step in ((nz, D, dz), (ny, H, dy), ((1 << doublings) - 1, W, dx))
        ]
        exact = (1 - 1e-5) * jnp.min(jnp.stack(unseen))  # less more roundings than there are
        left = own & (squared > exact)
        return 2 * reach, steps_z, steps_y, steps_x, exact, worthwhile(2 * reach, left)

    first = _FIRST_REACH * jnp.minimum(dz, dy)
    nothing = (none, none, none + _NOTHING, jnp.float32(-1))
    state: tuple[Array, ...] = (first, *nothing, worthwhile(first, own))
    return lax.while_loop(lambda state: state[-1], widen, state)[1:-1]


def _row_pass(others: Array, x: Array, width: Array, spacing: Array, doublings: Array) -> tuple[Array, Array]:
    """Squared distance to the nearest element of the same row, or inf, and the step to it, or `_NOTHING`.

    It looks `2 ** doublings - 1` voxels far.
    """
    N = others.size

    def double(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        # Voxels to the nearest element before and after, of all those less than `step` away; then up to twice as far.
        (before, after), step = state, jnp.int32(1) << k
        earlier = lax.dynamic_slice(jnp.concatenate([before, before]), (N - step,), (N,)) + step.astype(jnp.int16)
        later = lax.dynamic_slice(jnp.concatenate([after, after]), (step,), (N,)) + step.astype(jnp.int16)
        before = jnp.where(x >= step, jnp.minimum(before, earlier), before)
        after = jnp.where(x < width - step, jnp.minimum(after, later), after)
        return before, after

    start = jnp.where(others, jnp.int16(0), jnp.int16(_NOTHING))
    before, after = lax.fori_loop(0, doublings, double, (start, start))
    nearest = jnp.where(before < after, -before, after)
    return jnp.where(nearest == _NOTHING, jnp.inf, jnp.square(nearest.astype(jnp.float32) * spacing)), nearest


def _shift_pass(
    squared: Array, at: Array, size: Array, stride: Array, spacing: Array, last: Array
) -> tuple[Array, Array]:
    """The least of squared distances up to `last` voxels away on an axis, the way there included; and the step there.

    Args:
        squared: float32 `[N]`, from the passes before.
        at: int16 `[N]`, positions on the axis.
        size: voxels on the axis.
        stride: between its voxels.
        spacing: between them too, in units of distance.
        last: step.
    """
    N = squared.size
    twice = jnp.concatenate([squared, squared])  # a slice of this is a rotation; `at` tells what came round

    def shift(block: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        least, steps = state
        for k in (1 + block * _AT_ONCE + i for i in range(_AT_ONCE)):
            step = k.astype(jnp.int16)
            added = jnp.square(k.astype(jnp.float32) * spacing)
            for start, sign in ((k * stride, 1), (N - k * stride, -1)):
                inside = at < size - k if sign > 0 else at >= k
                value = jnp.where(inside, lax.dynamic_slice(twice, (start,), (N,)) + added, jnp.inf)
                steps = jnp.where(value < least, sign * step, steps)
                least = jnp.minimum(value, least)
        return least, steps

    return lax.fori_loop(0, (last + _AT_ONCE - 1) // _AT_ONCE, shift, (squared, jnp.zeros(N, jnp.int16)))
