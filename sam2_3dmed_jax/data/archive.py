"""Work on a dataset's `.tar`: its MD5 against the published one, and one case at a time on disk.

A 12 GB archive is never unpacked whole: where each member lies was noted when the dataset was read.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from etils import epath

from sam2_3dmed_jax.data.datasets import Case, Dataset
from sam2_3dmed_jax.data.layouts import ENDINGS
from sam2_3dmed_jax.errors import UserError

# As the Decathlon's own downloads have them.
KNOWN_MD5 = {
    "Task06_Lung.tar": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas.tar": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task09_Spleen.tar": "410d4a301da4e5b2f6f86ec3ddba524e",
}
_CHUNK = 2**20  # bytes


@contextmanager
def unpacked(dataset: Dataset, case: Case, folder: str | os.PathLike[str]) -> Iterator[Case]:
    """The case with paths that exist on disk, for the length of a `with` block.

    A case of a folder is given as it is. Of an archive, its two files are written into a temporary folder, which is
    removed at the end; mistakes found inside the block then name the archive's members. Calls share nothing, so
    several processes may make them at once.

    Args:
        dataset: what `read_dataset` gave.
        case: one of its cases.
        folder: where the temporary folder is made; created if absent. It needs room for one case.

    Raises:
        UserError: the archive was cut or cannot be read since, or `folder` cannot be written.
    """
    if dataset.archive is None:
        yield case
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".unpacked-", dir=folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); give another folder") from error
    with temporary as place:
        found = replace(
            case,
            image=_extract(dataset, case.image, Path(place), "image"),
            label=_extract(dataset, case.label, Path(place), "label"),
        )
        try:
            yield found
        except UserError as error:
            message = str(error)
            for file, member in ((found.image, case.image), (found.label, case.label)):
                message = message.replace(file, f"{dataset.archive}:{member}")
            raise UserError(message) from error


def archive_md5(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> str:
    """The MD5 of a file, in hexadecimal.

    Args:
        path: the file.
        progress: called with (bytes done, bytes in all) after each MiB.

    Raises:
        UserError: it cannot be read.
    """
    digest, done, file = hashlib.md5(usedforsecurity=False), 0, epath.Path(path)
    try:
        size = file.stat().length
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if progress:
                    progress(done, size)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the file and its rights") from error
    return digest.hexdigest()


def md5_warning(path: str | os.PathLike[str], digest: str) -> str | None:
    """A sentence if the archive bears the name of a known one and is another; None if it is fine or not known.

    No refusal, since a re-packed archive is as good: each `.nii.gz` in it carries a checksum of its own.
    """
    known = KNOWN_MD5.get(os.path.basename(path))
    if known in (None, digest):
        return None
    return f"{path} has the MD5 {digest}, expected {known}; download it again unless you packed it yourself"


def _extract(dataset: Dataset, name: str, place: Path, stem: str) -> str:
    """Write a member under a name of our own, which keeps nothing of the member's but the format."""
    assert dataset.archive is not None
    member = dataset.members[name]
    target = place / f"{stem}{next(ending for ending in ENDINGS if name.endswith(ending))}"
    left = member.size
    try:
        with epath.Path(dataset.archive).open("rb") as source, target.open("wb") as sink:
            source.seek(member.offset)
            while left and (chunk := source.read(min(left, _CHUNK))):
                sink.write(chunk)
                left -= len(chunk)
    except OSError as error:
        raise UserError(
            f"{dataset.archive}:{name} cannot be unpacked into {place.parent} ({error.strerror or error}); check the "
            "archive, and that the folder has room"
        ) from error
    if left:
        raise UserError(f"{dataset.archive}:{name} is truncated, {left} bytes are missing; download it again")
    return str(target)
