"""Cases of a dataset in an uncompressed `.tar`: extraction of one case at a time, and the MD5 of the archive.

An archive of 12 GB is never unpacked as a whole: `read_dataset` records the offset of each member.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sam2_3dmed_jax.data.datasets import Dataset, LabelledCase
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.hashing import md5_of_file
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.volume.formats import dataset_suffixes, suffix_of

# Of the downloads of the Medical Segmentation Decathlon (http://medicaldecathlon.com).
PUBLISHED_MD5 = {
    "Task06_Lung.tar": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas.tar": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task09_Spleen.tar": "410d4a301da4e5b2f6f86ec3ddba524e",
}
_CHUNK = 2**20  # bytes


@contextmanager
def unpack_case(dataset: Dataset, case: LabelledCase, folder: str | os.PathLike[str]) -> Iterator[LabelledCase]:
    """Yield a case whose files are on disk.

    Cases of folders are yielded unchanged. The two files of a case in an archive are written to a temporary folder,
    which is removed at the end of the `with` block; a UserError raised in the block then names the members of the
    archive. Several processes may call this at the same time.

    Args:
        dataset: from `read_dataset`.
        case: one of its cases.
        folder: parent of the temporary folder, created if absent; it needs space for one case.

    Raises:
        UserError: the archive has been truncated or cannot be read, or `folder` cannot be written.
    """
    if dataset.archive is None:
        yield case
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".unpacked-", dir=folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); give another folder") from error
    with temporary as temporary_folder:
        on_disk = replace(
            case,
            image=_extract(dataset, case.image, Path(temporary_folder), "image"),
            label=_extract(dataset, case.label, Path(temporary_folder), "label"),
        )
        try:
            yield on_disk
        except UserError as error:
            message = str(error)
            for file, member in ((on_disk.image, case.image), (on_disk.label, case.label)):
                message = message.replace(file, f"{dataset.archive}:{member}")
            raise UserError(message) from error


def archive_md5(path: str | os.PathLike[str], progress: Progress | None = None) -> str:
    """Return the MD5 of a file, in hexadecimal.

    Args:
        path: the file.
        progress: called after each MiB.

    Raises:
        UserError: the file cannot be read.
    """
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress("MD5, MB", done >> 20, size >> 20)

    try:
        size = Path(path).stat().st_size
        return md5_of_file(path, report)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error


def md5_warning(path: str | os.PathLike[str], digest: str) -> str | None:
    """Return a warning if an archive has the name, but not the MD5, of a published one; otherwise None.

    It is not an error, because a re-packed archive is valid: each `.nii.gz` in it has its own checksum.
    """
    published = PUBLISHED_MD5.get(os.path.basename(path))
    if published in (None, digest):
        return None
    return f"{path} has the MD5 {digest}, expected {published}; download it again unless you packed it yourself"


def _extract(dataset: Dataset, name: str, folder: Path, stem: str) -> str:
    """Write a member to `folder` under a safe name, which keeps only the suffix of the member's name."""
    assert dataset.archive is not None
    member = dataset.members[name]
    target = folder / f"{stem}{suffix_of(name, dataset_suffixes())}"
    left = member.size
    try:
        with Path(dataset.archive).open("rb") as source, target.open("wb") as sink:
            source.seek(member.offset)
            while left and (chunk := source.read(min(left, _CHUNK))):
                sink.write(chunk)
                left -= len(chunk)
    except OSError as error:
        raise UserError(
            f"{dataset.archive}:{name} cannot be unpacked into {folder.parent} ({error.strerror or error}); check the "
            "archive, and the free space of the folder"
        ) from error
    if left:
        raise UserError(f"{dataset.archive}:{name} is truncated, {left} bytes are missing; download it again")
    return str(target)
