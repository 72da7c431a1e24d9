"""Journal of finished cases, from which an interrupted evaluation resumes.

The file `.unfinished.jsonl` has one line per case, after a first line that identifies the evaluation. The journal of
another evaluation is ignored and overwritten.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.user_files import parse_json, read_text, typed

FILE = ".unfinished.jsonl"
MAX_BYTES = 1 << 30


class Journal:
    """The rows of the cases that are finished."""

    def __init__(self, out: str | os.PathLike[str], identity: dict[str, Any]) -> None:
        """Read the journal in a folder, if it belongs to the same evaluation.

        Args:
            out: the folder of the results, created with the first case.
            identity: everything that determines the rows, as JSON.
        """
        self._path = Path(out, FILE)
        self._identity = json.dumps(identity, sort_keys=True)
        self._rows = self._read()

    def get(self, case: str) -> list[ScoreRow] | None:
        """Return the rows of a case, or None if it is not finished."""
        return self._rows.get(case)

    def add(self, case: str, rows: list[ScoreRow]) -> None:
        """Store the rows of a case.

        Raises:
            UserError: the folder cannot be written.
        """
        self._rows[case] = rows
        write_text(self._path, "\n".join([self._identity, *map(json.dumps, self._rows.items())]) + "\n")

    def remove(self) -> None:
        """Delete the journal, once the results are written."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, list[ScoreRow]]:
        try:
            identity, *lines = read_text(self._path, "", MAX_BYTES).splitlines() or [""]
            return dict(map(self._parse, lines)) if identity == self._identity else {}
        except UserError:  # the file does not exist or is damaged: start from the first case
            return {}

    def _parse(self, line: str) -> tuple[str, list[ScoreRow]]:
        """Return a case and its rows, whose missing values are NaN."""
        where = str(self._path)
        return typed(
            parse_json(line, where, "", finite=False), tuple[str, list[dict[str, Any]]], where, "", finite=False
        )
