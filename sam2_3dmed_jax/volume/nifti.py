"""NIfTI-1 and NIfTI-2 reader and writer: single files and .hdr/.img pairs, compressed or not, one volume of 4D files.

Where sform and qform disagree, nibabel's order applies: sform, then qform; with neither, the affine follows from the
voxel sizes with radiological left-right.
"""

from __future__ import annotations

import functools
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import atomic_path
from sam2_3dmed_jax.runtime.foreign_errors import foreign
from sam2_3dmed_jax.runtime.output_plan import Input, OutputFile, check_outputs
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
from sam2_3dmed_jax.volume.formats import FORMATS, suffix_of
from sam2_3dmed_jax.volume.geometry import GRID_TOLERANCE_MM, Grid, Volume, from_canonical, largest_displacement_mm
from sam2_3dmed_jax.volume.image_file import ImageFile, check_size
from sam2_3dmed_jax.volume.voxel_stream import (
    StoredVoxels,
    VoxelStream,
    check_stored,
    encoding_of,
    read_voxels,
    verify,
)

_METRE, _MICRON = 1, 3  # codes of xyzt_units
_GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
# A label in the header's extension: its value and its name.
_LABEL = re.compile(r'<Label\s+Key="(\d{1,9})"[^>]*>\s*<!\[CDATA\[(.*?)\]\]>\s*</Label>', re.DOTALL)
_SINGLE = (".nii.gz", ".nii.bz2", ".nii")
_PAIRS = (".hdr", ".img", ".hdr.gz", ".img.gz", ".hdr.bz2", ".img.bz2")
_LARGEST_HEADER = 540  # bytes; of NIfTI-2
_LARGEST_NAMES = 2**20  # bytes in which names of labels are looked for
_LARGEST_OFFSET = 2**26  # bytes before the voxels: the header, and its extensions
_WRITABLE = ("uint8", "int16", "uint16", "int32", "float32")


@dataclass(frozen=True, eq=False)
class _NiftiFile:
    """A header, and where its voxels are.

    Attributes:
        header: of nibabel.
        slope: factor of the stored values.
        intercept: added after the slope.
        voxels: position of the first volume.
        header_file: the file of the header, if it is not the one of the voxels.
    """

    header: Any
    slope: float
    intercept: float
    voxels: StoredVoxels
    header_file: StoredVoxels | None


def open_image(
    path: str | os.PathLike[str], index: int | None = None, resample: bool = False, skip_unreadable: bool = False
) -> ImageFile:
    """Read a header and check it before voxels are allocated.

    Args:
        path: a .nii, .nii.gz, .hdr or .img file.
        index: volume of a file with more than three axes, 0-based, in the order of the file.
        resample: unused; the grid is regular.
        skip_unreadable: unused; an image is one file.

    Raises:
        UserError: the file is not NIfTI, 4D without `index`, has no volume `index`, is complex or RGB, has a singular
            affine, is not in millimetres, too large, or truncated.
    """
    file = _read_header(path)
    with _reading(path):
        shape, affine = file.header.get_data_shape(), file.header.get_best_affine()
        volume, grid = _checked(shape, file.header, affine, str(path), index)
    _check_data_file(path, file)
    return ImageFile(grid, functools.partial(_read, file, volume, grid), files=(path, file.voxels.path))


def stored_label_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """Return the names of labels in the header's extension, as TotalSegmentator writes them (`--ml`), by label.

    The extension is XML with a table of labels: `<Label Key="5" Red="0" ...><![CDATA[liver]]></Label>`.

    Args:
        path: a file of labels that has been opened without error, of any format.

    Returns:
        {} if the file has no such extension, or is not NIfTI.
    """
    if not suffix_of(os.path.basename(path), _SINGLE):
        return {}
    with VoxelStream(StoredVoxels(Path(path), encoding_of(Path(path)))) as stream:
        block = stream.read(_LARGEST_NAMES)
    with _reading(path):
        header = _parse_header(block, pair=False)
    extensions = block[header.sizeof_hdr : int(header.get_data_offset())].decode("utf-8", "replace")
    return {int(key): name for key, name in _LABEL.findall(extensions)}


