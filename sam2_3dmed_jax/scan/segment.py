"""Segmentation of an image in one call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from sam2_3dmed_jax.config import MemorySelection
from sam2_3dmed_jax.errors import UserError, cut, naming, plain_number
from sam2_3dmed_jax.inference.propagation import PropagationOrder
from sam2_3dmed_jax.inference.segmentation_record import warn_about
from sam2_3dmed_jax.prompts.object_ids import check_object_id
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice
from sam2_3dmed_jax.runtime.progress import ConsoleProgress
from sam2_3dmed_jax.scan.models import DEFAULT_MODEL
from sam2_3dmed_jax.scan.scan import Scan
from sam2_3dmed_jax.volume.zoom import OFF, Zoom

Rows = Sequence[Sequence[float]] | np.ndarray


def segment(
    image: Any,
    points: Rows = (),
    boxes: Rows = (),
    *,
    points_mm: Rows = (),
    boxes_mm: Rows = (),
    mask: Any = None,
    prompts_from: Any = None,
    protocol: str = "one-click",
    targets: str | None = None,
    names: Mapping[int, str] | str | os.PathLike[str] | None = None,
    mask_slices: int | None = None,
    follow_up: bool = False,
    model: Any = DEFAULT_MODEL,
    affine: Any = None,
    volume: int | None = None,
    modality: str | None = None,
    resample: bool = False,
    order: PropagationOrder = "sequential",
    compute_dtype: ComputeDtypeChoice = "auto",
    memory_selection: MemorySelection | None = None,
    zoom: Zoom = OFF,
    progress: bool = True,
) -> nib.Nifti1Image:
    """Segment an image; the voxels are those that `predict` writes for the same prompts.

    A `FileWarning` reports each sign that a mask is wrong, such as a click outside of its mask.

    Args:
        image: as in `Scan`.
        points: clicks (x, y, z), (x, y, z, label) or (x, y, z, label, object): a voxel index of the image as stored,
            0-based; 1 (inside, the default) or 0 (outside); and an object id (1 by default).
        boxes: two inclusive voxel corners (i0, j0, k0, i1, j1, k1), and optionally an object id.
        points_mm: as `points`, in RAS millimetres.
        boxes_mm: as `boxes`, in RAS millimetres.
        mask: a drawn label map on the grid of the image, whose values are object ids.
        prompts_from: a label map of an automatic method or of an earlier scan, from which prompts are drawn, as
            `labels` of `Scan.prompt_from`.
        protocol: how they are drawn, as in `Scan.prompt_from`.
        targets: as in `Scan.prompt_from`.
        names: as in `Scan.prompt_from`.
        mask_slices: as in `Scan.prompt_from`.
        follow_up: as in `Scan.prompt_from`.
        model: as in `Scan`; weights that are given by their name are downloaded at the first use.
        affine: as in `Scan`.
        volume: as in `Scan`.
        modality: as in `Scan`.
        resample: as in `Scan`.
        order: as in `Scan`.
        compute_dtype: as in `Scan`.
        memory_selection: as in `Scan`.
        zoom: as in `Scan`, such as "auto" for a small target.
        progress: show progress on stderr.

    Returns:
        A label map on the grid of the image, whose values are object ids.

    Raises:
        UserError: there are no prompts, or the image, a prompt or the checkpoint does not fit.
    """
    if mask is None and prompts_from is None and not any(len(rows) for rows in (points, boxes, points_mm, boxes_mm)):
        raise UserError("there are no prompts; give points, boxes, points_mm, boxes_mm, a mask or prompts_from")
    clicks = [*_clicks("points", points, mm=False), *_clicks("points_mm", points_mm, mm=True)]
    corners = [*_corners("boxes", boxes, mm=False), *_corners("boxes_mm", boxes_mm, mm=True)]
    image_options: dict[str, Any] = {"affine": affine, "volume": volume, "modality": modality, "resample": resample}
    run_options: dict[str, Any] = {
        "order": order,
        "compute_dtype": compute_dtype,
        "memory_selection": memory_selection,
        "zoom": zoom,
    }
    with ConsoleProgress() if progress else contextlib.nullcontext() as report:
        scan = Scan(image, model, **image_options, **run_options, progress=report)
        for click in clicks:
            scan.click(**click)
        for box in corners:
            scan.box(**box)
        if mask is not None:
            scan.draw(mask)
        if prompts_from is not None:
            scan.prompt_from(
                prompts_from,
                protocol=protocol,
                targets=targets,
                names=names,
                mask_slices=mask_slices,
                follow_up=follow_up,
            )
        labels = scan.to_nibabel()
    warn_about(scan.record())
    return labels


def _clicks(name: str, rows: Rows, mm: bool) -> Iterator[dict[str, Any]]:
    """Yield the arguments of `Scan.click`."""
    for x, y, z, *rest in _numbers(name, rows, (3, 4, 5), "x, y, z[, 1 or 0[, object]]"):
        label = rest[0] if rest else 1
        if label not in (0, 1):
            raise UserError(f"{name}: {plain_number(label)} is not a label; use 1 for inside and 0 for outside")
        yield {"xyz": (x, y, z), "inside": label == 1, "object": _object_id(name, rest[1:]), "mm": mm}


def _corners(name: str, rows: Rows, mm: bool) -> Iterator[dict[str, Any]]:
    """Yield the arguments of `Scan.box`."""
    for i0, j0, k0, i1, j1, k1, *rest in _numbers(name, rows, (6, 7), "i0, j0, k0, i1, j1, k1[, object]"):
        yield {"first": (i0, j0, k0), "second": (i1, j1, k1), "object": _object_id(name, rest), "mm": mm}


def _numbers(name: str, rows: Rows, counts: Sequence[int], form: str) -> Iterator[list[float]]:
    """Yield the numbers of each prompt.

    Raises:
        UserError: a prompt has another form.
    """
    for row in rows:
        try:
            numbers = [float(number) for number in row]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) not in counts:
            raise UserError(f"{name}: {cut(repr(row), 60)} is not ({form}); give a list of such tuples")
        yield numbers


def _object_id(name: str, rest: Sequence[float]) -> int:
    with naming(name):
        return check_object_id(rest[0] if rest else 1)
