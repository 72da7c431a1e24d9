"""Files of an evaluation: `cases.csv`, tables of what a row contains several of, and `summary.json`.

`cases.csv` has one row per case and class, with the columns that describe how it was scored, so that it can be read
back, pooled and compared. `lesions.csv` has one row per tumour, `distance.csv` one row per bin of distance from the
prompted slices, `reliability.csv` one row per bin of probability, and `interactions.csv` one row per interaction of the
protocol 'interactive'. A comparison adds `comparison.csv`,
`comparison.json` and the values that it was computed from.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.cost import MEASURED
from sam2_3dmed_jax.evaluation.interactions import Interaction, interaction_rows
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.lesions import Lesion
from sam2_3dmed_jax.metrics.prompt_distance import BINS_MM, Distances
from sam2_3dmed_jax.metrics.reliability import BINS, Bins
from sam2_3dmed_jax.runtime.atomic_files import atomic_paths, write_errors

CASES, LESIONS, DISTANCE, RELIABILITY = "cases.csv", "lesions.csv", "distance.csv", "reliability.csv"
INTERACTIONS = "interactions.csv"
SUMMARY, REPORT = "summary.json", "report.html"
COMPARISON_TABLE, COMPARISON, COMPARISON_CASES = "comparison.csv", "comparison.json", "comparison_cases.csv.gz"
LESION_COLUMNS = ("case", "class", "lesion", "diameter_mm", "volume_ml", "covered", "found", "method", "fold", "seed")
DISTANCE_COLUMNS = (
    *("case", "class", "distance_low_mm", "distance_high_mm", "slices", "dice"),
    *("method", "fold", "seed"),
)
RELIABILITY_COLUMNS = ("case", "class", "bin", "voxels", "sum_of_p", "inside", "method", "fold", "seed")
INTERACTION_COLUMNS = ("case", "class", *Interaction.__annotations__, "method", "fold", "seed")
_ADDED = ("leakage_mm", "zoom")  # columns that tables of earlier versions lack; their rows lack the value
_MAX_BYTES = 256 << 20  # of a table; a larger file is not a table of results


def case_columns() -> tuple[str, ...]:
    """Return the columns of `cases.csv`."""
    return (
        *("case", "class", *_metric_columns()),
        *("empty", "missing", "block", "protocol", "prompt_source", "n_prompts", "prompt_slices"),
        *("method", "trained_on_these_cases", "bd", "zoom", "fold", "seed"),
        *("labels", "tolerance_mm", "definition", "empty_policy", *MEASURED, "compiled"),
    )


def _metric_columns() -> tuple[str, ...]:
    every = registry.names_requiring("masks", "surfaces", "prompts", "logits")
    return (*every, "band_mm", *registry.names_requiring("tumour"))


def write_results(
    rows: Sequence[ScoreRow],
    summary: Mapping[str, Any],
    out: str | os.PathLike[str],
    further: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write the files of an evaluation into a folder; either all of them appear, each complete, or none.

    `lesions.csv` is written if a tumour was scored, `distance.csv` if prompts are known, `reliability.csv` if
    probabilities are known, and `interactions.csv` if there were corrective clicks.

    Args:
        rows: of all cases and classes.
        summary: of these rows.
        out: the folder.
        further: contents of other files by name, such as the report.

    Raises:
        UserError: the folder cannot be written.
    """
    texts: dict[str, str | bytes] = {CASES: table_text(case_columns(), rows)}
    if any("lesions" in row for row in rows):
        lesions = [{**row, **lesion} for row in rows for lesion in row.get("lesions", ())]
        texts[LESIONS] = table_text(LESION_COLUMNS, lesions)
    if any(row.get("by_distance") for row in rows):
        distances = [
            {**row, "distance_low_mm": low, "distance_high_mm": high, "slices": int(slices), "dice": dice}
            for row in rows
            for (low, high), (slices, dice) in zip(BINS_MM, row.get("by_distance") or (), strict=False)
            if slices
        ]
        texts[DISTANCE] = table_text(DISTANCE_COLUMNS, distances)
    if any(row.get("reliability") for row in rows):
        bins = [
            {**row, "bin": number, "voxels": int(voxels), "sum_of_p": total, "inside": int(inside)}
            for row in rows
            for number, (voxels, total, inside) in enumerate(row.get("reliability", ()))
        ]
        texts[RELIABILITY] = table_text(RELIABILITY_COLUMNS, bins)
    if interactions := interaction_rows(rows):
        texts[INTERACTIONS] = table_text(INTERACTION_COLUMNS, interactions)
    texts[SUMMARY] = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    texts |= further or {}
    write_files(texts, out)
    optional = {LESIONS, DISTANCE, RELIABILITY, INTERACTIONS, REPORT, COMPARISON_TABLE, COMPARISON, COMPARISON_CASES}
    for name in optional - texts.keys():  # of an earlier evaluation
        Path(out, name).unlink(missing_ok=True)