def from_nibabel(image: Any, index: int | None = None) -> ImageFile:
    """Return an image that nibabel has loaded or made, of NIfTI or another format with an affine.

    Args:
        image: a spatial image of nibabel; its voxels may still be on disk.
        index: as `open_image`.

    Raises:
        UserError: as `open_image`.
    """
    name = str(image.get_filename() or "the image")
    volume, grid = _checked(image.shape, image.header, image.affine, name, index)

    def read(dtype: type | None) -> np.ndarray:
        with foreign("nibabel", lambda reason: f"{name} cannot be read by nibabel ({reason}): load it again"):
            proxy = image.dataobj
            # Scaled by the same function as a file that is given by its path, so that the values are the same.
            scaled = nib.is_proxy(proxy) and hasattr(proxy, "get_unscaled")
            voxels = proxy.get_unscaled() if scaled else np.asanyarray(proxy)
            one = voxels.reshape(*grid.shape, -1, order="F")[..., volume]
            one = apply_read_scaling(one, proxy.slope, proxy.inter) if scaled else one
            return np.asarray(one, dtype=dtype)

    return ImageFile(grid, read)


def _checked(lengths: Sequence[int], header: Any, affine: np.ndarray, name: str, index: int | None) -> tuple[int, Grid]:
    """Check a header of nibabel, and return the number of its volume `index` and its grid."""
    shape, dtype = tuple(int(n) for n in lengths), header.get_data_dtype()
    if len(shape) < 3:
        raise UserError(f"{name} has shape {shape}, expected three axes: give a 3D volume")
    if dtype.kind not in "iuf":
        raise UserError(f"{name} holds {dtype} voxels, expected real numbers: export the CT in HU as int16 or float32")
    if min(shape) < 1:
        raise UserError(f"{name} has no voxels: its shape is {shape}, expected at least 1 along each axis")
    check_size(name, shape[:3], dtype.itemsize)
    volume = _volume_index(name, shape, index)
    i, j, k = shape[:3]
    if not isinstance(header, nib.Nifti1Header):
        return volume, Grid((i, j, k), affine, name)
    units = int(header["xyzt_units"]) & 7
    if units in (_METRE, _MICRON):
        unit = "metres" if units == _METRE else "micrometres"
        raise UserError(f"{name} declares lengths in {unit}, expected millimetres: rewrite its affine and xyzt_units")
    fields = {field: np.array(header[field]) for field in _GEOMETRY_FIELDS}
    fields["pixdim"] = np.array(header["pixdim"][:4])
    version = 2 if isinstance(header, nib.Nifti2Header) else 1
    return volume, Grid((i, j, k), affine, name, fields, version)


def write_labels(
    path: str | os.PathLike[str], labels: np.ndarray, like: Volume, descrip: str = "research use only"
) -> None:
    """Write a label map in the axis order and geometry of the file that a volume was read from.

    The file is complete, or it does not exist. Only the geometry of the source header is copied, and no text that
    could identify a patient.

    Args:
        path: a .nii or .nii.gz file; its folder is created.
        labels: `[D, H, W]` integers or bools from 0 to 65535; stored as uint8 where they fit, else uint16.
        like: the labelled volume.
        descrip: the header's description, at most 79 ASCII characters.

    Raises:
        UserError: another suffix, a label out of range, the path is the image itself, or the file cannot be written.
    """
    labels_ijk = _stored_labels(labels, like.grid, str(path))
    check_outputs([OutputFile("", path)], [Input("the image", like.grid.source)] if like.grid.source else [])
    _save(path, labels_ijk, like.grid, descrip)


def label_image(labels: np.ndarray, like: Volume, descrip: str = "research use only") -> Any:
    """Return a label map as an image of nibabel, with the voxels and the header that `write_labels` writes."""
    return _nifti_image(_stored_labels(labels, like.grid, "the label map"), like.grid, descrip)


