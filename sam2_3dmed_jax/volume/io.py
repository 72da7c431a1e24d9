"""NIfTI in and out: a CT as a `Volume`, label maps on its grid, and atomic writing.

Reads NIfTI-1 and -2, single files and .hdr/.img pairs, plain or compressed. Where sform and qform disagree,
nibabel's order holds (sform, then qform; with neither, radiological left-right from the voxel sizes alone).
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
import uuid
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Grid, Volume, check_same_grid, from_canonical, to_canonical

AIR_HU = -1024.0
MAX_BYTES = 8 * 2**30  # of a volume as float32; a larger promise is a damaged header
_DEFLATE_LIMIT = 1032  # the largest ratio that gzip can reach, so a cap on what a .gz file may hold
_METRE, _MICRON = 1, 3  # codes of xyzt_units
_GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, ArithmeticError, MemoryError),
    *(struct.error, zlib.error, ImageFileError, HeaderDataError, WrapStructError),
)
_WRITABLE = ("uint8", "int16", "uint16", "int32", "float32")


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Reads a CT.

    Args:
        path: a .nii, .nii.gz, .hdr or .img file with three axes (further axes of length 1 are dropped).

    Returns:
        The volume as float32 HU in canonical order; header scaling is applied; values that are not finite or lie
        below -1024 (padding outside the scanner's circle) are -1024.

    Raises:
        UserError: no such file, not a NIfTI image, damaged, 4D, complex or RGB, a singular affine, not in
            millimetres, or too large.
    """
    image, grid = _open(path)
    array = np.ascontiguousarray(to_canonical(_data(image, grid, np.float32), grid))
    np.nan_to_num(array, copy=False, nan=AIR_HU, posinf=AIR_HU, neginf=AIR_HU)
    np.maximum(array, np.float32(AIR_HU), out=array)
    return Volume(array, grid)


def read_labels(path: str | os.PathLike[str], like: Volume) -> np.ndarray:
    """Reads a label map that lies on the grid of a volume.

    The axes may be stored in another order or direction than the volume's, as long as the voxels are the same.

    Args:
        path: a NIfTI file.
        like: the volume that it labels.

    Returns:
        `[D, H, W]` int32 in canonical order.

    Raises:
        UserError: as `read_volume`; or the grids differ (in shape, or in the affine by more than a thousandth of
            the spacing); or a value is not an integer.
    """
    image, grid = _open(path)
    check_same_grid(grid, like.grid)
    data = _data(image, grid, None)
    if data.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            rounded = np.rint(data)
            wrong = ~(np.abs(data - rounded) <= 1e-4)  # scaled integers come back with rounding errors; NaN is wrong
        if wrong.any():
            raise UserError(
                f"{path} holds the value {data[wrong][0]:g}, expected integer labels: give a label map, or round it"
            )
        data = rounded
    limits = np.iinfo(np.int32)
    if data.min() < limits.min or data.max() > limits.max:
        raise UserError(
            f"{path} holds labels from {data.min():g} to {data.max():g}, expected 32-bit integers: renumber them"
        )
    return np.ascontiguousarray(to_canonical(data, grid)).astype(np.int32, copy=False)


def write_labels(
    path: str | os.PathLike[str], labels: np.ndarray, like: Volume, descrip: str = "research use only"
) -> None:
    """Writes a label map in the axis order and geometry of the file that a volume came from.

    The file appears whole or not at all. Nothing of the source header but its geometry is copied, so no text that
    could identify a patient is.

    Args:
        path: a .nii or .nii.gz file; its folder is created.
        labels: `[D, H, W]` integers or bools from 0 to 65535; stored as uint8 where they fit, else uint16.
        like: the volume that they label.
        descrip: the header's description, at most 79 ASCII characters.

    Raises:
        UserError: another suffix, a label out of range, the path is the image itself, or it cannot be written.
    """
    if labels.dtype.kind not in "biu":
        raise ValueError(f"labels are {labels.dtype}, expected integers")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise UserError(f"{path} would hold labels from {low} to {high}, expected 0 to 65535: renumber the classes")
    source = like.grid.source
    if source and os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
        raise UserError(f"{path} is the image that the labels were made from: give another output file")
    dtype = np.uint8 if high <= 255 else np.uint16
    _save(path, from_canonical(labels, like.grid).astype(dtype), like.grid, descrip)