def write_files(files: Mapping[str, str | bytes], out: str | os.PathLike[str]) -> None:
    """Write files into a folder, under temporary names first.

    Args:
        files: contents by file name.
        out: the folder.

    Raises:
        UserError: the folder cannot be written.
    """
    with atomic_paths() as temporary_path:
        for name, content in reversed(list(files.items())):  # `cases.csv` last: if it exists, so do the others
            with write_errors(path := Path(out, name)):
                temporary_path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def table_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, with six significant digits; a missing value is an empty cell."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return table.getvalue()


def compressed(text: str) -> bytes:
    """Return a text in gzip format; equal texts give equal bytes."""
    return gzip.compress(text.encode(), mtime=0)


def read_results(folder: str | os.PathLike[str]) -> list[ScoreRow]:
    """Read the rows of a finished evaluation, with numbers as float: NaN where a value is missing.

    Raises:
        UserError: the folder has no `cases.csv`, or the file is not a table of results.
    """
    path = Path(folder, CASES)
    header, lines = _read_table(path, folder)
    columns = case_columns()
    if missing := [column for column in columns if column not in (*header, *_ADDED)]:
        raise UserError(f"{path} has no column {missing[0]}; give a table that this version of `evaluate` wrote")
    rows = []
    for number, cells in enumerate(lines, 2):
        row: ScoreRow = {name: cells.get(name) or "" for name in columns if cells.get(name) or name not in _ADDED}
        row.setdefault("zoom", "off" if row["bd"] else "")  # earlier versions ran models without a zoom
        for column in (name for name in (*_metric_columns(), "tolerance_mm", *MEASURED) if name in row):
            try:
                row[column] = float(row[column] or math.nan)
            except ValueError:
                raise UserError(f"{path}, line {number}: {column} is '{row[column][:40]}', expected a number") from None
        rows.append(row | _lesion_counts(row, f"{path}, line {number}"))
    if not rows:
        raise UserError(f"{path} has no rows; give the table of an evaluation with cases")
    _with_lesions(Path(folder, LESIONS), rows)
    _with_distances(Path(folder, DISTANCE), rows)
    _with_bins(Path(folder, RELIABILITY), rows)
    return _with_interactions(Path(folder, INTERACTIONS), rows)


def read_fixed_cost(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read parameters, machine and dtype of a finished evaluation from its `summary.json`; {} if they are unknown."""
    try:
        cost = json.loads(Path(folder, SUMMARY).read_text(encoding="utf-8"))["cost"]
        # Summaries of earlier versions have no dtype.
        return {
            "parameters": cost["parameters"],
            "machine": cost["machine"],
            "compute_dtype": cost.get("compute_dtype"),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _read_table(path: Path, folder: str | os.PathLike[str]) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Return the header and the lines of `cases.csv`."""
    if not path.is_file():
        raise UserError(f"{folder} holds no {CASES}; give the --out folder of a finished `evaluate`")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is over {_MAX_BYTES >> 20} MiB; give a table that `evaluate` wrote")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            return reader.fieldnames or [], list(reader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a readable folder") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV table in UTF-8 ({error}); give a table that `evaluate` wrote") from None


def _lesion_counts(row: ScoreRow, where: str) -> ScoreRow:
    """Return the lesion columns of a row: counts as integers, or empty cells where lesions were not counted."""
    columns = registry.names_requiring("tumour")
    if math.isnan(row["lesions_reference"]):
        return dict.fromkeys(columns, "")
    counts = [entry.name for entry in registry.METRICS if entry.requires == "tumour" and entry.digits == 0]
    if not all(math.isfinite(row[column]) for column in counts):
        raise UserError(f"{where}: some lesion counts are missing; give a table that `evaluate` wrote")
    return {column: int(row[column]) for column in counts}


