"""Table of image file formats: suffixes, uses, readers and writers.

A new format takes two edits: an entry in `FORMATS`, and its reader. Readers and writers are imported on first use, so
that this module imports no image library.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
    from sam2_3dmed_jax.volume.dicom_seg_source import SegmentationSource
    from sam2_3dmed_jax.volume.geometry import Volume
    from sam2_3dmed_jax.volume.image_file import ImageFile
    from sam2_3dmed_jax.volume.label_layers import LabelFile

FilePath = str | os.PathLike[str]


class Reader(Protocol):
    """Reads and checks a header; `io.read_volume` documents the arguments and errors."""

    def __call__(self, path: FilePath, index: int | None, resample: bool, skip_unreadable: bool) -> ImageFile:
        """Return the checked header, with the voxels still on disk."""
        ...


class LabelReader(Protocol):
    """Reads the header of a file of labels; `io.open_labels` documents the errors."""

    def __call__(self, path: FilePath) -> LabelFile:
        """Return the file, with the labels still on disk."""
        ...


class Writer(Protocol):
    """Writes a label map `[D, H, W]` for the volume `like`; `io.write_segmentation` documents the arguments."""

    def __call__(
        self,
        path: FilePath,
        labels: np.ndarray,
        like: Volume,
        names: Mapping[int, str | ObjectLabel],
        source: SegmentationSource | None,
    ) -> None:
        """Write the file."""
        ...


class Preparer(Protocol):
    """Finds out whether a segmentation of `like` can be written; `io.prepare_segmentation` documents the arguments."""

    def __call__(
        self, path: FilePath, like: Volume, names: Mapping[int, str | ObjectLabel] | None = None
    ) -> SegmentationSource:
        """Return what the writer needs of the image's files."""
        ...


@dataclass(frozen=True)
class FileFormat:
    """One entry of the table.

    Attributes:
        name: the name of the format.
        suffixes: suffixes of its files, lower case, with the dot. Files may have them in upper case.
        reader: `module:function` of a `Reader`; a module that starts with a dot is in this package.
        detector: `module:function` of a path, which recognizes folders or files of this format whatever their suffix;
            detectors are asked before suffixes are compared.
        label_reader: `module:function` of a `LabelReader`, for formats of labels that may overlap or leave out a part
            of the image's grid; empty if labels are stored as an image.
        writer: `module:function` of a `Writer`; empty if segmentations cannot be written in this format.
        preparer: `module:function` of a `Preparer`, for formats that refer to the files of the image.
        several_volumes: a file can contain several volumes, from which the reader's `index` chooses.
        datasets: one file per volume, used for images and label maps of dataset folders and archives.
        cases: images of this format are listed in a folder of `predict --cases`.
        label_folders: label maps of this format are listed in the folders of `evaluate`.
        voxel_suffixes: suffixes of the files with the voxels, if a file of this format is only the header.
    """

    name: str
    suffixes: tuple[str, ...]
    reader: str
    detector: str = ""
    label_reader: str = ""
    writer: str = ""
    preparer: str = ""
    several_volumes: bool = False
    datasets: bool = False
    cases: bool = False
    label_folders: bool = False
    voxel_suffixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the entry.

        Raises:
            ValueError: it has no reader, a function that is not `module:function`, or a wrong suffix.
        """
        if not self.reader:
            raise ValueError(f"the format {self.name} has no reader; add the `module:function` that reads it")
        for function in filter(None, self._functions()):
            module, _, name = function.partition(":")
            if not module or not name.isidentifier():
                raise ValueError(f"the format {self.name} has the function {function!r}; give `module:function`")
        for suffix in self.suffixes:
            if not suffix.startswith(".") or suffix != suffix.lower():
                raise ValueError(f"the format {self.name} has the suffix {suffix!r}; use lower case with the dot")

    def _functions(self) -> tuple[str, ...]:
        return self.reader, self.detector, self.label_reader, self.writer, self.preparer

    def open_image(self, path: FilePath, index: int | None, resample: bool, skip_unreadable: bool = False) -> ImageFile:
        """Read and check the header of an image."""
        reader: Reader = _imported(self.reader)
        return reader(path, index, resample, skip_unreadable)

    def open_labels(self, path: FilePath) -> LabelFile:
        """Read the header of a file of labels; only for formats with a reader of labels."""
        reader: LabelReader = _imported(self.label_reader)
        return reader(path)

    def detects(self, path: FilePath) -> bool:
        """Return whether the detector recognizes an existing folder or file."""
        return bool(self.detector and _imported(self.detector)(path))

    def write_segmentation(
        self,
        path: FilePath,
        labels: np.ndarray,
        like: Volume,
        names: Mapping[int, str | ObjectLabel],
        source: SegmentationSource | None,
    ) -> None:
        """Write a label map; only for formats with a writer."""
        writer: Writer = _imported(self.writer)
        writer(path, labels, like, names, source)

    def prepare_segmentation(
        self, path: FilePath, like: Volume, names: Mapping[int, str | ObjectLabel]
    ) -> SegmentationSource | None:
        """Find out whether a segmentation can be written; None for formats that do not refer to the image's files."""
        if not self.preparer:
            return None
        preparer: Preparer = _imported(self.preparer)
        return preparer(path, like, names)


