"""The files of an evaluation: `cases.csv`, a row a case and class; `summary.json`; and what else a row has to tell.

That is `lesions.csv`, a row a tumour, and `reliability.csv`, a row a bin of probability.

`cases.csv` says of itself how it was measured, so that it can be read back, pooled and compared.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.cost import MEASURED
from sam2_3dmed_jax.evaluation.scores import BEYOND, OVERLAP, SURFACE, UNPROMPTED, VOLUMES
from sam2_3dmed_jax.evaluation.summary import Row
from sam2_3dmed_jax.metrics.lesions import COUNTS
from sam2_3dmed_jax.metrics.reliability import BINS
from sam2_3dmed_jax.metrics.reliability import COLUMNS as BAND
from sam2_3dmed_jax.volume.image_file import written_whole

CASES, LESIONS, RELIABILITY = "cases.csv", "lesions.csv", "reliability.csv"
SUMMARY, REPORT = "summary.json", "report.html"
COMPARISON = ("comparison.csv", "comparison.json")
COLUMNS = (
    *("case", "class", *OVERLAP, *SURFACE, *UNPROMPTED, *VOLUMES, BEYOND, *BAND, "band_mm", *COUNTS),
    *("empty", "missing", "block", "protocol", "prompt_source", "n_prompts", "prompt_slices"),
    *("method", "trained_on_these_cases", "bd", "fold", "seed"),
    *("labels", "tolerance_mm", "definition", "empty_policy", *MEASURED, "compiled"),
)
LESION_COLUMNS = ("case", "class", "lesion", "diameter_mm", "volume_ml", "covered", "found", "method", "fold", "seed")
RELIABILITY_COLUMNS = ("case", "class", "bin", "voxels", "sum_of_p", "inside", "method", "fold", "seed")
_NUMBERS = (*OVERLAP, *SURFACE, *UNPROMPTED, *VOLUMES, BEYOND, *BAND, "band_mm", *COUNTS, "tolerance_mm", *MEASURED)
_MAX_BYTES = 256 << 20  # of a table; more is another kind of file


def write_results(
    rows: Sequence[Row],
    summary: Mapping[str, Any],
    out: str | os.PathLike[str],
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write the files of an evaluation into a folder; all appear, each whole, or none does.

    `lesions.csv` is there where a tumour was scored, `reliability.csv` where probabilities were known.

    Args:
        rows: of all cases and classes.
        summary: of these.
        out: the folder.
        beside: further texts by the name of their file, such as the report.

    Raises:
        UserError: the folder cannot be written.
    """
    texts = {CASES: table_text(COLUMNS, rows)}
    if any("lesions" in row for row in rows):
        lesions = [{**row, **lesion} for row in rows for lesion in row.get("lesions", ())]
        texts[LESIONS] = table_text(LESION_COLUMNS, lesions)
    if any(row.get("reliability") for row in rows):
        bins = [
            {**row, "bin": at, "voxels": int(voxels), "sum_of_p": total, "inside": int(inside)}
            for row in rows
            for at, (voxels, total, inside) in enumerate(row.get("reliability", ()))
        ]
        texts[RELIABILITY] = table_text(RELIABILITY_COLUMNS, bins)
    texts[SUMMARY] = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    texts |= beside or {}
    write_files(texts, out)
    for name in {LESIONS, RELIABILITY, REPORT, *COMPARISON} - texts.keys():  # of an earlier evaluation
        Path(out, name).unlink(missing_ok=True)


def write_files(files: Mapping[str, str | bytes], out: str | os.PathLike[str]) -> None:
    """Write files of these names into a folder, under temporary names first.

    Raises:
        UserError: the folder cannot be written.
    """
    with ExitStack() as written:
        for name, content in files.items():
            part = written.enter_context(written_whole(Path(out, name), Path(name).suffix))
            part.write_bytes(content.encode() if isinstance(content, str) else content)


def table_text(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Rows as CSV, numbers to six digits; what a row lacks is an empty cell."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return table.getvalue()


def read_results(folder: str | os.PathLike[str]) -> list[Row]:
    """The rows of a finished evaluation, numbers as float: NaN where there is none.

    Raises:
        UserError: no `cases.csv` there, or one that is no table of results.
    """
    path = Path(folder, CASES)
    if not path.is_file():
        raise UserError(f"{folder} holds no {CASES}; give the --out folder of a finished `evaluate`")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is over {_MAX_BYTES >> 20} MiB; give a table that `evaluate` wrote")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header, found = reader.fieldnames or [], list(reader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a folder that can") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV table in UTF-8 ({error}); give a table that `evaluate` wrote") from None
    if lacking := [column for column in COLUMNS if column not in header]:
        raise UserError(f"{path} has no column {lacking[0]}; give a table that this version of `evaluate` wrote")
    rows = []
    for line, cells in enumerate(found, 2):
        row: Row = {column: cells[column] or "" for column in COLUMNS}
        for column in _NUMBERS:
            try:
                row[column] = float(row[column] or math.nan)
            except ValueError:
                raise UserError(f"{path}, line {line}: {column} is '{row[column][:40]}', expected a number") from None
        if math.isnan(row[COUNTS[0]]):
            row.update(dict.fromkeys(COUNTS, ""))
        elif not all(math.isfinite(row[column]) for column in COUNTS[:3]):
            raise UserError(f"{path}, line {line}: lesions are counted in part; give a table that `evaluate` wrote")
        else:
            row.update({column: int(row[column]) for column in COUNTS[:3]})
        rows.append(row)
    if not rows:
        raise UserError(f"{path} has no rows; give the table of an evaluation with cases")
    return _with_bins(Path(folder, RELIABILITY), _with_lesions(Path(folder, LESIONS), rows))


def read_fixed_cost(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Parameters and machine of a finished evaluation, as its `summary.json` has them; {}: it tells none."""
    try:
        cost = json.loads(Path(folder, SUMMARY).read_text(encoding="utf-8"))["cost"]
        return {name: cost[name] for name in ("parameters", "machine")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _with_lesions(path: Path, rows: list[Row]) -> list[Row]:
    """Rows with the tumours of their case and class, where a file tells of them."""
    if not path.is_file():
        return rows
    lesions: dict[tuple[str, str], list[Row]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for cells in csv.DictReader(file):
                lesion = {name: float(cells[name]) for name in ("diameter_mm", "volume_ml", "covered")}
                lesion |= {"lesion": int(cells["lesion"]), "found": cells["found"] == "True"}
                lesions.setdefault((cells["case"], cells["class"]), []).append(lesion)
    except (OSError, csv.Error, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no table of lesions; give the folder as `evaluate` wrote it") from None
    for row in rows:
        if row[COUNTS[0]] != "":
            row["lesions"] = lesions.get((row["case"], row["class"]), [])
    return rows


def _with_bins(path: Path, rows: list[Row]) -> list[Row]:
    """Rows with the bins of their reliability diagram, where a file tells of them."""
    if not path.is_file():
        return rows
    bins: dict[tuple[str, ...], list[list[float]]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for cells in csv.DictReader(file):
                key = cells["case"], cells["class"], cells["seed"]
                bins.setdefault(key, []).append([float(cells[name]) for name in RELIABILITY_COLUMNS[3:6]])
        if any(len(found) != BINS or not np.isfinite(found).all() for found in bins.values()):
            raise ValueError
    except (OSError, csv.Error, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no table of reliability; give the folder as `evaluate` wrote it") from None
    for row in rows:
        if found := bins.get((row["case"], row["class"], row["seed"])):
            row["reliability"] = found
    return rows
