"""Record of a segmentation, SEG.json: what was segmented, by which model, from which prompts, and what looks wrong.

Volumes, components and clicks are of the label map as it is written. Slices and voxels are indices of the image file.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from scipy import special

from sam2_3dmed_jax.errors import FileWarning, UserError, listed
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.inference.segment import Segmentation
from sam2_3dmed_jax.metrics.components import Components, components_of
from sam2_3dmed_jax.prompts.files import objects_json
from sam2_3dmed_jax.prompts.voxel_prompts import VolumePrompts, VoxelPrompt
from sam2_3dmed_jax.runtime.hashing import sha256_of_folder
from sam2_3dmed_jax.runtime.user_files import read_start
from sam2_3dmed_jax.volume.formats import case_id, segmentation_suffixes
from sam2_3dmed_jax.volume.geometry import Grid, Volume, canonical_to_voxel, plane_in_file
from sam2_3dmed_jax.volume.intensity import window_of
from sam2_3dmed_jax.volume.zoom import OFF, ObjectZoom, Zoom, logits_on_slice, zoom_text

FORMAT = "sam2-3dmed segmentation record 1"
NOTE = "for research use only"
# A mask is fragmented if more of it than this is in components that are neither the largest nor clicked. Specks of a
# tenth hardly change a volume; more is a second structure.
STRAY_LIMIT = 0.1
# The largest organ of a scan, both lungs in a chest CT, fills a fifth of its voxels, and the whole body about half.
SHARE_LIMIT = 0.4
# A slice is listed below this predicted IoU: by the model's own estimate, less than half of its mask is right.
IOU_LIMIT = 0.5
# A slice is listed between these object scores: the model does not know whether the object is on it.
SCORE_LIMITS = (0.25, 0.75)


class ClickRecord(TypedDict):
    """One click."""

    voxel: list[float]  # x, y, z
    label: int  # 1 inside of the object, 0 outside
    inside: bool  # whether the voxel is in the mask


class SliceRecord(TypedDict):
    """A slice to look at."""

    slice: int
    reasons: list[str]


class ZoomRecord(TypedDict):
    """The region that an object was segmented in."""

    side_mm: float
    box: list[float]  # voxels of its opposite corners, as of the boxes in `prompts`
    regions: int  # in which the object was propagated, the last one included


class OriginRecord(TypedDict):
    """The label map that the prompts of an object were drawn from."""

    file: str | None  # or the folder with one mask per object; None for labels in memory
    sha256: str | None  # of the file, or over all files of the folder
    labels: list[int]  # of the object in the label map
    protocol: str
    follow_up: bool  # the labels belong to an earlier scan


class ObjectRecord(TypedDict):
    """One object; lists over slices are in the order of the file."""

    id: int
    name: str | None
    volume_ml: float
    share_of_image: float  # voxels of the mask / voxels of the image
    components: int
    largest_component_share: float | None  # of the mask; None: the mask is empty
    stray_share: float | None  # share of the mask in components that are neither the largest nor clicked
    first_slice: int | None
    last_slice: int | None
    clicks: list[ClickRecord]
    prompted_slices: list[int]
    prompts_from: OriginRecord | None  # None: the user gave the prompts
    predicted_iou: list[float]  # per slice, the model's estimate of the IoU of its mask; 1 where the mask is a prompt
    object_score: list[float]  # per slice, the model's probability that the object is on it
    confidence: float | None  # mean calibrated probability in the mask; None without a temperature or a mask
    slices_to_look_at: list[SliceRecord]
    zoom: ZoomRecord | None  # None: whole slices


class ModelRecord(TypedDict):
    """The model and how it ran."""

    preset: str
    image_size: int
    srpp: bool
    bd: bool
    checkpoint: str | None  # folder, or None for a model that was not loaded from one
    sha256: str | None  # over all files of the folder
    random_weights: bool  # the model was never trained
    dtype: str
    order: str
    memory_selection: str
    postprocessing: bool
    temperature: float | None
    provenance: dict[str, Any]


class WindowRecord(TypedDict):
    """The intensities that the model saw."""

    modality: str
    window: str
    level: float
    width: float


class SegmentationRecord(TypedDict):
    """The content of SEG.json."""

    note: str
    format: str
    time: str
    image: str
    slice_axis: str  # "i", "j" or "k": the axis of the file that slices are counted along
    objects: list[ObjectRecord]
    keep_component: str | None
    zoom: str  # off, auto, or the side of the first region in mm
    warnings: list[str]
    model: ModelRecord
    intensities: WindowRecord
    prompts: dict[str, Any]  # as `--prompts` reads them
    versions: dict[str, str]


def record_path(segmentation: str | os.PathLike[str]) -> Path:
    """Return the file of the record next to a segmentation: `seg.nii.gz` has `seg.json`."""
    path = Path(segmentation)
    return path.with_name(f"{case_id(path.name, segmentation_suffixes()) or path.stem}.json")


def check_record_path(segmentation: str | os.PathLike[str]) -> None:
    """Check that the record of a segmentation does not replace a file of another kind, such as prompts.

    Raises:
        UserError: the file exists and is not a record.
    """
    path = record_path(segmentation)
    if path.is_file() and FORMAT[:-1].encode() not in read_start(path, 1000, "move it"):
        raise UserError(
            f"--out: {path} would be replaced by the record of the segmentation, but is another file; move it, or "
            "give another --out"
        )


def record_text(record: SegmentationRecord) -> str:
    """Return the text of the file."""
    return json.dumps(record, indent=2) + "\n"


def model_record(predictor: VolumePredictor, checkpoint: str | os.PathLike[str] | None) -> ModelRecord:
    """Describe a model; its files are hashed, so call it once for many volumes.

    Args:
        predictor: the predictor.
        checkpoint: the folder that the model was loaded from, if any.
    """
    info, config = predictor.model.info, predictor.model.config
    return ModelRecord(
        preset=info.model.preset,
        image_size=config.image_size,
        srpp=info.model.srpp,
        bd=info.model.bd,
        checkpoint=None if checkpoint is None else os.path.abspath(checkpoint),
        sha256=None if checkpoint is None else sha256_of_folder(Path(checkpoint)),
        random_weights=info.has_random_weights,
        dtype=config.compute_dtype,
        order=predictor.order,
        memory_selection=config.memory_selection,
        postprocessing=predictor.postprocessing,
        temperature=info.temperature,
        provenance=info.provenance,
    )


def untrained_warning(checkpoint: str) -> str:
    """Return the warning about a checkpoint with random weights."""
    return f"{checkpoint} was never trained (its weights are random), so its masks mean nothing; give a trained one"


def segmentation_record(
    segmentation: Segmentation,
    volume: Volume,
    prompts: VolumePrompts,
    model: ModelRecord,
    window: str,
    keep_component: str | None = None,
    zoom: Zoom = OFF,
) -> SegmentationRecord:
    """Describe a segmentation.

    Args:
        segmentation: with the label map as it is written.
        volume: the image.
        prompts: of all objects, and their names.
        model: see `model_record`.
        window: `preprocessing.window` of the model.
        keep_component: the rule that removed components, if any.
        zoom: the setting that the segmentation was made with.
    """
    objects = [
        _object_record(row, segmentation, volume, prompts, model["temperature"])
        for row in range(len(segmentation.result.object_ids))
    ]
    axis, _ = plane_in_file(volume.grid, 0, 0)
    level, width = window_of(volume, window)
    return SegmentationRecord(
        note=NOTE,
        format=FORMAT,
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        image=volume.grid.source,
        slice_axis=axis,
        objects=objects,
        keep_component=keep_component,
        zoom=zoom_text(zoom),
        warnings=[warning for entry in objects for warning in _warnings(entry)],
        model=model,
        intensities=WindowRecord(modality=volume.modality, window=window, level=level, width=width),
        prompts=objects_json(prompts, volume.grid),
        versions={name: metadata.version(name) for name in ("sam2-3dmed-jax", "jax", "flax", "numpy")}
        | {"backend": jax.default_backend()},
    )


def warn_about(record: SegmentationRecord, prefix: str = "") -> None:
    """Issue the warnings of a record as `FileWarning`, which the commands print as one line each."""
    for warning in record["warnings"]:
        warnings.warn(prefix + warning, FileWarning, stacklevel=2)


def object_title(entry: ObjectRecord) -> str:
    """Return "object 1 (spleen)", or "object 1" without a name."""
    return f"object {entry['id']}" + (f" ({entry['name']})" if entry["name"] else "")


def _object_record(
    row: int,
    segmentation: Segmentation,
    volume: Volume,
    all_prompts: VolumePrompts,
    temperature: float | None,
) -> ObjectRecord:
    """Describe the object in one row of the result."""
    result, grid = segmentation.result, volume.grid
    object_id = result.object_ids[row]
    prompts = [prompt for prompt in all_prompts.prompts if prompt.object_id == object_id]
    mask = segmentation.labels == object_id
    components = components_of(mask)
    voxels = int(components.sizes.sum())
    clicks = list(_clicks(prompts, components, grid))
    wanted = {components.largest} if voxels else set()
    wanted |= {components.at(place) for place, click in clicks if click["label"]} - {0}
    wanted_voxels = sum(int(components.sizes[number - 1]) for number in wanted)
    areas = np.count_nonzero(mask, axis=(1, 2))
    in_file = [plane_in_file(grid, 0, d)[1] for d in range(len(areas))]
    extent = sorted(in_file[d] for d in np.flatnonzero(areas))
    scores = special.expit(result.object_score_logits[row])
    return ObjectRecord(
        id=object_id,
        name=all_prompts.names.get(object_id),
        volume_ml=voxels * volume.voxel_volume_ml,
        share_of_image=voxels / mask.size,
        components=len(components.sizes),
        largest_component_share=float(components.sizes.max()) / voxels if voxels else None,
        stray_share=1 - wanted_voxels / voxels if voxels else None,
        first_slice=extent[0] if extent else None,
        last_slice=extent[-1] if extent else None,
        clicks=[click for _, click in clicks],
        prompted_slices=sorted({in_file[prompt.slice] for prompt in prompts}),
        prompts_from=_origin(prompts),
        predicted_iou=_in_file_order(result.predicted_iou[row], in_file),
        object_score=_in_file_order(scores, in_file),
        confidence=_confidence(row, segmentation, mask, areas, temperature),
        slices_to_look_at=[
            SliceRecord(slice=in_file[d], reasons=reasons)
            for d in sorted(range(len(areas)), key=in_file.__getitem__)
            if (reasons := _reasons(d, areas, result.predicted_iou[row], scores, clicks))
        ],
        zoom=_zoom_record(result.zooms[row], grid) if result.zooms else None,
    )


def _zoom_record(zoom: ObjectZoom, grid: Grid) -> ZoomRecord:
    """Describe the region of an object in voxels of the file."""
    depth, _, _ = grid.canonical_shape
    region = zoom.region
    first = canonical_to_voxel(grid, (0, region.top, region.left))
    last = canonical_to_voxel(grid, (depth - 1, region.top + region.rows - 1, region.left + region.columns - 1))
    corners = np.sort([first, last], axis=0)
    return ZoomRecord(side_mm=round(zoom.side_mm, 2), box=corners.reshape(-1).tolist(), regions=len(zoom.passes))


def _origin(prompts: Sequence[VoxelPrompt]) -> OriginRecord | None:
    """Return where the prompts of an object came from, also if the user has added others."""
    for origin in (prompt.origin for prompt in prompts if prompt.origin):
        return OriginRecord(
            file=origin.path,
            sha256=origin.sha256,
            labels=list(origin.labels),
            protocol=origin.protocol,
            follow_up=origin.follow_up,
        )
    return None


def _in_file_order(values: np.ndarray, in_file: Sequence[int]) -> list[float]:
    """Return values of canonical slices by the index of their slice in the file, with four decimals."""
    ordered = np.empty(len(values))
    ordered[np.asarray(in_file)] = values
    return [round(value, 4) for value in ordered.tolist()]


def _clicks(
    prompts: Sequence[VoxelPrompt], components: Components, grid: Grid
) -> Iterator[tuple[tuple[float, float, float], ClickRecord]]:
    """Yield the canonical place of each click, on the volume's border the outermost voxel, and its record."""
    _, height, width = grid.canonical_shape
    for prompt in prompts:
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
            place = (float(prompt.slice), min(max(y, 0), height - 1), min(max(x, 0), width - 1))
            voxel = list(canonical_to_voxel(grid, (prompt.slice, y, x)))
            yield place, ClickRecord(voxel=voxel, label=label, inside=components.at(place) > 0)


