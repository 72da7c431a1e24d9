"""JSON files of users, read strictly: what does not fit is one sentence that names the file and the field."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sam2_3dmed_jax.errors import UserError

MAX_BYTES = 16 << 20  # of a file of prompts; more is another kind of file
MAX_NUMBER = 1e6  # no coordinate in voxels or mm is larger; NaN and infinity are not smaller


@dataclass(frozen=True)
class Field:
    """A value of a JSON file that knows where it stands."""

    value: Any
    file: str
    path: str = ""

    def wrong(self, expected: str) -> UserError:
        """The error that this is not what was expected."""
        nested = isinstance(self.value, list | dict)  # of any size and depth
        found = reprlib.repr(self.value) if nested else json.dumps(self.value)[:60]
        return UserError(f"{self.file}: {self.path or 'the file'} is {found}; give {expected}")

    def fields(self, known: Sequence[str] = (), required: Sequence[str] = ()) -> dict[str, Field]:
        """The members of an object; with `known`, any other is an error."""
        if not isinstance(self.value, dict):
            raise self.wrong(f"an object with {', '.join(known or required)}")
        where = f"{self.file}: {self.path or 'the file'}"
        for name in self.value if known else ():
            if name not in known:
                raise UserError(f"{where} has the key '{name[:60]}'; the known ones are {', '.join(known)}")
        for name in required:
            if name not in self.value:
                raise UserError(f"{where} has no '{name}'; add it")
        return {name: self._at(value, f".{name}") for name, value in self.value.items()}

    def items(self) -> list[Field]:
        """The members of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [self._at(value, f"[{index}]") for index, value in enumerate(self.value)]

    def numbers(self, count: int, meaning: str) -> list[float]:
        """A list of `count` numbers."""
        given = self.value if isinstance(self.value, list) else []
        fit = [isinstance(n, int | float) and not isinstance(n, bool) and abs(n) <= MAX_NUMBER for n in given]
        if len(fit) != count or not all(fit):
            raise self.wrong(f"{count} numbers, {meaning}")
        return [float(number) for number in given]

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not low <= self.value <= high:
            raise self.wrong(f"a whole number from {low} to {high}")
        return self.value

    def text(self) -> str:
        """A text that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong("a text")
        return self.value

    def _at(self, value: Any, step: str) -> Field:
        return Field(value, self.file, f"{self.path}{step}".removeprefix("."))


def read_json(path: str | os.PathLike[str]) -> Field:
    """The root of a JSON file.

    Raises:
        UserError: no such file, too large, not JSON, or NaN in it.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number")

    try:
        if (size := Path(path).stat().st_size) > MAX_BYTES:
            raise UserError(f"{path} is a file of {size >> 20} MiB; give one of prompts, of at most {MAX_BYTES >> 20}")
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"), parse_constant=refuse)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a JSON file of prompts") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a JSON file of prompts") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); give a JSON file of prompts") from None
    return Field(value, str(path))
