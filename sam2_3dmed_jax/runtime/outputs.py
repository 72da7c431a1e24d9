"""Several files written together: all appear under their names, or none does."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sam2_3dmed_jax.errors import UserError


@contextlib.contextmanager
def written_together() -> Iterator[Callable[[str | os.PathLike[str]], Path]]:
    """A block that writes several files; it is given a function from the name of a file to where to write it.

    When the block ends well, the files move to their names in the order asked for, otherwise they are deleted.

    Raises:
        UserError: a file cannot be written there; said when its place is asked for, before the work.
    """
    places: dict[Path, Path] = {}

    def place(path: str | os.PathLike[str]) -> Path:
        target = Path(path)
        if target.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file")
        part = target.with_name(f".{uuid.uuid4().hex}.{target.name}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part.touch(exist_ok=False)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path} cannot be written ({reason}); give a folder with room and write access") from None
        places[target] = part
        return part

    try:
        yield place
        for target, part in places.items():
            os.replace(part, target)
    except UserError as error:
        message = str(error)
        for target, part in places.items():
            message = message.replace(str(part), str(target))
        raise UserError(message) from None
    finally:
        for part in places.values():
            with contextlib.suppress(OSError):  # gone after a success
                part.unlink()


def object_files(out: str | os.PathLike[str], object_ids: Sequence[int], names: Mapping[int, str]) -> dict[int, Path]:
    """Files for objects kept apart, beside the label map: `SEG_object1.nii.gz`, or by name `SEG_spleen.nii.gz`.

    Raises:
        UserError: two objects would have one file.
    """
    target = Path(out)
    suffix = ".nii.gz" if target.name.endswith(".nii.gz") else target.suffix
    stem = target.name.removesuffix(suffix)
    files: dict[int, Path] = {}
    for object_id in object_ids:
        name = re.sub(r"[^\w.+-]+", "_", names.get(object_id) or f"object{object_id}")
        path = target.with_name(f"{stem}_{name}{suffix}")
        if path in files.values():
            raise UserError(f"--separate: two objects would be written to {path}; name them apart")
        files[object_id] = path
    return files
