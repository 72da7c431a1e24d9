"""DICOM structure set writer (RTSTRUCT): closed contours of each label on the slices of the series.

Contours run halfway between the centres of voxels inside and outside (marching squares, contourpy), so that the rule
of readers, by which a voxel is inside where its centre is, restores the labels. A hole is joined to its outer contour
by a channel of no width (PS3.3, C.8.8.6.3), which every reader understands. A label without voxels is a structure
without contours. Written with pydicom, because highdicom has no structure sets and rt-utils, last released in 2023,
draws contours through the centres of border voxels, half a voxel too far inside.
"""

from __future__ import annotations

import datetime
import io
import itertools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.runtime.atomic_files import atomic_path
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel, as_label, rgb, segment_codes
from sam2_3dmed_jax.volume.dicom_seg_source import SegmentationSource, data_set, library_errors, source_of
from sam2_3dmed_jax.volume.geometry import LPS_TO_RAS, Volume, from_canonical
from sam2_3dmed_jax.volume.image_file import optional
from sam2_3dmed_jax.volume.label_layers import values_in

_RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, but what readers of referenced studies expect
_COPIED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime"),
    *("StudyID", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator"),
)


def write_rtstruct(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    like: Volume,
    names: Mapping[int, str | ObjectLabel],
    source: SegmentationSource | None = None,
) -> None:
    """Write a label map as a structure set of the series that a volume was read from.

    Structures are numbered as the labels. The file is complete, or it does not exist.

    Args:
        path: a .rtstruct.dcm file; its folder is created.
        labels: `[D, H, W]` integers or bools, 0 is background.
        like: the labelled volume, read from DICOM without resampling.
        names: as `dicom_seg.write_dicom_seg`; each of them becomes a structure.
        source: from `prepare_rtstruct`; by default the series' headers are read again.

    Raises:
        UserError: a volume that is not from DICOM or was resampled, a series that has changed, pydicom is missing, or
            the file cannot be written.
    """
    if labels.dtype.kind not in "biu" or labels.shape != like.grid.canonical_shape:
        raise ValueError(f"labels are {labels.dtype} {labels.shape}, expected integers {like.grid.canonical_shape}")
    source = source or source_of(path, like)
    stored = from_canonical(labels, like.grid)
    values = sorted({*values_in(labels), *names})
    if values and values[0] < 0:
        raise UserError(f"{path} would hold the label {values[0]}, expected 1 or more: renumber the labels")
    to_lps = LPS_TO_RAS @ like.grid.affine
    contours = {value: list(_contours(stored == value, to_lps)) for value in values}
    described = {value: as_label(names.get(value, f"label {value}")) for value in values}
    with library_errors(path, like), atomic_path(path, ".rtstruct.dcm") as part:
        _structure_set(source, contours, described).save_as(part, enforce_file_format=True)


def prepare_rtstruct(
    path: str | os.PathLike[str], like: Volume, names: Mapping[int, str | ObjectLabel] | None = None
) -> SegmentationSource:
    """Find out before the work whether a volume's structures can be written, by writing empty ones in memory.

    A `FileWarning` lists what is derived or left empty.

    Args:
        path: the file to write later.
        like: the volume to segment.
        names: name of each label that may be written, or its name, code and colour.

    Returns:
        The source for `write_rtstruct`, so that nothing that is read from the series can fail later.

    Raises:
        UserError: as `write_rtstruct`.
    """
    source = source_of(path, like)
    described = {value: as_label(name) for value, name in (names or {}).items()}
    with library_errors(path, like):
        _structure_set(source, {}, described).save_as(io.BytesIO(), enforce_file_format=True)
    for note in source.notes:
        warnings.warn(f"{path}: {note}", FileWarning, stacklevel=2)
    return source


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Return the closed contours of a mask, whose holes are joined to them.

    Args:
        mask: bool `[i, j]`.

    Returns:
        `[N, 2]` (i, j) each, without a repeated last point; integers are centres of pixels.
    """
    from contourpy import FillType, contour_generator

    low, high = (edge(np.argwhere(mask), axis=0) for edge in (np.min, np.max))
    box = np.pad(mask[low[0] : high[0] + 1, low[1] : high[1] + 1], 1).astype(np.float64)
    filled = contour_generator(z=box.T, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    found = []
    for points, offsets in zip(*filled, strict=True):
        outer, *holes = (points[start : stop - 1] for start, stop in itertools.pairwise(offsets))
        found.append(_without_collinear(_joined(outer, holes)) + (low - 1))
    return found


def _joined(outer: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """Return one polygon, in which each hole is joined to what is below it.

    Vertices are in the middle between two centres of pixels, so that channels at a quarter of a pixel pass no centre.
    """
    for hole in sorted(holes, key=lambda each: float(each[:, 1].min())):  # those below are joined already
        lowest = int(hole[:, 1].argmin())
        after = lowest + 1 if hole[(lowest + 1) % len(hole), 0] > hole[lowest, 0] else lowest
        turned = np.roll(hole, -after, axis=0)  # its closing edge starts or ends in the lowest vertex, and runs along i
        x = hole[lowest, 0] + 0.25
        start = np.array([x, _heights(turned[-1:], turned[:1], x)[0]])
        heights = _heights(outer, np.roll(outer, -1, axis=0), x)
        at = int(np.where(heights < start[1], heights, -np.inf).argmax())
        end = np.array([x, heights[at]])
        outer = np.concatenate([outer[: at + 1], [end, start], turned, [start, end], outer[at + 1 :]])
    return outer


def _heights(starts: np.ndarray, ends: np.ndarray, x: float) -> np.ndarray:
    """Return the second coordinate of edges where the first one is x; infinity for edges that do not cross it."""
    run = ends[:, 0] - starts[:, 0]
    share = np.divide(x - starts[:, 0], run, out=np.full(len(run), np.inf), where=run != 0)
    heights = starts[:, 1] + np.where(np.isfinite(share), share, 0) * (ends[:, 1] - starts[:, 1])
    return np.where((share > 0) & (share < 1), heights, np.inf)


def _without_collinear(polygon: np.ndarray) -> np.ndarray:
    """Return a polygon without the points inside of straight edges."""
    before, after = polygon - np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0) - polygon
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    straight = (np.abs(turn) < 1e-9) & ((before * after).sum(axis=1) > 0)
    return np.asarray(polygon[~straight])


def _contours(mask: np.ndarray, affine: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the slice and the points, `[N, 3]` LPS mm, of each contour of a mask `[i, j, k]`."""
    for k in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
        for polygon in outlines(mask[..., k]):
            yield k, np.c_[polygon, np.full(len(polygon), k), np.ones(len(polygon))] @ affine[:3].T