def _confidence(
    row: int, segmentation: Segmentation, mask: np.ndarray, areas: np.ndarray, temperature: float | None
) -> float | None:
    """Return the mean of sigmoid(logit / temperature) over the voxels of a mask, one slice at a time."""
    if temperature is None or not areas.any():
        return None
    logits, total, (_, height, width) = segmentation.result.logits_in_row(row), 0.0, mask.shape
    for d in np.flatnonzero(areas):
        restored = logits_on_slice(logits, int(d), (height, width))[mask[d]]
        total += float(special.expit(restored / temperature).sum(dtype=np.float64))
    return total / float(areas.sum())


def _reasons(
    d: int,
    areas: np.ndarray,
    predicted_iou: np.ndarray,
    scores: np.ndarray,
    clicks: Sequence[tuple[tuple[float, float, float], ClickRecord]],
) -> list[str]:
    """Return why a canonical slice should be looked at; [] if nothing is known against it."""
    reasons = []
    on_slice = [click for place, click in clicks if place[0] == d]
    if any(click["label"] and not click["inside"] for click in on_slice):
        reasons.append("a click inside of the object is outside of the mask")
    if any(not click["label"] and click["inside"] for click in on_slice):
        reasons.append("a click outside of the object is inside of the mask")
    if areas[d] and predicted_iou[d] < IOU_LIMIT:
        reasons.append(f"predicted IoU is below {IOU_LIMIT}")
    if SCORE_LIMITS[0] < scores[d] < SCORE_LIMITS[1]:
        reasons.append("the model does not know whether the object is on the slice")
    if not areas[d] and areas[:d].any() and areas[d:].any():
        reasons.append("the mask has a gap")
    return reasons


