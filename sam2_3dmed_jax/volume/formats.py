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

    from sam2_3dmed_jax.volume.dicom_frame import Frame
    from sam2_3dmed_jax.volume.geometry import Volume
    from sam2_3dmed_jax.volume.image_file import ImageFile

FilePath = str | os.PathLike[str]


class Reader(Protocol):
    """Reads and checks a header; `io.read_volume` documents the arguments and errors."""

    def __call__(self, path: FilePath, index: int | None, resample: bool) -> ImageFile:
        """Return the checked header, with the voxels still on disk."""
        ...


class Writer(Protocol):
    """Writes a label map `[D, H, W]` for the volume `like`; `io.write_segmentation` documents the arguments."""

    def __call__(
        self,
        path: FilePath,
        labels: np.ndarray,
        like: Volume,
        names: Mapping[int, str],
        frames: Sequence[Frame] | None,
    ) -> None:
        """Write the file."""
        ...


@dataclass(frozen=True)
class FileFormat:
    """One entry of the table.

    Attributes:
        name: the name of the format.
        suffixes: suffixes of its files, lower case, with the dot. Images are read whatever the case of the suffix.
        reader: `module:function` of a `Reader`; a module that starts with a dot is in this package.
        detector: `module:function` of a path, which recognizes folders or files of this format whatever their suffix;
            detectors are asked before suffixes are compared.
        writer: `module:function` of a `Writer`; empty if segmentations cannot be written in this format.
        several_volumes: a file can contain several volumes, from which the reader's `index` chooses.
        datasets: one file per volume, used for images and label maps of dataset folders and archives.
        cases: images of this format are listed in a folder of `predict --cases`.
        label_folders: label maps of this format are listed in the folders of `evaluate`.
    """

    name: str
    suffixes: tuple[str, ...]
    reader: str
    detector: str = ""
    writer: str = ""
    several_volumes: bool = False
    datasets: bool = False
    cases: bool = False
    label_folders: bool = False

    def __post_init__(self) -> None:
        """Check the entry.

        Raises:
            ValueError: it has no reader, a function that is not `module:function`, or a wrong suffix.
        """
        if not self.reader:
            raise ValueError(f"the format {self.name} has no reader; add the `module:function` that reads it")
        for function in filter(None, (self.reader, self.detector, self.writer)):
            module, _, name = function.partition(":")
            if not module or not name.isidentifier():
                raise ValueError(f"the format {self.name} has the function {function!r}; give `module:function`")
        for suffix in self.suffixes:
            if not suffix.startswith(".") or suffix != suffix.lower():
                raise ValueError(f"the format {self.name} has the suffix {suffix!r}; use lower case with the dot")

    def open_image(self, path: FilePath, index: int | None, resample: bool) -> ImageFile:
        """Read and check the header of an image."""
        reader: Reader = _imported(self.reader)
        return reader(path, index, resample)

    def detects(self, path: FilePath) -> bool:
        """Return whether the detector recognizes an existing folder or file."""
        return bool(self.detector and _imported(self.detector)(path))

    def write_segmentation(
        self,
        path: FilePath,
        labels: np.ndarray,
        like: Volume,
        names: Mapping[int, str],
        frames: Sequence[Frame] | None,
    ) -> None:
        """Write a label map; only for formats with a writer."""
        writer: Writer = _imported(self.writer)
        writer(path, labels, like, names, frames)


_NIFTI, _ITK, _DICOM = ".nifti:open_image", ".itk:open_image", ".dicom:open_image"
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
    FileFormat("NIfTI header with separate voxels", (".hdr",), _NIFTI, several_volumes=True, cases=True),
    FileFormat("NIfTI, read but not listed", (".img", ".nii.bz2"), _NIFTI, several_volumes=True),
    FileFormat("NRRD", (".nrrd",), _ITK, datasets=True, cases=True),
    FileFormat("NRRD header with separate voxels", (".nhdr",), _ITK, cases=True),
    FileFormat("MetaImage", (".mha",), _ITK, datasets=True, cases=True),
    FileFormat("MetaImage header with separate voxels", (".mhd",), _ITK, cases=True),
    FileFormat("DICOM", (".dcm",), _DICOM, detector=".dicom:is_dicom", writer=".dicom_seg:write_dicom_seg", cases=True),
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
    """Return the first of the suffixes that a file name ends with, or None; upper and lower case differ."""
    return next((suffix for suffix in suffixes if name.endswith(suffix)), None)


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
