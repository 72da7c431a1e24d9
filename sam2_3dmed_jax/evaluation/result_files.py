"""Files of an evaluation: `cases.csv`, tables of what a row contains several of, and `summary.json`.

`cases.csv` has one row per case and class, with the columns that describe how it was scored, so that it can be read
back, pooled and compared. `lesions.csv` has one row per tumour, `distance.csv` one row per bin of distance from the
prompted slices, `reliability.csv` one row per bin of probability, and `interactions.csv` one row per interaction of the
protocol 'interactive'. A comparison adds `comparison.csv`,
`comparison.json` and the values that it was computed from.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.cost import MEASURED, ParameterCounts
from sam2_3dmed_jax.evaluation.interactions import Interaction, interaction_rows
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.metrics import registry
from sam2_3dmed_jax.metrics.lesions import Lesion
from sam2_3dmed_jax.metrics.prompt_distance import BINS_MM, Distances
from sam2_3dmed_jax.metrics.reliability import BINS, Bins
from sam2_3dmed_jax.runtime.atomic_files import atomic_paths, write_errors
from sam2_3dmed_jax.runtime.user_files import number, read_json, read_start, read_table, shown, typed, whole_number

CASES, LESIONS, DISTANCE, RELIABILITY = "cases.csv", "lesions.csv", "distance.csv", "reliability.csv"
INTERACTIONS = "interactions.csv"
SUMMARY, REPORT = "summary.json", "report.html"
COMPARISON_TABLE, COMPARISON, COMPARISON_CASES = "comparison.csv", "comparison.json", "comparison_cases.csv.gz"
OPTIONAL_FILES = (
    *(LESIONS, DISTANCE, RELIABILITY, INTERACTIONS, REPORT),
    *(COMPARISON_TABLE, COMPARISON, COMPARISON_CASES),
)
RESULT_FILES = (CASES, SUMMARY, *OPTIONAL_FILES)  # all files of an evaluation
LESION_COLUMNS = ("case", "class", "lesion", "diameter_mm", "volume_ml", "covered", "found", "method", "fold", "seed")
DISTANCE_COLUMNS = (
    *("case", "class", "distance_low_mm", "distance_high_mm", "slices", "dice"),
    *("method", "fold", "seed"),
)
RELIABILITY_COLUMNS = ("case", "class", "bin", "voxels", "sum_of_p", "inside", "method", "fold", "seed")
INTERACTION_COLUMNS = ("case", "class", *Interaction.__annotations__, "method", "fold", "seed")
_ADDED = ("leakage_mm", "zoom")  # columns that tables of earlier versions lack; their rows lack the value
_FIX = "give a folder as `evaluate` wrote it"
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
    replaces_earlier = _is_table_of_results(Path(out, CASES))
    write_files(texts, out)
    if replaces_earlier:
        for name in set(OPTIONAL_FILES) - texts.keys():
            Path(out, name).unlink(missing_ok=True)


def _is_table_of_results(path: Path) -> bool:
    """Return whether a file is the `cases.csv` of an evaluation, also of an earlier version."""
    try:
        return path.is_file() and read_start(path, 200, _FIX).startswith(b"case,class,")
    except UserError:
        return False


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
    if not os.path.lexists(path):
        raise UserError(f"{folder} holds no {CASES}; give the --out folder of a finished `evaluate`")
    table = read_table(path, _FIX, _MAX_BYTES)
    columns = case_columns()
    if missing := [column for column in columns if column not in (*table.columns, *_ADDED)]:
        raise UserError(f"{path} has no column {missing[0]}; give a table that this version of `evaluate` wrote")
    rows = []
    numeric = (*_metric_columns(), "tolerance_mm", *MEASURED)
    for line, cells in table.rows:
        row: ScoreRow = {name: cells.get(name, "") for name in columns if cells.get(name) or name not in _ADDED}
        row.setdefault("zoom", "off" if row["bd"] else "")  # earlier versions ran models without a zoom
        for column in (name for name in numeric if name in row):
            where = f"{path}, line {line}: {column}"
            row[column] = number(row[column], where, _FIX)
            low, high = registry.range_of(column)
            if not (math.isnan(row[column]) or low <= row[column] <= high):
                raise UserError(f"{where} is {row[column]:g}, expected {low:g} to {high:g}; {_FIX}")
        rows.append(row | _lesion_counts(row, f"{path}, line {line}"))
    if not rows:
        raise UserError(f"{path} has no rows; give the table of an evaluation with cases")
    _with_lesions(Path(folder, LESIONS), rows)
    _with_distances(Path(folder, DISTANCE), rows)
    _with_bins(Path(folder, RELIABILITY), rows)
    return _with_interactions(Path(folder, INTERACTIONS), rows)


def read_fixed_cost(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read parameters, machine and dtype of a finished evaluation from its `summary.json`; {} if they are unknown.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder, SUMMARY)
    if not os.path.lexists(path):
        return {}
    summary = typed(read_json(path, _FIX, _MAX_BYTES), dict[str, Any], str(path), _FIX)
    cost = summary.get("cost")
    if not isinstance(cost, dict) or not {"parameters", "machine"} <= cost.keys():
        return {}
    known = {name: cost[name] for name in ("parameters", "machine", "compute_dtype") if name in cost}
    stored = typed(known, _FixedCost, str(path), _FIX, "cost")
    return {"parameters": stored.parameters, "machine": stored.machine, "compute_dtype": stored.compute_dtype}


@dataclass(frozen=True)
class _FixedCost:
    """`cost.FixedCost` in a summary; of several evaluations, None where they differ."""

    parameters: ParameterCounts | None
    machine: str | None
    compute_dtype: str | None = None  # not in summaries of earlier versions


def _lesion_counts(row: ScoreRow, where: str) -> ScoreRow:
    """Return the lesion columns of a row: counts as integers, or empty cells where lesions were not counted."""
    columns = registry.names_requiring("tumour")
    if math.isnan(row["lesions_reference"]):
        return dict.fromkeys(columns, "")
    counts = [entry.name for entry in registry.METRICS if entry.requires == "tumour" and entry.digits == 0]
    if not all(math.isfinite(row[column]) for column in counts):
        raise UserError(f"{where}: some lesion counts are missing; give a table that `evaluate` wrote")
    return {column: int(row[column]) for column in counts}


def _cells(path: Path, what: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where each row of a further table is, for messages, and its cells; nothing if the file does not exist."""
    if not os.path.lexists(path):
        return
    table = read_table(path, _FIX, _MAX_BYTES)
    if missing := [column for column in columns if column not in table.columns]:
        raise UserError(f"{path} is not a table of {what}, without the column {missing[0]}; {_FIX}")
    for line, cells in table.rows:
        yield f"{path}, line {line}", cells