def _warnings(entry: ObjectRecord) -> Iterator[str]:
    """Yield one sentence for each sign that the mask of an object is wrong."""
    title = object_title(entry)
    if not entry["volume_ml"]:
        yield f"{title}: its mask is empty; look at the picture (--overlay), and add clicks or a box"
        return
    for label, wrong in (
        (1, "clicks inside of the object are not in its mask"),
        (0, "clicks outside of the object are in its mask"),
    ):
        clicks = [click for click in entry["clicks"] if click["label"] == label]
        voxels = [click["voxel"] for click in clicks if click["inside"] != bool(label)]
        if voxels:
            places = listed([",".join(f"{number:g}" for number in voxel) for voxel in voxels], separator=" and ")
            yield f"{title}: {len(voxels)} of {len(clicks)} {wrong} ({places}); add more clicks, or a box"
    stray, share = entry["stray_share"] or 0.0, entry["share_of_image"]
    if stray > STRAY_LIMIT:
        yield (
            f"{title}: its mask has {entry['components']} components, and {stray:.0%} of it is neither in the largest "
            "nor clicked; --keep-component largest removes the others"
        )
    if share > SHARE_LIMIT:
        yield (
            f"{title}: its mask fills {share:.0%} of the image, more than an organ does; add clicks outside of the "
            f"object (--point x,y,z,0), or a box"
        )
