"""Writing a run's files: what the disk refuses becomes one sentence, for files of ours and of Orbax."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import replace_text

_KNOWN = ("No space left on device", "Disk quota exceeded", "File too large", "Read-only file system")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes `path`.

    Raises:
        UserError: it cannot be written: the disk is full, over quota or read-only, or fails.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # TensorStore raises ValueError for what the system refuses, pages long
        raise UserError(
            f"{path} cannot be written ({_reason(error)}); make room or mend the disk, and the same command goes on "
            "from the newest checkpoint"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: as `writing`.
    """
    with writing(path):
        replace_text(path, text)


def _reason(error: BaseException | None) -> str:
    first = error
    while error is not None:
        for known in _KNOWN:
            if re.search(known, str(error), re.IGNORECASE):
                return known
        error = error.__cause__ or error.__context__
    return f"{type(first).__name__}: {' '.join(str(first).split())[:200]}"
