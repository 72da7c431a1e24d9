"""Resolution of a small target with and without zoom: its pixels, and the best mask that a model's output can express.

    python experiments/benchmarks/zoom.py LABELS.nii.gz [--image-size 1024] [--value 1]

No model runs. The reference is averaged over the cells of the output (S / 4), as a perfect output would hold it, and
interpolated to the voxels as `predict` does; the distance to the reference is what no training can remove. The region
is the one of `--zoom auto` for a box around the object on its largest slice. Prints a Markdown table.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from sam2_3dmed_jax.metrics.mask_pair import MaskPair
from sam2_3dmed_jax.metrics.registry import compute_metrics
from sam2_3dmed_jax.prompts.simulation import largest_slice
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import resize_slices
from sam2_3dmed_jax.volume.io import read_labels, read_volume
from sam2_3dmed_jax.volume.zoom import (
    AUTO,
    Region,
    RegionLogits,
    extent_of_mask,
    logits_on_slice,
    region_around,
    side_around,
)


def best_mask(reference: np.ndarray, region: Region, image_size: int) -> np.ndarray:
    """Return the mask that an output of S / 4 cells over a region gives at best, bool `[D, H, W]`.

    Args:
        reference: bool `[D, H, W]`.
        region: of the slices.
        image_size: S.
    """
    cells = resize_slices(reference[:, *region.at].astype(np.float32), image_size // 4) - 0.5
    _, height, width = reference.shape
    output = RegionLogits(cells, region)
    return np.stack([logits_on_slice(output, d, (height, width)) > 0 for d in range(len(reference))])


def rows(volume: Volume, reference: np.ndarray, image_size: int) -> list[dict[str, float]]:
    """Return the figures on whole slices, and with zoom."""
    middle = largest_slice(reference)
    extent = extent_of_mask(reference[middle])
    assert extent is not None  # a slice with the object
    _, height, width = reference.shape
    pixel_mm = volume.spacing[1:]
    side = side_around(extent, AUTO, pixel_mm)
    found = []
    for region in (Region(0, 0, height, width), region_around(extent, side, (height, width), pixel_mm)):
        pixels = resize_slices(reference[middle : middle + 1, *region.at].astype(np.float32), image_size) >= 0.5
        best = best_mask(reference, region, image_size)
        metrics = compute_metrics(MaskPair(best, reference, volume.grid, tolerance_mm=1.0))
        found.append(
            {
                "region (mm)": round(max(n * mm for n, mm in zip(region.shape, pixel_mm, strict=True)), 1),
                "mask pixels": int(pixels.sum()),
                "output cell (mm)": 4 * region.columns * pixel_mm[1] / image_size,
                "Dice": float(metrics["dice"]),
                "mean distance (mm)": float(metrics["assd_mm"]),
                "HD95 (mm)": float(metrics["hd95_mm"]),
            }
        )
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", metavar="LABELS")
    parser.add_argument("--image-size", type=int, default=1024, help="S, pixels")
    parser.add_argument("--value", type=int, default=1, help="value of the object")
    options = parser.parse_args(words)
    volume = read_volume(options.labels)
    table = rows(volume, read_labels(options.labels, volume) == options.value, options.image_size)
    print(f"| slices | {' | '.join(table[0])} |\n|{'---|' * (len(table[0]) + 1)}")
    for name, row in zip(("whole", "zoom"), table, strict=True):
        cells = [str(value) if isinstance(value, int) else f"{value:.3g}" for value in row.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
