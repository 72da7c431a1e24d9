"""The one exception that stands for a user's mistake; the command line prints it as one line and exits with 2."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in the user's files, flags or data: one sentence that names the file or field and the mend."""


class Stopped(KeyboardInterrupt):
    """Work that a signal ended in order: what it left, and the signal's number."""

    def __init__(self, left: str, signal: int):
        super().__init__(left)
        self.signal = signal


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Put the name of a flag or field before the mistakes found inside the block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
