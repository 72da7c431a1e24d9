"""Exceptions of mistakes in user input and of requested stops.

The command line prints a `UserError` as one line and exits with 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in the user's files, flags or data.

    The message is one sentence that names the file or field and how to fix it.
    """


class Stopped(KeyboardInterrupt):
    """Work that stopped in order after a signal; `signal` is its number, the message describes what was saved."""

    def __init__(self, saved: str, signal: int):
        super().__init__(saved)
        self.signal = signal


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Put the name of a flag or field in front of every `UserError` of the block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