def write_nifti(
    path: str | os.PathLike[str], array_ijk: np.ndarray, affine: np.ndarray, descrip: str = "research use only"
) -> None:
    """Writes an array in file order as NIfTI-1, unscaled, whole or not at all.

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


def _open(path: str | os.PathLike[str]) -> tuple[Any, Grid]:
    """Header and grid; everything that can be refused before voxels are allocated is refused here."""
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist: give the path of a NIfTI file (.nii, .nii.gz, .hdr)")
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, expected one NIfTI file (.nii, .nii.gz, .hdr): give the file")
    try:
        image: Any = nib.load(path, mmap=False)  # type: ignore[arg-type]
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as NIfTI ({reason}): give a .nii, .nii.gz or .hdr") from None
    if not isinstance(image, nib.Nifti1Pair):
        raise UserError(f"{path} is {type(image).__name__}, expected NIfTI: convert it, for example with nibabel")
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) > 3 and max(shape[3:]) > 1:
        raise UserError(f"{path} is 4D, of shape {shape}, which is not supported: split it into one 3D file a volume")
    if len(shape) < 3:
        raise UserError(f"{path} has shape {shape}, expected three axes: give a 3D volume")
    if dtype.kind not in "iuf":
        raise UserError(f"{path} holds {dtype} voxels, expected real numbers: export the CT in HU as int16 or float32")
    _check_size(path, image)
    header = image.header
    units = int(header["xyzt_units"]) & 7
    if units in (_METRE, _MICRON):
        found = "metres" if units == _METRE else "micrometres"
        raise UserError(f"{path} declares lengths in {found}, expected millimetres: rewrite its affine and xyzt_units")
    fields = {name: np.array(header[name]) for name in _GEOMETRY_FIELDS}
    fields["pixdim"] = np.array(header["pixdim"][:4])
    version = 2 if isinstance(header, nib.Nifti2Header) else 1
    i, j, k = shape[:3]
    return image, Grid((i, j, k), image.affine, str(path), fields, version)


def _check_size(path: str | os.PathLike[str], image: Any) -> None:
    """Compares the header's promise with the size of the file that holds the voxels."""
    voxels = math.prod(int(n) for n in image.shape)
    if voxels * 4 > MAX_BYTES:
        raise UserError(
            f"{path} promises shape {image.shape}, {voxels * 4 / 2**30:.0f} GiB as float32, expected at most "
            f"{MAX_BYTES // 2**30} GiB: check the header, or crop the volume"
        )
    data_path = Path(image.file_map["image"].filename)
    if not data_path.exists():
        raise UserError(f"{path} is a header without data, expected {data_path} beside it: copy that file there too")
    promised = int(image.dataobj.offset) + voxels * image.get_data_dtype().itemsize
    size = data_path.stat().st_size
    plain = data_path.suffix.lower() in (".nii", ".img")
    most = size if plain else size * _DEFLATE_LIMIT if data_path.suffix.lower() == ".gz" else promised
    if most < promised:
        raise UserError(
            f"{data_path} is truncated: its header promises {promised} bytes, and the file of {size} bytes can hold "
            f"at most {most}: copy or download it again"
        )


def _data(image: Any, grid: Grid, dtype: type | None) -> np.ndarray:
    """`[i, j, k]`, scaled; in `dtype`, or in what the header's scaling gives."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(image.dataobj, dtype=dtype).reshape(grid.shape, order="F")
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{grid.source} is truncated or damaged ({reason}): copy or download it again") from None


def _save(path: str | os.PathLike[str], array_ijk: np.ndarray, grid: Grid, descrip: str) -> None:
    target = Path(path)
    suffix = next((s for s in (".nii.gz", ".nii") if target.name.endswith(s)), None)
    if suffix is None:
        raise UserError(f"{path} has the suffix {target.suffix!r}, expected .nii or .nii.gz: rename the output")
    wide = grid.nifti_version == 2 or max(grid.shape) > 32767  # NIfTI-1 stores lengths in 16 bits
    header = nib.Nifti2Header() if wide else nib.Nifti1Header()
    header.set_data_dtype(array_ijk.dtype)
    header.set_data_shape(array_ijk.shape)
    _set_geometry(header, grid)
    header["descrip"] = descrip.encode("ascii", "replace")[:79]
    image = (nib.Nifti2Image if wide else nib.Nifti1Image)(array_ijk, header.get_best_affine(), header)
    part = target.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        image.to_filename(part)
        os.replace(part, target)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}): give a folder with room and write access") from None
    finally:
        with contextlib.suppress(OSError):  # gone after a success; its folder may be no folder at all
            part.unlink()


def _set_geometry(header: Any, grid: Grid) -> None:
    """Stored fields go back as they were: a quaternion recomputed from the affine would differ in the last bits."""
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
    if not np.allclose(header.get_qform(), grid.affine, atol=1e-3 * min(grid.spacing)):
        header["qform_code"] = 0  # a quaternion cannot hold shear