def _finite(cells: Mapping[str, str], column: str, where: str) -> float:
    """Return the number in a cell that may not be empty."""
    value = number(cells[column], f"{where}: {column}", _FIX)
    if math.isnan(value):
        raise UserError(f"{where}: {column} is not a number; {_FIX}")
    return value


def _with_lesions(path: Path, rows: list[ScoreRow]) -> list[ScoreRow]:
    """Add the lesions of `lesions.csv`, if the file exists, to the rows of their case and class."""
    lesions: dict[tuple[str, str], list[Lesion]] = {}
    for where, cells in _cells(path, "lesions", LESION_COLUMNS[:7]):
        lesion = Lesion(
            lesion=whole_number(cells["lesion"], f"{where}: lesion", _FIX),
            diameter_mm=_finite(cells, "diameter_mm", where),
            volume_ml=_finite(cells, "volume_ml", where),
            covered=_finite(cells, "covered", where),
            found=cells["found"] == "True",
        )
        lesions.setdefault((cells["case"], cells["class"]), []).append(lesion)
    if os.path.lexists(path):
        for row in rows:
            if row["lesions_reference"] != "":
                row["lesions"] = lesions.get((row["case"], row["class"]), [])
    return rows


def _with_distances(path: Path, rows: list[ScoreRow]) -> list[ScoreRow]:
    """Add the bins of `distance.csv`, if the file exists, to the rows of their case, class and seed."""
    distances: dict[tuple[str, ...], Distances] = {}
    for where, cells in _cells(path, "distances", (*DISTANCE_COLUMNS[:6], "seed")):
        bins = distances.setdefault((cells["case"], cells["class"], cells["seed"]), [[0, math.nan] for _ in BINS_MM])
        ends = _end(cells, "distance_low_mm", where), _end(cells, "distance_high_mm", where)
        if ends not in BINS_MM:
            raise UserError(f"{where}: {ends[0]:g} to {ends[1]:g} mm is not a bin of distances; {_FIX}")
        slices = whole_number(cells["slices"], f"{where}: slices", _FIX)
        bins[BINS_MM.index(ends)] = [slices, number(cells["dice"], f"{where}: dice", _FIX)]
    for row in rows:
        if bins_of_row := distances.get((row["case"], row["class"], row["seed"])):
            row["by_distance"] = bins_of_row
    return rows