_NIFTI, _ITK, _DICOM = ".nifti:open_image", ".itk:open_image", ".dicom:open_image"
_SLICER, _DICOM_LABELS = ".slicer_segmentation:open_labels", ".dicom_labels:open_labels"
# Lists of suffixes, in messages and in searches, have the order of this table.
FORMATS: tuple[FileFormat, ...] = (
    FileFormat(
        "NIfTI",
        (".nii.gz", ".nii"),
        _NIFTI,
        writer=".nifti:write_segmentation",
        several_volumes=True,
        datasets=True,
        cases=True,
        label_folders=True,
    ),
    FileFormat(
        "NIfTI header with separate voxels",
        (".hdr",),
        _NIFTI,
        several_volumes=True,
        cases=True,
        voxel_suffixes=(".img", ".img.gz"),
    ),
    FileFormat("NIfTI, read but not listed", (".img", ".nii.bz2"), _NIFTI, several_volumes=True),
    FileFormat("segmentation of 3D Slicer", (".seg.nrrd",), _ITK, label_reader=_SLICER, label_folders=True),
    FileFormat("NRRD", (".nrrd",), _ITK, label_reader=_SLICER, datasets=True, cases=True, label_folders=True),
    FileFormat(
        "NRRD header with separate voxels",
        (".nhdr",),
        _ITK,
        label_reader=_SLICER,
        cases=True,
        voxel_suffixes=(".raw", ".raw.gz"),
    ),
    FileFormat("MetaImage", (".mha",), _ITK, datasets=True, cases=True, label_folders=True),
    FileFormat("MetaImage header with separate voxels", (".mhd",), _ITK, cases=True, voxel_suffixes=(".raw", ".zraw")),
    FileFormat("DICOM-SEG or RTSTRUCT", (), _DICOM, ".dicom_labels:holds_labels", label_reader=_DICOM_LABELS),
    FileFormat(
        "RTSTRUCT",
        (".rtstruct.dcm",),
        _DICOM,
        writer=".dicom_rtstruct:write_rtstruct",
        preparer=".dicom_rtstruct:prepare_rtstruct",
        label_folders=True,
    ),
    FileFormat(
        "DICOM",
        (".dcm",),
        _DICOM,
        detector=".dicom:is_dicom",
        writer=".dicom_seg:write_dicom_seg",
        preparer=".dicom_seg:prepare_dicom_seg",
        cases=True,
        label_folders=True,
    ),
    FileFormat("DICOM, read but not listed", (".dicom", ".ima"), _DICOM),
)


def all_suffixes() -> tuple[str, ...]:
    """Return the suffixes of all formats."""
    return tuple(suffix for entry in FORMATS for suffix in entry.suffixes)


def dataset_suffixes() -> tuple[str, ...]:
    """Return the suffixes of images and label maps in datasets: formats with one file per volume."""
    return tuple(suffix for entry in FORMATS if entry.datasets for suffix in entry.suffixes)


def case_suffixes() -> tuple[str, ...]:
    """Return the suffixes of images that a folder of `predict --cases` lists; folders with DICOM files come on top."""
    return tuple(suffix for entry in FORMATS if entry.cases for suffix in entry.suffixes)


def label_folder_suffixes() -> tuple[str, ...]:
    """Return the suffixes of label maps that the folders of `evaluate` list."""
    return tuple(suffix for entry in FORMATS if entry.label_folders for suffix in entry.suffixes)


def segmentation_suffixes() -> tuple[str, ...]:
    """Return the suffixes of segmentations that can be written."""
    return tuple(suffix for entry in FORMATS if entry.writer for suffix in entry.suffixes)


def dicom_suffixes() -> tuple[str, ...]:
    """Return the suffixes of DICOM files."""
    return tuple(suffix for entry in FORMATS if entry.reader == _DICOM for suffix in entry.suffixes)


def compressed_suffixes() -> tuple[str, ...]:
    """Return the suffixes of images that are compressed as a whole."""
    return tuple(suffix for suffix in all_suffixes() if suffix.endswith((".gz", ".bz2")))


def suffix_of(name: str, suffixes: Sequence[str]) -> str | None:
    """Return the first of the suffixes (lower case) that a file name ends with, in upper or lower case, or None."""
    return next((suffix for suffix in suffixes if name[-len(suffix) :].lower() == suffix), None)


def case_id(name: str, suffixes: Sequence[str]) -> str | None:
    """Return the id of the case that a file belongs to: its name without its suffix; None if it has none of them."""
    suffix = suffix_of(name, suffixes)
    return name[: -len(suffix)] if suffix else None


def format_of(path: FilePath) -> FileFormat:
    """Return the format to read an existing file or folder with, whatever the case of its suffix.

    Unknown suffixes are read as NIfTI, whose reader explains what is supported.
    """
    for entry in FORMATS:
        if entry.detects(path):
            return entry
    name = os.path.basename(path).lower()
    return next((entry for entry in FORMATS if suffix_of(name, entry.suffixes)), FORMATS[0])


def _imported(function: str) -> Any:
    """Return the function of `module:function`."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module, __package__), name)
