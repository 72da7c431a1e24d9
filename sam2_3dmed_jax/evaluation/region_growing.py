"""Region growing from a click: the classical baseline for promptable models.

Steps: smoothing, a density tolerance estimated around the click, opening to cut leaks, the component under the click,
and reversal of the opening within the tolerance. It ignores shape, so it leaks into neighbours of equal density. The
defaults have the best mean Dice of 45 settings on spleen phantoms (seeds 1-16 and 100-123), for a fair comparison.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def region_growing(
    hu: np.ndarray,
    seed: tuple[int, int, int],
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    smoothing: float = 1.0,
    tolerance: float = 3.0,
    floor: float = 12.0,
    opening: float = 8.0,
    neighbourhood: float = 8.0,
) -> np.ndarray:
    """Grow the region of similar density around the clicked voxel.

    Args:
        hu: densities `[D, H, W]` in HU, any real dtype.
        seed: the clicked voxel (d, h, w).
        spacing: (dz, dy, dx) in mm.
        smoothing: SD of the Gaussian in mm, applied before thresholding; 0 for none.
        tolerance: half width of the accepted density range, in SDs of the smoothed neighbourhood of the click.
        floor: least half width of that range, in HU.
        opening: radius in mm of the erosion that cuts bridges to neighbours; 0 for none.
        neighbourhood: radius in mm of the ball around the click whose mean and SD are taken.

    Returns:
        bool `[D, H, W]`, 6-connected; the clicked voxel is always inside.

    Raises:
        ValueError: `hu` is not 3D, or the click is outside it.
    """
    if hu.ndim != 3 or not all(0 <= s < n for s, n in zip(seed, hu.shape, strict=True)):
        raise ValueError(f"region_growing needs a 3D volume and a click inside it; got {hu.shape} and {seed}.")
    step = np.asarray(spacing, float)
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), smoothing / step)
    offsets = np.stack(np.meshgrid(*[np.arange(n) for n in hu.shape], indexing="ij", sparse=False))
    near = sum(((offsets[i] - seed[i]) * step[i]) ** 2 for i in range(3)) <= neighbourhood**2
    centre, width = float(smooth[near].mean()), max(tolerance * float(smooth[near].std()), floor)
    accepted = np.abs(smooth - centre) <= width
    accepted[seed] = True
    core = accepted
    if opening > 0:
        core = ndimage.distance_transform_edt(np.pad(accepted, 1, mode="edge"), step)[1:-1, 1:-1, 1:-1] > opening
    if not core[seed]:
        # The click may be in a part thinner than the opening: start at the nearest voxel that survived it.
        index = ndimage.distance_transform_edt(~core, step, return_distances=False, return_indices=True)
        start = tuple(int(i[seed]) for i in index) if core.any() else seed
        far = float(np.sqrt(sum(((start[i] - seed[i]) * step[i]) ** 2 for i in range(3))))
        if not core.any() or far > 2 * opening:
            core, start = accepted, seed
    else:
        start = seed
    components, _ = ndimage.label(core)
    region = components == components[start]
    if core is not accepted:
        region = (ndimage.distance_transform_edt(~region, step) <= opening) & accepted
        region[seed] = True
        components, _ = ndimage.label(region)
        region = components == components[seed]
    return np.asarray(ndimage.binary_fill_holes(region), bool)
