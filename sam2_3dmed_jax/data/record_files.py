"""ArrayRecord files, whatever their records are: written whole, read one record at a time, a bounded number open.

ArrayRecord keeps checksums, so a damaged record is an error and never another value.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from sam2_3dmed_jax.errors import UserError

OPEN = 64  # files that a process keeps open, at most: opening one takes 0.1 ms, and systems allow some hundred
_READER = "readahead_buffer_size:0"  # random access
Opened = TypeVar("Opened")


def write_records(path: str | os.PathLike[str], records: Iterable[bytes], options: str) -> int:
    """Write a file under a temporary name of its own, then rename.

    Args:
        path: the file.
        records: in order.
        options: of ArrayRecord's writer.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: it cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with _writer_errors():
            writer = ArrayRecordWriter(str(temporary), options)
        try:
            for record in records:
                with _writer_errors():
                    writer.write(record)
        finally:
            with _writer_errors():
                writer.close()
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target.stat().st_size


@contextlib.contextmanager
def _writer_errors() -> Iterator[None]:
    """ArrayRecord's are RuntimeErrors, as are those of whatever makes the records."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


class Records:
    """Random access to the records of a file; threads may share it."""

    def __init__(self, path: str | os.PathLike[str], count: int, size: int, mend: str):
        """Open a file of `count` records of `size` bytes; `mend` says what to do with a damaged one.

        Raises:
            UserError: no such file, or one that holds another number of records.
        """
        from array_record.python.array_record_module import ArrayRecordReader

        self._path, self._size, self._mend = path, size, mend
        try:
            self._reader = ArrayRecordReader(str(path), _READER)
            found = self._reader.num_records()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(damaged(path, str(error), mend)) from error
        if found != count:
            raise UserError(damaged(path, f"it holds {found} readable slices of {count}", mend))

    def read(self, number: int) -> bytes:
        """One record.

        Raises:
            UserError: it is damaged.
        """
        try:
            # One by one: a list would go to ArrayRecord's own threads, which is slower and keeps 100 MB more.
            (record,) = self._reader.read([int(number)])
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(damaged(self._path, str(error), self._mend)) from error
        if len(record) != self._size:
            raise UserError(damaged(self._path, f"slice {number} has {len(record)} bytes", self._mend))
        return bytes(record)


def damaged(path: str | os.PathLike[str], reason: str, mend: str) -> str:
    """The sentence for a file that cannot be used."""
    return f"{path} is damaged ({reason}); {mend}"


class OpenFiles(Generic[Opened]):
    """The files that a process keeps open, the latest used last. Threads may share it; a pickle of it holds none."""

    def __init__(self) -> None:
        self._files: dict[str, Opened] = {}
        self._lock = threading.Lock()

    def get(self, name: str, open_it: Callable[[], Opened]) -> Opened:
        """An open file, opened if it is not."""
        with self._lock:
            file = self._files.pop(name, None)
            if file is None:
                file = open_it()
            self._files[name] = file
            if len(self._files) > OPEN:  # a reader closes when the last thread that reads lets go of it
                del self._files[next(iter(self._files))]
        return file

    def __len__(self) -> int:
        return len(self._files)

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()
