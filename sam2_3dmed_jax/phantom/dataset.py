"""Phantoms as a dataset in the layout of the Medical Segmentation Decathlon (MSD).

All cases are training cases: MSD does not publish its test labels, so results are cross-validated. Each case is another
person. `dataset.json` contains the anatomy seeds under "phantom", so that a split by anatomy can be checked.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.phantom.person import draw_anatomy
from sam2_3dmed_jax.phantom.scanner import TASKS, as_mr, draw_acquisition, scan, with_slices
from sam2_3dmed_jax.runtime.atomic_files import atomic_folder, write_errors
from sam2_3dmed_jax.runtime.output_plan import OutputFolder, check_outputs
from sam2_3dmed_jax.runtime.progress import Progress

MODALITIES = ("CT", "MR")
_LABELS = {
    "spleen": {"0": "background", "1": "spleen"},
    "pancreas": {"0": "background", "1": "pancreas", "2": "cancer"},
    "lung": {"0": "background", "1": "cancer"},
    "organs": {
        **{"0": "background", "1": "spleen", "2": "liver", "3": "kidney", "4": "pancreas", "5": "pancreatic cancer"},
        **{"6": "heart", "7": "lung nodule"},
    },
}


def make_case(
    seed: int, task: str, matrix: int = 128, modality: str = "CT", slices: int | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Return one phantom scan with a reader's labels.

    Args:
        seed: The anatomy seed, an integer >= 0; it determines the person, the scan and the noise.
        task: "spleen" (1 spleen), "pancreas" (1 pancreas, 2 cancer), "lung" (1 cancer: the nodules) or "organs" (all
            of these, liver, kidneys and heart, on scans of any of the three).
        matrix: Pixels along each side of a slice; the field of view stays 358-410 mm.
        modality: "CT" or "MR": a T1-weighted scan of the same person, with an arbitrary scale per case.
        slices: Slices of the scan, at least 2, over the same range of the body; None: the anatomy seed decides.

    Returns:
        HU, or MR signals, int16 [D, H, W], labels uint8 [D, H, W] and the spacing (dz, dy, dx) in mm, in canonical
        orientation: slices inferior to superior, rows anterior to posterior, columns the person's right to left.

    Raises:
        UserError: If the task or modality is unknown.
    """
    if modality not in MODALITIES:
        raise UserError(f"The phantom has no modality {modality!r}: choose one of {', '.join(MODALITIES)}.")
    anatomy = draw_anatomy(seed)
    acquisition = draw_acquisition(anatomy, task, matrix)
    if slices is not None:
        acquisition = with_slices(acquisition, slices)
    if modality == "MR":
        acquisition = as_mr(anatomy, acquisition)
    hu, label = scan(anatomy, acquisition, task, matrix)
    return hu, label, (acquisition.slice_spacing, acquisition.pixel, acquisition.pixel)


def write_phantom_dataset(
    out: str | Path,
    cases: int,
    seed: int = 0,
    task: str = "spleen",
    progress: Progress | None = None,
    *,
    matrix: int = 128,
    workers: int = 1,
    modality: str = "CT",
    slices: int | None = None,
) -> Path:
    """Write `imagesTr/`, `labelsTr/`, an empty `imagesTs/` and `dataset.json` into `out`, all at once at the end.

    Args:
        out: The folder to make; it may exist if it is empty.
        cases: Number of cases, >= 1.
        seed: Seed of the dataset; the first cases of a larger dataset of the same seed are the same people.
        task: "spleen", "pancreas", "lung" or "organs"; see `make_case`.
        progress: Called after each case.
        matrix: Pixels along each side of a slice.
        workers: Processes; with more than one, the caller's main module must be importable.
        modality: "CT" or "MR"; see `make_case`.
        slices: Slices of each scan; see `make_case`.

    Returns:
        `out` as a path.

    Raises:
        UserError: If the task or modality is unknown, a number is out of range, or `out` contains files already.
    """
    check_outputs([OutputFolder("", out)])
    out = Path(out)
    if task not in TASKS:
        raise UserError(f"The phantom has no task {task!r}: choose one of {', '.join(TASKS)}.")
    if modality not in MODALITIES:
        raise UserError(f"The phantom has no modality {modality!r}: choose one of {', '.join(MODALITIES)}.")
    if cases < 1 or matrix < 32 or workers < 1 or seed < 0:
        raise UserError(
            f"A phantom dataset needs cases >= 1, matrix >= 32, workers >= 1 and seed >= 0, but got cases {cases}, "
            f"matrix {matrix}, workers {workers}, seed {seed}: change the one that is too small."
        )
    if slices is not None and slices < 2:
        raise UserError(f"A phantom scan has at least 2 slices, but slices is {slices}: give more.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder: remove it, or choose another one for the phantoms.")
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(cases)]
    names = [f"{task}_{i:04d}.nii.gz" for i in range(1, cases + 1)]
    with write_errors(out), atomic_folder(out) as unfinished:
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            (unfinished / folder).mkdir(parents=True)
        write = partial(_write_case, folder=unfinished, task=task, matrix=matrix, modality=modality, slices=slices)
        for done, _ in enumerate(_map(write, list(zip(names, seeds, strict=True)), workers), start=1):
            if progress is not None:
                progress("phantoms", done, cases)
        description = _description(task, names, seeds, seed, matrix, modality, slices)
        (unfinished / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return out


def _map(function: Callable[[tuple[str, int]], None], items: list[tuple[str, int]], workers: int) -> Iterator[None]:
    if workers == 1:
        yield from map(function, items)
        return
    # The workers are spawned, because a forked child of a process with JAX's threads may deadlock. Their lower priority
    # leaves the cores to the caller's own work: the demo compiles meanwhile.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(items)), context, initializer=os.nice, initargs=(5,)) as pool:
        yield from pool.map(function, items)


def _write_case(item: tuple[str, int], folder: Path, task: str, matrix: int, modality: str, slices: int | None) -> None:
    name, seed = item
    hu, label, spacing = make_case(seed, task, matrix, modality, slices)
    table = float(np.random.default_rng([seed, 3]).uniform(-900, 300))  # the z origin is the table's position
    _save(hu, spacing, table, folder / "imagesTr" / name)
    _save(label, spacing, table, folder / "labelsTr" / name)


def _save(volume: np.ndarray, spacing: tuple[float, float, float], z_origin: float, path: Path) -> None:
    """Write a canonical volume [D, H, W] as RAS, like MSD's files, with reproducible bytes."""
    dz, dy, dx = spacing
    affine = np.diag([dx, dy, dz, 1.0])
    affine[:3, 3] = -(volume.shape[2] - 1) / 2 * dx, -(volume.shape[1] - 1) / 2 * dy, z_origin
    image = nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)[::-1, ::-1]), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


def _description(
    task: str, names: list[str], seeds: list[int], seed: int, matrix: int, modality: str, slices: int | None
) -> dict[str, object]:
    return {
        "name": f"Phantom_{task.capitalize()}",
        "description": f"Synthetic torso {modality}, {task}: no patient data. For tests and demonstrations only.",
        "reference": "sam2_3dmed_jax.phantom",
        "licence": "CC0",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": {"CT": "CT", "MR": "MRI"}[modality]},
        "labels": _LABELS[task],
        "numTraining": len(names),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [],
        "phantom": {
            "seed": seed,
            "matrix": matrix,
            **({} if slices is None else {"slices": slices}),
            "anatomy_seeds": {name.removesuffix(".nii.gz"): s for name, s in zip(names, seeds, strict=True)},
        },
    }