@contextlib.contextmanager
def _table(path: Path, what: str) -> Iterator[csv.DictReader[str]]:
    """Open a table, and turn every error of reading its cells in the block into a `UserError`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield csv.DictReader(file)
    except (OSError, csv.Error, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a table of {what}; give the folder as `evaluate` wrote it") from None


def _with_lesions(path: Path, rows: list[ScoreRow]) -> list[ScoreRow]:
    """Add the lesions of `lesions.csv`, if the file exists, to the rows of their case and class."""
    if not path.is_file():
        return rows
    lesions: dict[tuple[str, str], list[Lesion]] = {}
    with _table(path, "lesions") as table:
        for cells in table:
            lesion = Lesion(
                lesion=int(cells["lesion"]),
                diameter_mm=float(cells["diameter_mm"]),
                volume_ml=float(cells["volume_ml"]),
                covered=float(cells["covered"]),
                found=cells["found"] == "True",
            )
            lesions.setdefault((cells["case"], cells["class"]), []).append(lesion)
    for row in rows:
        if row["lesions_reference"] != "":
            row["lesions"] = lesions.get((row["case"], row["class"]), [])
    return rows


def _with_distances(path: Path, rows: list[ScoreRow]) -> list[ScoreRow]:
    """Add the bins of `distance.csv`, if the file exists, to the rows of their case, class and seed."""
    if not path.is_file():
        return rows
    distances: dict[tuple[str, ...], Distances] = {}
    with _table(path, "distances") as table:
        for cells in table:
            bins = distances.setdefault(
                (cells["case"], cells["class"], cells["seed"]), [[0, math.nan] for _ in BINS_MM]
            )
            number = BINS_MM.index((float(cells["distance_low_mm"]), float(cells["distance_high_mm"])))
            bins[number] = [int(cells["slices"]), float(cells["dice"])]
    for row in rows:
        if bins_of_row := distances.get((row["case"], row["class"], row["seed"])):
            row["by_distance"] = bins_of_row
    return rows


def _with_bins(path: Path, rows: list[ScoreRow]) -> list[ScoreRow]:
    """Add the bins of `reliability.csv`, if the file exists, to the rows of their case, class and seed."""
    if not path.is_file():
        return rows
    bins: dict[tuple[str, ...], Bins] = {}
    with _table(path, "reliability") as table:
        for cells in table:
            key = cells["case"], cells["class"], cells["seed"]
            bins.setdefault(key, []).append([float(cells[name]) for name in RELIABILITY_COLUMNS[3:6]])
        if any(len(diagram) != BINS or not np.isfinite(diagram).all() for diagram in bins.values()):
            raise ValueError
    for row in rows:
        if diagram := bins.get((row["case"], row["class"], row["seed"])):
            row["reliability"] = diagram
    return rows


def _with_interactions(path: Path, rows: list[ScoreRow]) -> list[ScoreRow]:
    """Add the interactions of `interactions.csv`, if the file exists, to the rows of their case, class and seed."""
    if not path.is_file():
        return rows
    interactions: dict[tuple[str, ...], list[Interaction]] = {}
    with _table(path, "interactions") as table:
        for cells in table:
            of_row = interactions.setdefault((cells["case"], cells["class"], cells["seed"]), [])
            one = Interaction(
                interaction=int(cells["interaction"]),
                dice=float(cells["dice"]),
                nsd=float(cells["nsd"]),
                hd95_mm=float(cells["hd95_mm"]),
                empty=cells["empty"],
                clicks=int(cells["clicks"]) if cells["clicks"] else None,
                click=cells["click"],
                seconds=float(cells["seconds"]),
                compiled=cells["compiled"],
                initial=cells["initial"],
                click_rule=cells["click_rule"],
                refinement=cells["refinement"],
            )
            if one["interaction"] != len(of_row):
                raise ValueError
            of_row.append(one)
    for row in rows:
        if of_row := interactions.get((row["case"], row["class"], row["seed"]), []):
            row["interactions"] = of_row
    return rows
