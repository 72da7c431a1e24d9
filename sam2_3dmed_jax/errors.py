"""Exceptions of mistakes in user input and of requested stops, and the length of messages.

The command line prints a `UserError` as one line and exits with 2. `listed` and `counted` shorten lists of names where
a message is written; `message_line` shortens messages that are still too long.
"""

import errno
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

LINE = 300  # characters of a message of the command line
NAME = 80  # characters of one name in a list
CHOICES = 10  # number of valid values in "choose from ..."
PATH_ERRORS = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENOTDIR)
# A full or read-only disk. TensorStore reports these as a ValueError whose text is pages long.
_DISK_REASONS = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))


class UserError(Exception):
    """A mistake in the user's files, flags or data.

    The message is one sentence that names the file or field and how to fix it. Notes (`add_note`) hold what is too long
    for it; `--debug` prints them.
    """


class FileWarning(UserWarning):
    """A sign that files or the masks made from them are wrong, such as missing slices or a click outside of its mask.

    The command line prints it as one line on stderr.
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


@contextmanager
def path_errors_as_mistakes() -> Iterator[None]:
    """Raise a `UserError` in place of the operating system's refusal of a path, wherever the block touches it first.

    A disk that is full or read-only is refused too, in whatever error a library wraps it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        name = cut(os.fsdecode(error.filename), 160) if isinstance(error, OSError) and error.filename else ""
        if isinstance(error, OSError) and error.errno in PATH_ERRORS and name:
            raise UserError(f"{name}: {error.strerror}; give another path") from error
        if reason := disk_reason(error):
            raise UserError(
                f"{name or 'an output'} cannot be written ({reason}); give a folder with room and write access"
            ) from error
        raise


def disk_reason(error: BaseException) -> str:
    """Return how the disk refused a write, such as "No space left on device", or "" for errors of another kind."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).lower()
        for reason in _DISK_REASONS:
            if reason.lower() in text:
                return reason
        cause = cause.__cause__ or cause.__context__
    return ""


def listed(names: Collection[object], most: int = 3, separator: str = ", ") -> str:
    """Return the first names of a list, and the number of the others, for messages.

    Args:
        names: the list.
        most: number of names to return.
        separator: text between them.
    """
    first = separator.join(cut(str(name), NAME) for name in islice(names, most))
    return f"{first} and {len(names) - most} more" if len(names) > most else first


def number_of(count: int, noun: str, plural: str = "") -> str:
    """Return a count and its noun, such as "1 case" or "3 cases".

    Args:
        count: the number.
        noun: in the singular.
        plural: of the noun; "": the noun and an s.
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def counted(groups: Mapping[str, Collection[str]], most: int = 3, characters: int = 100) -> str:
    """Return the number of names in each group, with a few of them as examples, for messages.

    Args:
        groups: lists of names by what is wrong with them; empty lists are left out.
        most: number of examples per group.
        characters: length of all examples together; the first example is returned even if it is longer.
    """
    examples: dict[str, list[str]] = {what: [] for what, names in groups.items() if names}
    left = characters
    for at in range(most):
        for what, shown in examples.items():
            name = next(islice(groups[what], at, None), None)
            if name is None or (len(name) > left and left < characters):
                continue
            shown.append(cut(name, 2 * NAME))
            left -= len(name)
    parts = []
    for what, shown in examples.items():
        dots = ", ..." if len(groups[what]) > len(shown) else ""
        parts.append(f"{len(groups[what])} {what}" + (f": {', '.join(shown)}{dots}" if shown else ""))
    return "; ".join(parts)


def plain_number(number: object) -> str:
    """Return a number with all its digits, for messages; whole numbers have no decimal point."""
    return f"{number:.0f}" if isinstance(number, float) and number.is_integer() and abs(number) < 1e15 else str(number)


def cut(text: str, most: int) -> str:
    """Return a text with its middle replaced by dots if it has more than `most` characters."""
    half = (most - 5) // 2
    return text if len(text) <= most else f"{text[: most - 5 - half]} ... {text[-half:]}"


def escaped(text: str) -> str:
    """Return a text with escapes in place of characters that a terminal would obey or that have no UTF-8."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def escaped_lines(text: str) -> str:
    """Return a text as `escaped` does, with its ends of lines and tabs."""
    return "".join(part if part in "\n\t" else escaped(part) for part in re.split(r"([\n\t])", text))


def message_line(message: object, most: int = LINE, hint: str = "") -> str:
    """Return a message on one line of at most `most` characters.

    Long paths lose their first folders. Then the middle of the message is left out, since a message starts with the
    file and ends with the fix.

    Args:
        message: a text or an exception.
        most: number of characters.
        hint: added to a message of which the middle is left out.
    """
    text = escaped(" ".join(str(message).split()))
    if len(text) > most:
        # Not by a regular expression, which takes minutes for a word of a million characters.
        text = " ".join(_end_of_path(word) if "/" in word else word for word in text.split(" "))
    return text if len(text) <= most else cut(text, most - len(hint)) + hint


def _end_of_path(path: str) -> str:
    """Return a path of more than 60 characters without its first folders, and a shorter one as it is."""
    *_, folder, name = path.split("/")
    end = f"{folder}/{name}"
    return path if len(path) <= 60 else f".../{end if len(end) <= 60 else name}"
