"""DICOM segmentation writer (highdicom): one BINARY segment per label, on the slices of the series.

Only the patient and study tags that the standard requires are copied from the source (see `dicom_seg_source`).
Labels on a resampled grid have no slices to refer to; they are written as NIfTI instead.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.runtime.atomic_files import atomic_path
from sam2_3dmed_jax.volume.anatomy_codes import Concept, ObjectLabel, as_label, rgb, segment_codes
from sam2_3dmed_jax.volume.dicom_seg_source import SegmentationSource, library_errors, source_of
from sam2_3dmed_jax.volume.geometry import Volume, from_canonical
from sam2_3dmed_jax.volume.image_file import optional
from sam2_3dmed_jax.volume.label_layers import values_in


def write_dicom_seg(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    like: Volume,
    names: Mapping[int, str | ObjectLabel],
    source: SegmentationSource | None = None,
) -> None:
    """Write a label map as a DICOM segmentation of the series that a volume was read from.

    Segments are numbered 1, 2, ... in ascending order of the labels, as DICOM requires; a label without voxels gets no
    segment. The file is complete, or it does not exist.

    Args:
        path: a .dcm file; its folder is created.
        labels: `[D, H, W]` integers or bools, 0 is background.
        like: the labelled volume, read from DICOM without resampling.
        names: name of each label, from which the segment's name, SNOMED CT code and colour follow (`anatomy_codes`), or
            its name, code and colour. An unnamed label is a tissue.
        source: from `prepare_dicom_seg`; by default the series' headers are read again.

    Raises:
        UserError: another suffix, an empty label map, a volume that is not from DICOM or was resampled, a series that
            has changed, highdicom is missing or refuses the series, or the file cannot be written.
    """
    if labels.dtype.kind not in "biu" or labels.shape != like.grid.canonical_shape:
        raise ValueError(f"labels are {labels.dtype} {labels.shape}, expected integers {like.grid.canonical_shape}")
    hd = _library(path)
    source = source or source_of(path, like)
    values = values_in(labels)
    if not values or values[0] < 0 or values[-1] > np.iinfo(np.uint16).max:
        raise UserError(
            f"{path} would hold {len(values)} labels up to {max(values, default=0)}, expected one or more from 1 to "
            "65535: renumber them, or write NIfTI, which can be empty"
        )
    numbers = np.zeros(values[-1] + 1, np.uint16)
    numbers[values] = np.arange(1, len(values) + 1)
    slices = from_canonical(numbers[labels.astype(np.uint16, copy=False)], like.grid).transpose(2, 1, 0)
    with library_errors(path, like), atomic_path(path, ".dcm") as part:
        _segmentation(hd, source, slices, _segment_labels(values, names)).save_as(part)


def prepare_dicom_seg(
    path: str | os.PathLike[str], like: Volume, names: Mapping[int, str | ObjectLabel] | None = None
) -> SegmentationSource:
    """Find out before the work whether a volume's segmentation can be written as DICOM, by writing one in memory.

    A `FileWarning` lists what is derived or left empty.

    Args:
        path: the file to write later.
        like: the volume to segment.
        names: name of each label that may be written, or its name, code and colour.

    Returns:
        The source for `write_dicom_seg`, so that nothing that is read from the series can fail later.

    Raises:
        UserError: as `write_dicom_seg`.
    """
    hd = _library(path)
    source = source_of(path, like)
    columns, rows, depth = like.grid.shape
    slices = np.zeros((depth, rows, columns), np.uint16)
    labels = _segment_labels(sorted(names or {1: "object"}), names or {})[: slices.size]
    slices.ravel()[: len(labels)] = np.arange(1, len(labels) + 1)
    with library_errors(path, like):
        buffer = io.BytesIO()
        _segmentation(hd, source, slices, labels).save_as(buffer)
        buffer.seek(0)
        hd.seg.segread(buffer)
    for note in source.notes:
        warnings.warn(f"{path}: {note}", FileWarning, stacklevel=2)
    return source


def _library(path: str | os.PathLike[str]) -> Any:
    if Path(path).suffix.lower() != ".dcm":
        raise UserError(f"{path} has the suffix {Path(path).suffix!r}, expected .dcm: rename the output")
    return optional("highdicom", path)


def _segment_labels(values: Sequence[int], names: Mapping[int, str | ObjectLabel]) -> list[ObjectLabel]:
    return [as_label(names.get(value, f"label {value}")) for value in values]


def _segmentation(hd: Any, source: SegmentationSource, slices: np.ndarray, labels: Sequence[ObjectLabel]) -> Any:
    """Return the segmentation of the slices of the grid, `[K, rows, columns]` segment numbers."""
    version = metadata.version("sam2-3dmed-jax")
    dataset = hd.seg.Segmentation(
        source_images=source.headers,
        pixel_array=slices[source.order],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(hd, number, label, version) for number, label in enumerate(labels, 1)],
        series_instance_uid=hd.UID(),
        series_number=1000 + source.series_number,  # unlikely to be in use next to the source's number
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="sam2-3dmed-jax",
        manufacturer_model_name="SAM2-3dMed",
        software_versions=version,
        device_serial_number="none",
        content_description="For research use only",
        content_label="RESEARCH",
        series_description="SAM2-3dMed segmentation, for research use only",
    )
    dataset.ContentCreatorName = None  # required, but may be empty
    return dataset


def _segment(hd: Any, number: int, label: ObjectLabel, version: str) -> Any:
    codes = segment_codes(label)

    def concept(found: Concept) -> Any:
        return hd.sr.CodedConcept(found.code, "SCT", found.meaning)

    description = hd.seg.SegmentDescription(
        segment_number=number,
        # DICOM's default alphabet and longest label; a backslash would split it.
        segment_label=label.name.encode("ascii", "replace").decode().replace("\\", "/")[:64],
        segmented_property_category=concept(codes.category),
        segmented_property_type=concept(codes.type),
        anatomic_regions=[concept(codes.region)] if codes.region else None,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="SAM2-3dMed", family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"), version=version
        ),
        display_color=hd.color.CIELabColor.from_rgb(*rgb(codes.color)) if codes.color else None,
    )
    if codes.side and codes.region:
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [concept(codes.side)]
    elif codes.side:
        modified = description.SegmentedPropertyTypeCodeSequence[0]
        modified.SegmentedPropertyTypeModifierCodeSequence = [concept(codes.side)]
    return description
