"""Region growing from a click: the classical control that a promptable model must beat.

Smoothing, a density tolerance learnt around the click, opening to cut leaks, the component under the click, and the
opening undone within the tolerance. It knows nothing of shape; where neighbours are equally dense it leaks.
The defaults were chosen by mean Dice among 45 settings on spleen phantoms (seeds 1-16 and 100-123), to be fair to it.
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
    """Grows the region of similar density that holds the clicked voxel.

    Args:
        hu: Densities [D, H, W] in HU, any real dtype.
        seed: The clicked voxel (d, h, w).
        spacing: (dz, dy, dx) in mm.
        smoothing: SD of the Gaussian in mm, applied before thresholding; 0 for none.
        tolerance: Half width of the accepted density range, in SDs of the smoothed neighbourhood of the click.
        floor: Least half width of that range, in HU.
        opening: Radius in mm of the erosion that cuts bridges to neighbours; 0 for none.
        neighbourhood: Radius in mm of the ball around the click whose mean and SD are taken.

    Returns:
        bool [D, H, W], 6-connected; it always holds the clicked voxel.

    Raises:
        ValueError: If `hu` is not 3D or the click lies outside it.
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
        # The click may lie in a part thinner than the opening: start at the nearest voxel that survived it.
        index = ndimage.distance_transform_edt(~core, step, return_distances=False, return_indices=True)
        start = tuple(int(i[seed]) for i in index) if core.any() else seed
        far = float(np.sqrt(sum(((start[i] - seed[i]) * step[i]) ** 2 for i in range(3))))
        if not core.any() or far > 2 * opening:
            core, start = accepted, seed
    else:
        start = seed
    parts, _ = ndimage.label(core)
    region = parts == parts[start]
    if core is not accepted:
        region = (ndimage.distance_transform_edt(~region, step) <= opening) & accepted
        region[seed] = True
        parts, _ = ndimage.label(region)
        region = parts == parts[seed]
    return np.asarray(ndimage.binary_fill_holes(region), bool)
