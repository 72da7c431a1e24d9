"""The members of an uncompressed tar, checked before anything is read from them; nothing is ever unpacked by its name.

An archive is a stranger's file: it may point outside, at devices or at itself, promise more than it holds, or be cut.
Members follow one another without overlap, so together they cannot hold more than the archive does.
"""

from __future__ import annotations

import os
import shlex
import tarfile
from dataclasses import dataclass
from typing import Any, BinaryIO

from etils import epath

from sam2_3dmed_jax.errors import UserError

MEMBER_LIMIT = 8 * 2**30  # bytes of a member; MSD's largest volume is below 1 GiB
COUNT_LIMIT = 100_000  # members
_HEADER_LIMIT = 2**16  # bytes of a member's headers, long names and extended attributes included
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
_ODD = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


@dataclass(frozen=True)
class Member:
    """Where a file's bytes lie in its archive."""

    offset: int
    size: int


def read_members(path: str | os.PathLike[str]) -> dict[str, Member]:
    """The files of a tar by name (without `./`), hidden ones included; folders are left out.

    Raises:
        UserError: no uncompressed tar, a truncated or damaged one, or a member that is no plain file or folder,
            leaves the folder it is unpacked in, stands there twice or is too large.
    """
    file = epath.Path(path)
    try:
        length = file.stat().length
        with file.open("rb") as stream:
            _refuse_compressed(path, stream.read(8))
            stream.seek(0)
            found, end = _walk(path, stream, length)
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise UserError(_truncated(path, "its closing block of zeros is missing"))
    except tarfile.ReadError as error:
        raise UserError(_truncated(path, str(error))) from error
    except (tarfile.TarError, ArithmeticError, LookupError, ValueError) as error:
        raise UserError(f"{path} is damaged (a header cannot be read: {error}); download it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the file and its rights") from error
    return found


def clean(name: str) -> str:
    """A name without `./`, doubled and trailing slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def leaves(name: str) -> bool:
    """Whether a written path is absolute or climbs with `..`."""
    return name.startswith("/") or ".." in name.split("/")


def _walk(path: str | os.PathLike[str], stream: BinaryIO, length: int) -> tuple[dict[str, Member], int]:
    """The members, and where the last one ends."""
    headers: Any = _Headers(stream, path)
    try:
        tar = tarfile.TarFile(fileobj=headers, mode="r")
    except tarfile.ReadError as error:
        raise UserError(f"{path} is no tar archive ({error}); give a dataset's folder or its .tar") from error
    found: dict[str, Member] = {}
    end = count = 0
    while (info := tar.next()) is not None:
        headers.renew()
        count += 1
        if info.size < 0 or info.offset < end:
            raise UserError(f"{path} is damaged (member {info.name!r} overlaps another one); download it again")
        _check(path, info)
        if count > COUNT_LIMIT:
            raise UserError(f"{path} has more than {COUNT_LIMIT} members; unpack it and give the dataset's folder")
        size = info.size if info.isreg() else 0
        end = info.offset_data + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if info.offset_data + size > length:
            raise UserError(
                _truncated(path, f"member {info.name!r} ends at byte {info.offset_data + size} of {length}")
            )
        if info.isreg():
            name = clean(info.name)
            if name in found:
                raise UserError(f"{path} holds {name!r} twice, expected once; re-pack the dataset with `tar -cf`")
            found[name] = Member(info.offset_data, size)
    return found, end


def _check(path: str | os.PathLike[str], info: tarfile.TarInfo) -> None:
    if leaves(info.name):
        raise UserError(
            f"{path}: member {info.name!r} leaves the folder it is unpacked in, expected names such as "
            "Task09_Spleen/imagesTr/x.nii.gz; re-pack it from inside the folder, if you trust where it came from"
        )
    if info.issparse() or not (info.isreg() or info.isdir()):
        kind = "a sparse file" if info.issparse() else _ODD.get(info.type, f"of the unknown type {info.type!r}")
        raise UserError(
            f"{path}: member {info.name!r} is {kind}, expected files and folders; re-pack the dataset with "
            "`tar --dereference --hard-dereference -cf`, if you trust where it came from"
        )
    if info.size > MEMBER_LIMIT:
        raise UserError(
            f"{path}: member {info.name!r} promises {info.size} bytes, expected at most {MEMBER_LIMIT}; "
            "take it out of the archive, or crop the volume"
        )


def _refuse_compressed(path: str | os.PathLike[str], start: bytes) -> None:
    name = os.fspath(path)
    if start.startswith(b"PK"):
        raise UserError(
            f"{path} is a zip file, expected a folder or an uncompressed .tar; run `unzip {shlex.quote(name)}` and "
            "give the dataset's folder"
        )
    for magic, (kind, command) in _COMPRESSED.items():
        if start.startswith(magic):
            if name.endswith((".nii.gz", ".nii.bz2")):
                raise UserError(f"{path} is one image, expected a dataset; give a dataset's folder or its .tar")
            raise UserError(
                f"{path} is compressed by {kind}, expected an uncompressed .tar, whose cases can be read one by one; "
                f"run `{command} {shlex.quote(name)}` and give the .tar"
            )


def _truncated(path: str | os.PathLike[str], reason: str) -> str:
    return f"{path} is truncated or damaged ({reason}); download it again"


class _Headers:
    """The archive as `tarfile` reads it: no member's headers may take more than `_HEADER_LIMIT` bytes of memory."""

    def __init__(self, stream: BinaryIO, path: str | os.PathLike[str]):
        self._stream, self._path = stream, path
        self.seek, self.tell = stream.seek, stream.tell
        self.renew()

    def renew(self) -> None:
        self._left = _HEADER_LIMIT

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise UserError(
                f"{self._path} is damaged (the headers of a member take more than {_HEADER_LIMIT} bytes); "
                "download it again, or re-pack the dataset with `tar -cf`"
            )
        self._left -= size
        return self._stream.read(size)
