"""Files of cases in a folder or archive: the accepted files by case id, and a warning about what is left out.

Every command that lists a folder uses this, so that all of them give a file the same id and none skips a file silently.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from sam2_3dmed_jax.errors import FileWarning, UserError, cut, listed, number_of
from sam2_3dmed_jax.volume import formats
from sam2_3dmed_jax.volume.formats import case_id, suffix_of

_NAME = 40  # characters of a name in a warning
# Files that operating systems add; archives of the Decathlon contain a `._x.nii.gz` for each image.
_OF_THE_SYSTEM = ("._", ".DS_Store", "Thumbs.db", "desktop.ini")


def list_names(folder: str | os.PathLike[str]) -> list[str]:
    """Return the sorted names in a folder; subfolders end with a slash.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        return sorted(f"{file.name}/" if file.is_dir() else file.name for file in Path(folder).iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error}); give a readable folder") from error


def case_files(
    names: Iterable[str], suffixes: Sequence[str], folder: str | os.PathLike[str], subfolders: bool = False
) -> dict[str, str]:
    """Return the files of cases by their id, and warn about all other files (`FileWarning`).

    Args:
        names: names in a folder; subfolders end with a slash.
        suffixes: suffixes to accept, in lower case; files may have them in upper case.
        folder: the folder, for messages.
        subfolders: accept subfolders, whose id is their name.

    Returns:
        Case id to file name, in the order of `names`; subfolders without the slash.

    Raises:
        UserError: two files have the same id.
    """
    files: dict[str, str] = {}
    others: list[str] = []
    for name in names:
        is_folder = name.endswith("/")
        id = (name[:-1] if subfolders else None) if is_folder else case_id(name, suffixes)
        if id is None or name.startswith("."):
            others.append(name)
            continue
        if id in files:
            raise UserError(f"{folder}: {files[id]} and {name} are both of case {id}; keep one")
        files[id] = name.removesuffix("/")
    *first, last = suffixes
    endings = f"{', '.join(first)} or {last}" if first else last
    warn_left_out([name for name in others if not _belongs_to(name, files)], folder, f"not named *{endings}")
    return files


def warn_left_out(names: Sequence[str], folder: str | os.PathLike[str], reason: str) -> None:
    """Warn about files of a folder that are not used, with at most three names; hidden files are only counted."""
    mentioned = [name for name in names if not name.startswith(_OF_THE_SYSTEM)]
    visible = [cut(name, _NAME) for name in mentioned if not name.startswith(".")]
    parts = [f"{number_of(len(visible), 'file')} left out ({reason}): {listed(visible)}"] if visible else []
    if hidden := len(mentioned) - len(visible):
        parts.append(f"{number_of(hidden, 'hidden file')} left out")
    if parts:
        warnings.warn(f"{folder}: {'; '.join(parts)}", FileWarning, stacklevel=2)


def _belongs_to(name: str, files: dict[str, str]) -> bool:
    """Return whether a file belongs to an accepted one: x.json to each x, and the voxels x.raw to the header x.mhd."""
    return case_id(name, (".json",)) in files or any(
        (header := files.get(case_id(name, entry.voxel_suffixes) or "")) and suffix_of(header, entry.suffixes)
        for entry in formats.FORMATS
    )