def _end(cells: Mapping[str, str], column: str, where: str) -> float:
    """Return the end of a bin of distances; the last bin has none."""
    return math.inf if cells[column] == "inf" else number(cells[column], f"{where}: {column}", _FIX)


def _with_bins(path: Path, rows: list[ScoreRow]) -> list[ScoreRow]:
    """Add the bins of `reliability.csv`, if the file exists, to the rows of their case, class and seed."""
    bins: dict[tuple[str, ...], Bins] = {}
    for where, cells in _cells(path, "reliability", (*RELIABILITY_COLUMNS[:6], "seed")):
        key = cells["case"], cells["class"], cells["seed"]
        bins.setdefault(key, []).append([_finite(cells, name, where) for name in RELIABILITY_COLUMNS[3:6]])
    if wrong := [key for key, diagram in bins.items() if len(diagram) != BINS]:
        raise UserError(
            f"{path}: {shown(wrong[0][0])} has {len(bins[wrong[0]])} bins of reliability, expected {BINS}; {_FIX}"
        )
    for row in rows:
        if diagram := bins.get((row["case"], row["class"], row["seed"])):
            row["reliability"] = diagram
    return rows


def _with_interactions(path: Path, rows: list[ScoreRow]) -> list[ScoreRow]:
    """Add the interactions of `interactions.csv`, if the file exists, to the rows of their case, class and seed."""
    interactions: dict[tuple[str, ...], list[Interaction]] = {}
    for where, cells in _cells(path, "interactions", (*INTERACTION_COLUMNS[:-3], "seed")):

        def value(column: str, where: str = where, cells: Mapping[str, str] = cells) -> float:
            return number(cells[column], f"{where}: {column}", _FIX)

        of_row = interactions.setdefault((cells["case"], cells["class"], cells["seed"]), [])
        place = whole_number(cells["interaction"], f"{where}: interaction", _FIX)
        if place != len(of_row):
            raise UserError(f"{where}: interaction is {place}, expected {len(of_row)}; {_FIX}")
        clicks = whole_number(cells["clicks"], f"{where}: clicks", _FIX) if cells["clicks"] else None
        of_row.append(
            Interaction(
                interaction=place,
                dice=value("dice"),
                nsd=value("nsd"),
                hd95_mm=value("hd95_mm"),
                empty=cells["empty"],
                clicks=clicks,
                click=cells["click"],
                seconds=value("seconds"),
                compiled=cells["compiled"],
                initial=cells["initial"],
                click_rule=cells["click_rule"],
                refinement=cells["refinement"],
            )
        )
    for row in rows:
        if of_row := interactions.get((row["case"], row["class"], row["seed"]), []):
            row["interactions"] = of_row
    return rows
