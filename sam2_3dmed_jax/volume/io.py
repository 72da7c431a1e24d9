"""Reading and writing of images and label maps in all file formats.

The formats are listed in `formats.FORMATS`. A folder or DICOM file is a DICOM series; other
suffixes are read as NIfTI.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.runtime.local_paths import check_local
from sam2_3dmed_jax.runtime.user_files import check_regular
from sam2_3dmed_jax.volume import formats
from sam2_3dmed_jax.volume.geometry import Grid, Volume, to_canonical
from sam2_3dmed_jax.volume.image_file import AIR_HU, ImageFile
from sam2_3dmed_jax.volume.label_layers import LabelFile, LabelLayers, whole_label_map
from sam2_3dmed_jax.volume.modality import ModalitySources
from sam2_3dmed_jax.volume.nifti import write_labels, write_nifti

if TYPE_CHECKING:
    from sam2_3dmed_jax.runtime.progress import Progress
    from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
    from sam2_3dmed_jax.volume.dicom_seg_source import SegmentationSource

_READERS = 2  # cases that `check_readable` reads at once; one of 512 x 512 x 300 voxels may take 1 GiB

__all__ = [
    "check_readable",
    "image_files",
    "open_image",
    "open_labels",
    "prepare_segmentation",
    "read_grid",
    "read_label_layers",
    "read_labels",
    "read_volume",
    "stored_modality",
    "volume_of",
    "write_labels",
    "write_nifti",
    "write_segmentation",
]


def read_volume(
    path: str | os.PathLike[str],
    *,
    index: int | None = None,
    resample: bool = False,
    skip_unreadable: bool = False,
    modality: str | ModalitySources = "CT",
) -> Volume:
    """Read a CT, or another modality if the file or the caller declares one.

    Args:
        path: a NIfTI, NRRD or MHA file with three axes (further axes of length 1 are dropped); a folder with one
            DICOM series; or one DICOM file, which selects its series in its folder, or its own frames.
        index: volume of a 4D NIfTI, 0-based; other formats accept only 0.
        resample: put DICOM slices with gaps, uneven spacing or tilt on a regular grid, instead of an error.
        skip_unreadable: leave out files of a DICOM folder that may be damaged slices, with a warning instead of an
            error.
        modality: DICOM's Modality, for files whose format does not store it; or all that is known about it.

    Returns:
        The volume as float32 in canonical order; header scaling is applied. CT is in HU; values that are not finite or
        are below -1024 (padding outside the scanner's circle) become -1024.

    Raises:
        UserError: the file is missing, of an unknown format, damaged, not scalar, irregular, not in millimetres or too
            large, `index` is out of range, or a library of the extra `[dicom]` is missing; the checkpoint of `modality`
            was trained on another one.
    """
    return volume_of(open_image(path, index=index, resample=resample, skip_unreadable=skip_unreadable), modality)


def image_files(path: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], ...]:
    """Return the files that an image is read from: the slices of a DICOM series, or a header and its voxels.

    Raises:
        UserError: the header cannot be read.
    """
    return _open(path, 0, resample=True, skip_unreadable=True).files


def open_image(
    path: str | os.PathLike[str], *, index: int | None = None, resample: bool = False, skip_unreadable: bool = False
) -> ImageFile:
    """Read and check the header of an image, for `volume_of`; arguments and errors as in `read_volume`."""
    image = _open(path, index, resample, skip_unreadable)
    for note in image.notes:
        warnings.warn(note, FileWarning, stacklevel=3)
    return image


def volume_of(image: ImageFile, modality: str | ModalitySources = "CT") -> Volume:
    """Read the voxels of an image whose header has been read; the values are cleaned as `read_volume` describes.

    Raises:
        UserError: the voxels are damaged, or the checkpoint of `modality` was trained on another one.
    """
    sources = modality if isinstance(modality, ModalitySources) else ModalitySources(declared=modality)
    modality = sources.modality(image.modality, image.grid.source or "the image")
    array = np.ascontiguousarray(to_canonical(image.read(np.float32), image.grid))
    floor = AIR_HU if modality == "CT" else float(np.min(array, where=np.isfinite(array), initial=0.0))
    np.nan_to_num(array, copy=False, nan=floor, posinf=floor, neginf=floor)
    np.maximum(array, np.float32(floor), out=array)
    return Volume(array, image.grid, modality)


def read_labels(path: str | os.PathLike[str], like: Volume) -> np.ndarray:
    """Read a label map on the grid of a volume.

    The axes may be stored in another order or direction than in the volume's file if the voxels are the same. The
    labels are brought into the frame of the volume, for any canonical order of their own file.

    Args:
        path: a NIfTI, NRRD or MHA file, a DICOM-SEG or RTSTRUCT.
        like: the labelled volume.

    Returns:
        `[D, H, W]` int32 in the canonical order of the volume.

    Raises:
        UserError: as `read_label_layers`; or segments overlap.
    """
    return read_label_layers(path, like).flat()


def read_label_layers(path: str | os.PathLike[str], like: Volume) -> LabelLayers:
    """Read labels, which may overlap, on the grid of a volume.

    Args:
        path: as `read_labels`.
        like: the labelled volume.

    Raises:
        UserError: as `open_labels`; or the grids differ (`geometry.check_same_grid`); or a value is not an integer.
    """
    return open_labels(path).read(like.grid)


def open_labels(path: str | os.PathLike[str]) -> LabelFile:
    """Read the header of a file of labels.

    Raises:
        UserError: as `read_volume`; or the file stores something else than labels.
    """
    file_format = _format_of(path)
    if file_format.label_reader:
        return file_format.open_labels(path)
    return whole_label_map(path, file_format.open_image(path, None, False))


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """Return the grid of a volume or label map, from its header.

    Raises:
        UserError: as `read_volume`.
    """
    return _open(path, None, False).grid


def check_readable(cases: Sequence[Sequence[str | os.PathLike[str]]], progress: Progress | None = None) -> None:
    """Read the files of all cases to their end, so that a damaged one is found before the work on the others starts.

    Args:
        cases: for each case an image, and files of labels on its grid.
        progress: called after each case.

    Raises:
        UserError: as `read_volume` and `read_labels`.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            for done, _ in enumerate(pool.map(_check_case, cases), 1):
                if progress:
                    progress("checking files of cases", done, len(cases))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_case(files: Sequence[str | os.PathLike[str]]) -> None:
    image = _open(files[0], None, False)
    image.read(None)
    for file in files[1:]:
        open_labels(file).read(image.grid)


def stored_modality(path: str | os.PathLike[str]) -> str | None:
    """Return the modality that the header of a volume stores, DICOM's Modality, or None.

    Raises:
        UserError: as `read_volume`.
    """
    return _open(path, None, False, skip_unreadable=True).modality  # reading decides whether slices may be left out


def write_segmentation(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    like: Volume,
    names: Mapping[int, str | ObjectLabel],
    source: SegmentationSource | None = None,
) -> None:
    """Write a label map in the format of the file's suffix; the file is complete, or it does not exist.

    Args:
        path: a file with one of `formats.segmentation_suffixes()`.
        labels: `[D, H, W]` integers or bools.
        like: the labelled volume.
        names: name of each label, or its name, code and colour, for formats that store them.
        source: from `prepare_segmentation`; None: what the format needs is read again.

    Raises:
        UserError: another suffix, labels that the format cannot store, or the file cannot be written.
    """
    _written_format(path).write_segmentation(path, labels, like, names, source)


def prepare_segmentation(
    path: str | os.PathLike[str], like: Volume, names: Mapping[int, str | ObjectLabel]
) -> SegmentationSource | None:
    """Find out before the work whether a segmentation can be written in the format of the file's suffix.

    Args:
        path: the file to write later.
        like: the volume to segment.
        names: name of each label that may be written, or its name, code and colour.

    Returns:
        Headers of the DICOM series that the volume was read from, for `write_segmentation`; None for other formats.

    Raises:
        UserError: the format refers to the files of the image, and these do not allow it.
    """
    return _written_format(path).prepare_segmentation(path, like, names)


def _written_format(path: str | os.PathLike[str]) -> formats.FileFormat:
    name = os.path.basename(path)
    writable = (entry for entry in formats.FORMATS if entry.writer and formats.suffix_of(name, entry.suffixes))
    return next(writable, formats.FORMATS[0])


def _open(path: str | os.PathLike[str], index: int | None, resample: bool, skip_unreadable: bool = False) -> ImageFile:
    file_format = _format_of(path)
    if index not in (None, 0) and not file_format.several_volumes:
        raise UserError(f"{path} has no volume {index}, expected index 0: only a NIfTI file may hold several")
    return file_format.open_image(path, index, resample, skip_unreadable)


def _format_of(path: str | os.PathLike[str]) -> formats.FileFormat:
    check_local(path)
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist: give the path of a NIfTI file (.nii, .nii.gz, .hdr)")
    if not os.path.isdir(path):
        check_regular(path, "give an image file")
    return formats.format_of(path)
