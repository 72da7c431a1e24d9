"""Simulated CT or MR scanner: range, pose, grid, slice profile and noise.

`densities` gives the HU of tissues, and `reader` draws the labels.

Densities do not depend on z: every tissue has one mean per case, so that no gradient reveals the position of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.phantom.anatomy import Anatomy
from sam2_3dmed_jax.phantom.densities import draw_densities, draw_mr_signals
from sam2_3dmed_jax.phantom.organs import layers
from sam2_3dmed_jax.phantom.reader import contour
from sam2_3dmed_jax.phantom.shapes import rotation
from sam2_3dmed_jax.phantom.space import coarse

TASKS: dict[str, dict[str, int]] = {  # task -> tissue -> label
    "spleen": {"spleen": 1},
    "pancreas": {"pancreas": 1, "tumour": 2},
    "lung": {"nodule": 1},
    "organs": {"spleen": 1, "liver": 2, "kidney": 3, "pancreas": 4, "tumour": 5, "heart": 6, "nodule": 7},
}
WITHIN = {"tumour": "pancreas"}  # a tissue that the reader contours inside the outline of another one

FINE = 3  # samples along z in a slice

_TEXTURE = {
    "lung": 45.0,
    "stool": 45.0,
    "fat": 6.0,
    "stomach_content": 6.0,
    "cancellous": 30.0,
    "liver": 3.0,
    "spleen": 3.0,
}


@dataclass(frozen=True)
class Acquisition:
    """Parameters of one scan that do not belong to the person."""

    pixel: float  # mm, in-plane
    slice_spacing: float  # mm
    slices: int
    z_start: float  # mm, of the first (lowest) slice's centre
    shift: tuple[float, float]  # mm, x and y of the field of view's centre
    turn: np.ndarray  # [3, 3], pose of the person
    hu: dict[str, float]  # mean of each tissue
    noise_sd: float  # HU
    noise_grain: float  # SD of the noise's correlation kernel in pixels
    sharpness: float  # SD of the in-plane point spread in pixels
    jitter: float  # SD of the reader's contour, in pixels
    per_hu: float = 1.0  # MR: signal that corresponds to 1 HU; `hu` and `noise_sd` then are signals
    modality: str = "CT"  # or "MR"


def draw_acquisition(anatomy: Anatomy, task: str, matrix: int = 128) -> Acquisition:
    """Draw a scan of `anatomy` that contains the task's organ; in some cases the end of the scan cuts it.

    Args:
        anatomy: The person; its seed also seeds the scan, in a separate stream.
        task: A key of `TASKS`.
        matrix: Pixels along each side of a slice.

    Returns:
        The acquisition.

    Raises:
        UserError: If the task is unknown.
    """
    if task not in TASKS:
        raise UserError(f"The phantom has no task {task!r}: choose one of {', '.join(TASKS)}.")
    rng = np.random.default_rng(np.random.SeedSequence([anatomy.seed, 1, list(TASKS).index(task)]))
    part = str(rng.choice(["spleen", "pancreas", "lung"])) if task == "organs" else task
    field_of_view = float(np.clip(2.0 * anatomy.torso.half_width + rng.uniform(10, 40), 128 * 2.8, 128 * 3.2))
    spacing = float(rng.choice([3.0, 3.75, 4.0, 5.0] if part == "lung" else [3.0, 4.0, 5.0, 5.0, 6.0]))
    slices = int(rng.integers(36, 57))
    low, high = _target_range(anatomy, part)
    length = (slices - 1) * spacing
    if rng.random() < 0.3:  # cut at one end
        cut = rng.uniform(0.15, 0.4) * (high - low)
        start = low + cut if rng.random() < 0.5 else high - cut - length
    else:
        start = low - rng.uniform(0.1, 0.9) * max(length - (high - low), 0.0)
    start = float(np.clip(start, -175, max(262 * anatomy.torso.height_scale - length, -175)))
    return Acquisition(
        pixel=field_of_view / matrix,
        slice_spacing=spacing,
        slices=slices,
        z_start=start,
        shift=(float(rng.uniform(-8, 8)), float(rng.uniform(-12, 12))),
        turn=rotation(rng, (3, 3, 6)),
        hu=draw_densities(rng),
        noise_sd=float(rng.uniform(11, 24)),
        noise_grain=float(rng.uniform(0.5, 0.9)),
        sharpness=float(rng.uniform(0.3, 0.55)),
        jitter=float(rng.uniform(0.1, 0.25)),  # two readers of a spleen then agree as real ones do, Dice 0.95-0.98
    )


def with_slices(acquisition: Acquisition, slices: int) -> Acquisition:
    """Return a scan of the same range of the body with another number of slices, at least 2."""
    spacing = acquisition.slice_spacing * (acquisition.slices - 1) / (slices - 1)
    return replace(acquisition, slices=slices, slice_spacing=spacing)


def as_mr(anatomy: Anatomy, acquisition: Acquisition) -> Acquisition:
    """Return the same scan by a T1-weighted MR sequence, in an arbitrary unit that differs between cases."""
    signals = draw_mr_signals(acquisition.hu, np.random.default_rng(np.random.SeedSequence([anatomy.seed, 4])))
    noise_sd = acquisition.noise_sd * signals.per_hu
    return replace(acquisition, hu=signals.means, noise_sd=noise_sd, per_hu=signals.per_hu, modality="MR")


def _target_range(anatomy: Anatomy, task: str) -> tuple[float, float]:
    if task == "lung":
        main = max(anatomy.nodules, key=lambda n: float(np.prod(n.radii)))
        return float(main.centre[2] - main.radii.max()), float(main.centre[2] + main.radii.max())
    return anatomy.spleen_z if task == "spleen" else anatomy.pancreas_z


def scan(anatomy: Anatomy, acquisition: Acquisition, task: str, matrix: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a scan of a person and a reader's contours of the task's targets.

    Args:
        anatomy: The person.
        acquisition: The scan.
        task: A key of `TASKS`.
        matrix: Pixels along each side of a slice.

    Returns:
        HU, or MR signals, int16 [D, H, W] and labels uint8 [D, H, W], slices inferior to superior, rows anterior to
        posterior, columns the person's right to left.
    """
    a = acquisition
    rng = np.random.default_rng(np.random.SeedSequence([anatomy.seed, 2, list(TASKS).index(task)]))
    p = _points(anatomy, a, matrix)
    texture = ndimage.gaussian_filter(rng.standard_normal((p.shape[1] // 2 + 1, matrix, matrix), np.float32), 1.2)
    texture = np.repeat(texture / texture.std(), 2, axis=0)[: p.shape[1]]
    image = np.full(p.shape[1:], a.hu["outside"], np.float32)
    covered = {tissue: np.zeros(p.shape[1:], np.float32) for tissue in TASKS[task]}
    for tissue, box, coverage in layers(anatomy, p, a.pixel):
        value: np.ndarray | np.float32 = np.float32(a.hu[tissue])
        if tissue in _TEXTURE:
            value = a.hu[tissue] + _TEXTURE[tissue] * a.per_hu * texture[box]
        image[box] += coverage * (value - image[box])
        for name, mask in covered.items():
            mask[box] += coverage * (float(name == tissue) - mask[box])
    image = _profile(image)
    image = ndimage.gaussian_filter(image, (0, a.sharpness, a.sharpness))
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), (0.35, a.noise_grain, a.noise_grain))
    image += noise * np.float32(a.noise_sd / noise.std())
    label = np.zeros(image.shape, np.uint8)
    for outline in _outlines(TASKS[task]):
        drawn = contour({tissue: _profile(covered[tissue]) for tissue in outline}, outline, a.jitter, rng)
        label = np.where(drawn, drawn, label)
    if a.modality == "MR":  # the magnitude of a complex signal, whose imaginary part is noise
        image = np.hypot(image, rng.normal(0, a.noise_sd, image.shape))
    limits = (-1024, 3071) if a.modality == "CT" else (0, np.iinfo(np.int16).max)
    return np.clip(np.rint(image), *limits).astype(np.int16), label


def _outlines(values: dict[str, int]) -> list[dict[str, int]]:
    """Return the labels of each outline that the reader draws, the outer one first."""
    outlines: dict[str, dict[str, int]] = {}
    for tissue, value in values.items():
        outlines.setdefault(WITHIN.get(tissue, tissue), {})[tissue] = value
    return list(outlines.values())


def _points(anatomy: Anatomy, a: Acquisition, matrix: int) -> np.ndarray:
    """Return the person's points [3, Z, H, W] at the scan's samples: pose, then the person's smooth warp."""
    step = a.slice_spacing / FINE
    z = a.z_start + (np.arange(a.slices * FINE) - (FINE - 1) / 2) * step
    side = (np.arange(matrix) - (matrix - 1) / 2) * a.pixel
    middle = z.mean()
    grid = np.stack(np.meshgrid(z - middle, side + a.shift[1], side + a.shift[0], indexing="ij")[::-1]).astype(
        np.float32
    )
    p = np.tensordot(a.turn.astype(np.float32), grid, axes=1)
    p[2] += np.float32(middle)
    return p + np.stack([coarse(w, p, 8) for w in anatomy.warp])


def _profile(samples: np.ndarray) -> np.ndarray:
    """Return slices [D, H, W] from FINE samples per slice; the trapezoidal profile exceeds the spacing a little."""
    kernel = np.r_[np.float32(0.35), np.ones(FINE, np.float32), np.float32(0.35)]
    smooth = ndimage.convolve1d(samples, kernel / kernel.sum(), axis=0, mode="nearest")
    return smooth[FINE // 2 :: FINE]