def _stored_labels(labels: np.ndarray, grid: Grid, name: str) -> np.ndarray:
    """Return labels `[D, H, W]` in file order, uint8 where they fit, else uint16."""
    if labels.dtype.kind not in "biu":
        raise ValueError(f"labels are {labels.dtype}, expected integers")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise UserError(f"{name} would hold labels from {low} to {high}, expected 0 to 65535: renumber the classes")
    return from_canonical(labels, grid).astype(np.uint8 if high <= 255 else np.uint16)


def write_segmentation(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    like: Volume,
    names: Mapping[int, str | ObjectLabel],
    source: object = None,
) -> None:
    """Write a label map as `write_labels` does; NIfTI stores neither `names` nor a DICOM `source`."""
    write_labels(path, labels, like)


def write_nifti(
    path: str | os.PathLike[str], array_ijk: np.ndarray, affine: np.ndarray, descrip: str = "research use only"
) -> None:
    """Write an array in file order as NIfTI-1, unscaled; the file is complete, or it does not exist.

    Args:
        path: a .nii or .nii.gz file; its folder is created.
        array_ijk: `[i, j, k]` uint8, int16, uint16, int32 or float32.
        affine: `[4, 4]`, index to RAS millimetres.
        descrip: the header's description.

    Raises:
        UserError: another suffix, a singular affine, or the file cannot be written.
    """
    if array_ijk.dtype.name not in _WRITABLE or array_ijk.ndim != 3:
        raise ValueError(f"array is {array_ijk.dtype} with {array_ijk.ndim} axes, expected 3 of {', '.join(_WRITABLE)}")
    i, j, k = array_ijk.shape
    _save(path, array_ijk, Grid((i, j, k), affine), descrip)


def _read_header(path: str | os.PathLike[str]) -> _NiftiFile:
    """Read a header alone: nibabel would also read the extensions, of any length, before they can be checked."""
    name = os.path.basename(path)
    suffix = suffix_of(name, _SINGLE + _PAIRS)
    if suffix is None:
        reason = "its suffix is of another format, expected NIfTI"
        if name.lower().endswith(".zst"):
            reason = "it is compressed with zstd, expected gzip or no compression; run `unzstd`"
        raise UserError(f"{path} cannot be read as NIfTI ({reason}): give a .nii, .nii.gz or .hdr")
    header_path = voxel_path = Path(path)
    if suffix in _PAIRS:
        files = nib.Nifti1Pair.filespec_to_file_map(os.fspath(path))
        header_path, voxel_path = (Path(str(files[part].filename)) for part in ("header", "image"))
    stored = StoredVoxels(header_path, encoding_of(header_path))
    with _reading(path):
        try:
            with VoxelStream(stored) as stream:
                block = stream.read(_LARGEST_HEADER)
        except UserError as error:
            raise ValueError(str(error)) from None  # of a file that may be something else than NIfTI
        header = _parse_header(block, pair=suffix in _PAIRS)
        slope, intercept = header.get_slope_inter()
        offset = int(header.get_data_offset())
    if not 0 <= offset <= _LARGEST_OFFSET:
        raise UserError(f"{path} has the vox_offset {offset}, expected 0 to {_LARGEST_OFFSET}: export it again")
    return _NiftiFile(
        header=header,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        voxels=StoredVoxels(voxel_path, encoding_of(voxel_path), skip=offset),
        header_file=stored if suffix in _PAIRS else None,
    )


