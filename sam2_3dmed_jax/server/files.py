"""Images that the page may open: one image, or the images below a root folder, and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed_jax.errors import UserError, cut
from sam2_3dmed_jax.volume.dicom import is_dicom
from sam2_3dmed_jax.volume.formats import all_suffixes, dicom_suffixes, suffix_of

MAX_VISITED = 100_000  # files and folders that one listing reads, so that a huge root does not block the server


@dataclass(frozen=True)
class ImageFiles:
    """The images of a server.

    Attributes:
        image: a single image; it has precedence over `root`.
        root: folder of images, if any.
        max_listed: images that `names` returns at most.
    """

    image: Path | None
    root: Path | None
    max_listed: int

    def names(self) -> list[str]:
        """Return the images by their paths relative to the root; a folder with a DICOM series is one image."""
        if self.image is not None:
            return [self.image.name]
        return [] if self.root is None else sorted(self._below_root(self.root))

    def path_of(self, name: str) -> Path:
        """Return the path of an image by its name, with symbolic links resolved.

        Raises:
            UserError: it does not exist, or is not below the root.
        """
        if self.image is not None and name == self.image.name:
            return self.image
        missing = UserError(f"{cut(repr(name), 80)} is not an image of this server; choose one of the list")
        if self.root is None or not name or "\0" in name or "\\" in name:
            raise missing
        try:
            path = (self.root / name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
            raise missing from None
        if not path.is_relative_to(self.root.resolve()) or not (path.is_dir() or path.is_file()):
            raise missing
        return path

    def _below_root(self, root: Path) -> list[str]:
        found: list[str] = []
        visited = 0
        for folder, folders, files in os.walk(root):  # does not follow links to folders
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            visited += len(folders) + len(files)
            if any(suffix_of(name, dicom_suffixes()) or _may_be_dicom(folder, name) for name in files[:1]):
                folders.clear()
                found.append(os.path.relpath(folder, root))
                continue
            for name in sorted(files):
                if suffix_of(name, all_suffixes()) and not name.startswith("."):
                    found.append(os.path.relpath(os.path.join(folder, name), root))
            if len(found) >= self.max_listed or visited > MAX_VISITED:
                break
        return found[: self.max_listed]


def _may_be_dicom(folder: str, name: str) -> bool:
    """Return whether a file without a suffix, as on hospitals' disks, is DICOM."""
    return "." not in name and is_dicom(os.path.join(folder, name))
