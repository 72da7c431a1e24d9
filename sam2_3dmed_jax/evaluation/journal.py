"""Cases that an interrupted evaluation has finished, so that the same command goes on behind them.

A line a case in `.unfinished.jsonl`, after a first line that says what was evaluated; another evaluation starts anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.evaluation.summary import Row
from sam2_3dmed_jax.volume.image_file import written_whole

FILE = ".unfinished.jsonl"


class FinishedCases:
    """The rows of cases that are done."""

    def __init__(self, out: str | os.PathLike[str], what: dict[str, Any]) -> None:
        """Reads what is there, if it is of the same evaluation.

        Args:
            out: the folder of the results; made with the first case.
            what: all that decides the rows, as JSON.
        """
        self._path = Path(out, FILE)
        self._what = json.dumps(what, sort_keys=True)
        self._rows = self._read()

    def get(self, case: str) -> list[Row] | None:
        """The rows of a case, or None if it is not done."""
        return self._rows.get(case)

    def add(self, case: str, rows: list[Row]) -> None:
        """Keep the rows of a case.

        Raises:
            UserError: the folder cannot be written.
        """
        self._rows[case] = rows
        with written_whole(self._path, ".jsonl") as part:
            part.write_text("\n".join([self._what, *map(json.dumps, self._rows.items())]) + "\n", encoding="utf-8")

    def remove(self) -> None:
        """Forget them, when the results are written."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, list[Row]]:
        try:
            what, *lines = self._path.read_text(encoding="utf-8").splitlines()
            return dict(map(json.loads, lines)) if what == self._what else {}
        except (OSError, ValueError):  # there are none, or the file was tampered with
            return {}