def _reading(path: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """Turn the errors of nibabel about a header into a `UserError`."""
    return foreign("nibabel", lambda reason: f"{path} cannot be read as NIfTI ({reason}): give a .nii, .nii.gz or .hdr")


def _parse_header(block: bytes, pair: bool) -> Any:
    """Return the header of NIfTI-1 or NIfTI-2 that a file starts with."""
    kinds: Any = nib  # its constructors have no types
    if block[344:348] in (b"n+1\0", b"ni1\0"):
        return (kinds.nifti1.Nifti1PairHeader if pair else kinds.Nifti1Header)(block[:348])
    if block[:4] in (struct.pack(f"{order}i", _LARGEST_HEADER) for order in "<>"):
        return (kinds.nifti2.Nifti2PairHeader if pair else kinds.Nifti2Header)(block[:_LARGEST_HEADER])
    raise ValueError("its header is of another format, expected NIfTI")


def _volume_index(path: str | os.PathLike[str], shape: tuple[int, ...], index: int | None) -> int:
    """Return the volume to read, counted along the axes after the third in the order of the file."""
    count = math.prod(shape[3:])
    if count < 1:
        raise UserError(f"{path} has no voxels: its shape is {shape}, expected at least 1 along each axis")
    if index is None and count > 1:
        raise UserError(
            f"{path} is {len(shape)}D, of shape {shape}, and holds {count} volumes, expected one: choose one by its "
            f"index from 0 to {count - 1} (predict: --volume), or split the file"
        )
    if index is not None and not 0 <= index < count:
        raise UserError(f"{path} has no volume {index}, expected an index from 0 to {count - 1}: it holds {count}")
    return index or 0


def _check_data_file(path: str | os.PathLike[str], file: _NiftiFile) -> None:
    """Compare the size that the header declares with the size of the file with the voxels."""
    if not file.voxels.path.is_file():
        raise UserError(
            f"{path} is a header without data, expected {file.voxels.path} next to it: copy that file there too"
        )
    voxels = math.prod(int(n) for n in file.header.get_data_shape())
    check_stored(file.voxels, voxels * file.header.get_data_dtype().itemsize)


def _read(file: _NiftiFile, index: int, grid: Grid, dtype: type | None) -> np.ndarray:
    """Return `[i, j, k]`, scaled; one volume of a 4D file is in memory, and the whole file is verified."""
    if file.header_file:
        verify(file.header_file)
    count = math.prod(int(n) for n in file.header.get_data_shape()[3:])
    voxels = read_voxels(file.voxels, grid.shape, file.header.get_data_dtype(), index, count)
    with (
        foreign("nibabel", lambda reason: f"{grid.source} has an invalid scaling ({reason}): export it again"),
        np.errstate(over="ignore", invalid="ignore"),
    ):
        return np.asarray(apply_read_scaling(voxels, file.slope, file.intercept), dtype=dtype)


def _save(path: str | os.PathLike[str], array_ijk: np.ndarray, grid: Grid, descrip: str) -> None:
    target = Path(path)
    suffix = suffix_of(target.name, FORMATS[0].suffixes)
    if suffix is None:
        raise UserError(f"{path} has the suffix {target.suffix!r}, expected .nii or .nii.gz: rename the output")
    image = _nifti_image(array_ijk, grid, descrip)
    with atomic_path(path, suffix) as part:
        image.to_filename(part)


def _nifti_image(array_ijk: np.ndarray, grid: Grid, descrip: str) -> Any:
    wide = grid.nifti_version == 2 or max(grid.shape) > 32767  # NIfTI-1 stores lengths in 16 bits
    header = nib.Nifti2Header() if wide else nib.Nifti1Header()
    header.set_data_dtype(array_ijk.dtype)
    header.set_data_shape(array_ijk.shape)
    _set_geometry(header, grid)
    header["descrip"] = descrip.encode("ascii", "replace")[:79]
    image_class: Any = nib.Nifti2Image if wide else nib.Nifti1Image
    return image_class(array_ijk, header.get_best_affine(), header)


def _set_geometry(header: Any, grid: Grid) -> None:
    """Copy stored fields unchanged: a quaternion recomputed from the affine would differ in the last bits."""
    if grid.nifti_fields:
        for name, value in grid.nifti_fields.items():
            if name == "pixdim":
                header["pixdim"][:4] = value
            else:
                header[name] = value
        return
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, code="scanner")
    header.set_qform(grid.affine, code="scanner")
    if largest_displacement_mm(grid.shape, header.get_qform(), grid.affine) > GRID_TOLERANCE_MM:
        header["qform_code"] = 0  # a quaternion cannot hold shear