def _structure_set(
    source: SegmentationSource,
    contours: Mapping[int, Sequence[tuple[int, np.ndarray]]],
    labels: Mapping[int, ObjectLabel],
) -> Any:
    """Return the structure set with these contours, by label."""
    uid = optional("pydicom.uid", "RTSTRUCT")
    first = source.headers[0]
    images = [
        data_set(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
        for header in source.headers
    ]
    series = data_set(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    study = data_set(
        ReferencedSOPClassUID=_STUDY_CLASS,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    frame = data_set(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])
    slices = _slice_references(source)
    now, version = datetime.datetime.now(), metadata.version("sam2-3dmed-jax")
    result = data_set(
        SpecificCharacterSet="ISO_IR 192",
        **{keyword: first.get(keyword) for keyword in _COPIED},
        SOPClassUID=_RT_STRUCTURE_SET,
        SOPInstanceUID=uid.generate_uid(),
        Modality="RTSTRUCT",
        SeriesInstanceUID=uid.generate_uid(),
        SeriesNumber=1000 + source.series_number,  # unlikely to be in use next to the source's number
        InstanceNumber=1,
        SeriesDescription="SAM2-3dMed segmentation, for research use only",
        OperatorsName=None,
        Manufacturer="sam2-3dmed-jax",
        ManufacturerModelName="SAM2-3dMed",
        SoftwareVersions=version,
        StructureSetLabel="RESEARCH",
        StructureSetDescription="For research use only",
        StructureSetDate=now.strftime("%Y%m%d"),
        StructureSetTime=now.strftime("%H%M%S"),
        ReferencedFrameOfReferenceSequence=[frame],
        ApprovalStatus="UNAPPROVED",
        StructureSetROISequence=[
            data_set(
                ROINumber=value,
                ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
                ROIName=label.name.replace("\\", "/")[:64],
                ROIGenerationAlgorithm="SEMIAUTOMATIC",
            )
            for value, label in labels.items()
        ],
        ROIContourSequence=[_drawn(value, label, contours.get(value, ()), slices) for value, label in labels.items()],
        RTROIObservationsSequence=[_observation(value, label) for value, label in labels.items()],
    )
    result.file_meta = optional("pydicom.dataset", "RTSTRUCT").FileMetaDataset()
    result.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return result


def _slice_references(source: SegmentationSource) -> dict[int, tuple[Any, int | None]]:
    """Return the header and, in a multi-frame file, the number of the frame of each slice of the grid."""
    frames = [
        (header, number + 1 if "NumberOfFrames" in header else None)
        for header in source.headers
        for number in range(int(header.get("NumberOfFrames") or 1))
    ]
    return {int(k): frame for k, frame in zip(source.order, frames, strict=True)}


def _drawn(
    value: int,
    label: ObjectLabel,
    contours: Sequence[tuple[int, np.ndarray]],
    slices: Mapping[int, tuple[Any, int | None]],
) -> Any:
    """Return the contours and the colour of a structure."""
    items = []
    for k, points in contours:
        header, number = slices[k]
        image = data_set(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
        if number is not None:
            image.ReferencedFrameNumber = number
        items.append(
            data_set(
                ContourImageSequence=[image],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                ContourData=[f"{coordinate:.4f}" for coordinate in points.ravel()],
            )
        )
    result = data_set(ReferencedROINumber=value, ContourSequence=items)
    if color := segment_codes(label).color:
        result.ROIDisplayColor = list(rgb(color))
    return result


def _observation(value: int, label: ObjectLabel) -> Any:
    """Return what a structure means."""
    concept = segment_codes(label).type
    code = data_set(CodeValue=concept.code, CodingSchemeDesignator="SCT", CodeMeaning=concept.meaning)
    return data_set(
        ObservationNumber=value,
        ReferencedROINumber=value,
        RTROIIdentificationCodeSequence=[code],
        RTROIInterpretedType="",
        ROIInterpreter="",
    )
