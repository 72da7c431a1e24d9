"""Values of JSON files and messages whose form depends on the prompt types, with their paths for error messages.

Files and messages of a fixed form are turned into dataclasses instead (`user_files.typed`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.user_files import read_json, shown

MAX_BYTES = 16 << 20  # a larger file is not a file of prompts
MAX_NUMBER = 1e6  # larger than any coordinate in voxels or mm; also excludes NaN and infinity


@dataclass(frozen=True)
class Field:
    """A value of a JSON file, with its path in the file for error messages."""

    value: Any
    file: str
    path: str = ""

    def wrong(self, expected: str) -> UserError:
        """Return the error that the value is not what was expected."""
        return UserError(f"{self.file}: {self.path or 'the file'} is {shown(self.value)}; give {expected}")

    def fields(self, known: Sequence[str] = (), required: Sequence[str] = ()) -> dict[str, Field]:
        """Return the members of an object.

        Args:
            known: all allowed names; empty: any.
            required: names that must be present.
        """
        if not isinstance(self.value, dict):
            raise self.wrong(f"an object with {', '.join(known or required)}")
        where = f"{self.file}: {self.path or 'the file'}"
        for name in self.value if known else ():
            if name not in known:
                raise UserError(f"{where} has the key '{name[:60]}'; the known keys are {', '.join(known)}")
        for name in required:
            if name not in self.value:
                raise UserError(f"{where} has no '{name}'; add it")
        return {name: self._at(value, f".{name}") for name, value in self.value.items()}

    def items(self) -> list[Field]:
        """Return the members of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [self._at(value, f"[{index}]") for index, value in enumerate(self.value)]

    def numbers(self, count: int, meaning: str) -> list[float]:
        """Return a list of `count` numbers; `meaning` describes them in the error."""
        numbers = self.value if isinstance(self.value, list) else []
        valid = [isinstance(n, int | float) and not isinstance(n, bool) and abs(n) <= MAX_NUMBER for n in numbers]
        if len(valid) != count or not all(valid):
            raise self.wrong(f"{count} numbers, {meaning}")
        return [float(number) for number in numbers]

    def whole(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not low <= self.value <= high:
            raise self.wrong(f"a whole number from {low} to {high}")
        return self.value

    def text(self) -> str:
        """Return a text that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong("a text")
        return self.value

    def _at(self, value: Any, step: str) -> Field:
        return Field(value, self.file, f"{self.path}{step}".removeprefix("."))


def read_fields(path: str | os.PathLike[str]) -> Field:
    """Return the root of a JSON file of prompts.

    Raises:
        UserError: as `user_files.read_json`.
    """
    return Field(read_json(path, "give a JSON file of prompts", MAX_BYTES), str(path))
