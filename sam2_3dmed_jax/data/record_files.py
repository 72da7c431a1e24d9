"""Reading and writing of ArrayRecord files with records of equal size, and a cache of open files.

ArrayRecord stores checksums, so a damaged record is an error and never a wrong value.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.atomic_files import atomic_path
from sam2_3dmed_jax.runtime.foreign_errors import foreign

# Limit per process: opening a file takes 0.1 ms, and systems allow some hundred open files.
MAX_OPEN_FILES = 64
_READER = "readahead_buffer_size:0"  # random access
Opened = TypeVar("Opened")


def write_records(path: str | os.PathLike[str], records: Iterable[bytes], options: str) -> int:
    """Write a file, which is complete or does not exist.

    Args:
        path: the file.
        records: the records in order.
        options: options of ArrayRecord's writer.

    Returns:
        The size of the file in bytes.

    Raises:
        UserError: the file cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with atomic_path(path) as temporary:
        with _writer_errors():
            writer = ArrayRecordWriter(str(temporary), options)
        try:
            for record in records:
                with _writer_errors():
                    writer.write(record)
        finally:
            with _writer_errors():
                writer.close()
        return temporary.stat().st_size


@contextlib.contextmanager
def _writer_errors() -> Iterator[None]:
    """Convert the RuntimeErrors of ArrayRecord to OSErrors, and not the errors of the iterator of records."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


class RecordFile:
    """Random access to the records of a file; safe to share between threads."""

    def __init__(self, path: str | os.PathLike[str], count: int, size: int, hint: str):
        """Open a file of `count` records of `size` bytes; `hint` tells users how to fix a damaged file.

        Raises:
            UserError: the file does not exist, or has another number of records.
        """
        from array_record.python.array_record_module import ArrayRecordReader

        self._path, self._size, self._hint = path, size, hint
        with self._errors():
            self._reader = ArrayRecordReader(str(path), _READER)
            number = self._reader.num_records()
        if number != count:
            raise UserError(damaged_file_message(path, f"it has {number} readable slices of {count}", hint))

    def read(self, number: int) -> bytes:
        """Read one record.

        Raises:
            UserError: the record is damaged.
        """
        with self._errors():
            # One by one: lists are read by ArrayRecord's own threads, which is slower and needs 100 MB more.
            (record,) = self._reader.read([int(number)])
        if len(record) != self._size:
            raise UserError(damaged_file_message(self._path, f"slice {number} has {len(record)} bytes", self._hint))
        return bytes(record)

    def _errors(self) -> AbstractContextManager[None]:
        return foreign("array_record", lambda reason: damaged_file_message(self._path, reason, self._hint))


def damaged_file_message(path: str | os.PathLike[str], reason: str, hint: str) -> str:
    """Return the message about a damaged file."""
    return f"{path} is damaged ({reason}); {hint}"


class OpenFileCache(Generic[Opened]):
    """Open files of a process, of which the least recently used are closed.

    Safe to share between threads. A pickled copy has no open files.
    """

    def __init__(self) -> None:
        self._files: dict[str, Opened] = {}
        self._lock = threading.Lock()

    def get(self, name: str, open_it: Callable[[], Opened]) -> Opened:
        """Return the open file of this name; `open_it` opens it if needed."""
        with self._lock:
            file = self._files.pop(name, None)
            if file is None:
                file = open_it()
            self._files[name] = file
            if len(self._files) > MAX_OPEN_FILES:  # a file closes when no thread uses it any more
                del self._files[next(iter(self._files))]
        return file

    def __len__(self) -> int:
        return len(self._files)

    def __reduce__(self) -> tuple[type[OpenFileCache], tuple[()]]:
        return OpenFileCache, ()
