"""DICOM segmentation writer (highdicom): one BINARY segment per label, on the slices of the series.

Only the patient and study tags that the standard requires are copied from the source (see `dicom_seg_source`).
Labels on a resampled grid have no slices to refer to; they are written as NIfTI instead.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.runtime.atomic_files import atomic_path
from sam2_3dmed_jax.volume.dicom import is_dicom
from sam2_3dmed_jax.volume.dicom_frame import quiet
from sam2_3dmed_jax.volume.dicom_seg_source import SegmentationSource, build_source
from sam2_3dmed_jax.volume.dicom_series import find_series
from sam2_3dmed_jax.volume.dicom_stack import Stack, stack_frames
from sam2_3dmed_jax.volume.geometry import Volume, from_canonical
from sam2_3dmed_jax.volume.image_file import one_line, optional

# SNOMED CT codes by a word of the segment's name, as in DICOM's context groups 7166 to 7199 (PS3.16).
_ORGANS: dict[str, tuple[str, str]] = {
    "spleen": ("78961009", "Spleen"),
    "liver": ("10200004", "Liver"),
    "hepatic": ("10200004", "Liver"),
    "pancrea": ("15776009", "Pancreas"),
    "lung": ("39607008", "Lung"),
    "kidney": ("64033007", "Kidney"),
    "colon": ("71854001", "Colon"),
    "stomach": ("69695003", "Stomach"),
    "heart": ("80891009", "Heart"),
    "aorta": ("15825003", "Aorta"),
    "prostate": ("41216001", "Prostate"),
    "brain": ("12738006", "Brain"),
}
_FINDINGS: dict[str, tuple[str, str]] = {
    "tumo": ("108369006", "Neoplasm"),
    "cancer": ("108369006", "Neoplasm"),
    "neoplasm": ("108369006", "Neoplasm"),
    "nodule": ("27925004", "Nodule"),
    "cyst": ("367643001", "Cyst"),
    "lesion": ("52988006", "Lesion"),
}
_TISSUE = ("85756007", "Tissue")
_ABNORMAL = ("49755003", "Morphologically Abnormal Structure")
_ANATOMICAL = ("123037004", "Anatomical Structure")
_NIFTI_INSTEAD = "write NIfTI (.nii.gz) instead"


def write_dicom_seg(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    like: Volume,
    names: Mapping[int, str],
    source: SegmentationSource | None = None,
) -> None:
    """Write a label map as a DICOM segmentation of the series that a volume was read from.

    Segments are numbered 1, 2, ... in ascending order of the labels, as DICOM requires; a label without voxels gets no
    segment. The file is complete, or it does not exist.

    Args:
        path: a .dcm file; its folder is created.
        labels: `[D, H, W]` integers or bools, 0 is background.
        like: the labelled volume, read from DICOM without resampling.
        names: name of each label, from which the segment's name and SNOMED code follow. An unnamed label is a tissue.
        source: from `prepare_dicom_seg`; by default the series' headers are read again.

    Raises:
        UserError: another suffix, an empty label map, a volume that is not from DICOM or was resampled, a series that
            has changed, highdicom is missing or refuses the series, or the file cannot be written.
    """
    if labels.dtype.kind not in "biu" or labels.shape != like.grid.canonical_shape:
        raise ValueError(f"labels are {labels.dtype} {labels.shape}, expected integers {like.grid.canonical_shape}")
    hd = _library(path)
    source = source or build_source(_stack_of(path, like))
    values = sorted({int(value) for each in labels for value in np.unique(each)} - {0})
    if not values or values[0] < 0 or values[-1] > np.iinfo(np.uint16).max:
        raise UserError(
            f"{path} would hold {len(values)} labels up to {max(values, default=0)}, expected one or more from 1 to "
            "65535: renumber them, or write NIfTI, which can be empty"
        )
    numbers = np.zeros(values[-1] + 1, np.uint16)
    numbers[values] = np.arange(1, len(values) + 1)
    slices = from_canonical(numbers[labels.astype(np.uint16, copy=False)], like.grid).transpose(2, 1, 0)
    with _library_errors(path, like), atomic_path(path, ".dcm") as part:
        _segmentation(hd, source, slices, _segment_names(values, names)).save_as(part)


def prepare_dicom_seg(
    path: str | os.PathLike[str], like: Volume, names: Mapping[int, str] | None = None
) -> SegmentationSource:
    """Find out before the work whether a volume's segmentation can be written as DICOM, by writing one in memory.

    A `FileWarning` lists what is derived or left empty.

    Args:
        path: the file to write later.
        like: the volume to segment.
        names: name of each label that may be written.

    Returns:
        The source for `write_dicom_seg`, so that nothing that is read from the series can fail later.

    Raises:
        UserError: as `write_dicom_seg`.
    """
    hd = _library(path)
    source = build_source(_stack_of(path, like))
    columns, rows, depth = like.grid.shape
    slices = np.zeros((depth, rows, columns), np.uint16)
    labels = _segment_names(sorted(names or {1: "object"}), names or {})[: slices.size]
    slices.ravel()[: len(labels)] = np.arange(1, len(labels) + 1)
    with _library_errors(path, like):
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


@contextlib.contextmanager
def _library_errors(path: str | os.PathLike[str], like: Volume) -> Iterator[None]:
    """Silence highdicom and turn its errors, which are of many kinds, into one sentence."""
    try:
        with quiet():
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} cannot be made from {like.grid.source} ({type(error).__name__}: {one_line(error)[:120]}): "
            f"{_NIFTI_INSTEAD}"
        ) from error


def _stack_of(path: str | os.PathLike[str], like: Volume) -> Stack:
    """Return the slices that a segmentation would refer to, in the order of the grid's third axis.

    Raises:
        UserError: a volume that is not from DICOM or was resampled, or a series that has changed.
    """
    source = like.grid.source
    if not source or not is_dicom(source):
        raise UserError(f"{path} needs a DICOM series as its source, found {source or 'an array'}: {_NIFTI_INSTEAD}")
    # The volume was read with or without unreadable files; its grid is compared below.
    stack = stack_frames(find_series(source, skip_unreadable=True).frames, source, resample=True)
    if stack.resampling:
        raise UserError(
            f"{path} would segment {source}, whose slices were resampled to a regular grid: DICOM-SEG refers to the "
            f"slices as they are, {_NIFTI_INSTEAD}"
        )
    if stack.grid.shape != like.grid.shape or not np.allclose(stack.grid.affine, like.grid.affine, rtol=0, atol=1e-6):
        raise UserError(f"{source} has changed since it was read, or the volume was resampled: {_NIFTI_INSTEAD}")
    if any(os.path.exists(path) and os.path.samefile(path, frame.path) for frame in stack.frames):
        raise UserError(f"{path} is a slice of the source series: give another output file")
    return stack


def _segment_names(values: Sequence[int], names: Mapping[int, str]) -> list[str]:
    return [names.get(value, f"label {value}") for value in values]


def _segmentation(hd: Any, source: SegmentationSource, slices: np.ndarray, names: Sequence[str]) -> Any:
    """Return the segmentation of the slices of the grid, `[K, rows, columns]` segment numbers."""
    version = metadata.version("sam2-3dmed-jax")
    dataset = hd.seg.Segmentation(
        source_images=source.headers,
        pixel_array=slices[source.order],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(hd, number, name, version) for number, name in enumerate(names, 1)],
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


def _segment(hd: Any, number: int, name: str, version: str) -> Any:
    organ = next((code for word, code in _ORGANS.items() if word in name.lower()), None)
    finding = next((code for word, code in _FINDINGS.items() if word in name.lower()), None)

    def concept(code: tuple[str, str]) -> Any:
        return hd.sr.CodedConcept(code[0], "SCT", code[1])

    return hd.seg.SegmentDescription(
        segment_number=number,
        # DICOM's default alphabet and longest label; a backslash would split it.
        segment_label=name.encode("ascii", "replace").decode().replace("\\", "/")[:64],
        segmented_property_category=concept(_ABNORMAL if finding else _ANATOMICAL if organ else _TISSUE),
        segmented_property_type=concept(finding or organ or _TISSUE),
        anatomic_regions=[concept(organ)] if finding and organ else None,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="SAM2-3dMed", family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"), version=version
        ),
    )
