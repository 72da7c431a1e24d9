"""Table of statistics of segmented objects (CSV): one row per case and object."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np

from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.metrics.object_statistics import object_statistics
from sam2_3dmed_jax.runtime import user_files
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel, segment_codes
from sam2_3dmed_jax.volume.geometry import Volume

COLUMNS = (
    *("case", "object", "name", "code", "volume_ml", "slices", "mean", "sd", "min", "max", "unit"),
    *("box_x_min_mm", "box_y_min_mm", "box_z_min_mm", "box_x_max_mm", "box_y_max_mm", "box_z_max_mm"),
    *("centroid_x_mm", "centroid_y_mm", "centroid_z_mm", "axial_diameter_mm"),
)
Row = dict[str, str]


def statistics_rows(case: str, labels: np.ndarray, volume: Volume, objects: Mapping[int, ObjectLabel]) -> list[Row]:
    """Return the row of each object of a case, in the order of their ids.

    Args:
        case: its name.
        labels: object ids `[D, H, W]`.
        volume: the image.
        objects: by id, also those without a voxel.
    """
    rows = []
    for object_id, label in sorted(objects.items()):
        found = object_statistics(labels == object_id, volume.array, volume.canonical_affine)
        codes = segment_codes(label)
        nowhere = (None, None, None)
        places = *(found.box_min_mm or nowhere), *(found.box_max_mm or nowhere), *(found.centroid_mm or nowhere)
        cells = (
            *(case, str(object_id), label.name, codes.type.code if codes.is_known else ""),
            *map(_cell, (found.volume_ml, found.slices, found.mean, found.sd, found.min, found.max)),
            "HU" if volume.modality == "CT" else "",
            *map(_cell, (*places, found.axial_diameter_mm)),
        )
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def _cell(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"


def read_table(path: str | os.PathLike[str]) -> list[Row]:
    """Return the rows of a table; [] if the file does not exist.

    Raises:
        UserError: the file is not such a table, which must not be replaced, or cannot be read.
    """
    if not os.path.lexists(path):
        return []
    with naming("--statistics"):
        table = user_files.read_table(path, "give another file")
    if table.columns == COLUMNS:
        return list(table)
    raise UserError(f"--statistics: {path} is not a table of statistics; give another file")


def table_text(table: Sequence[Row], rows: Sequence[Row]) -> str:
    """Return the text of a table with new rows at the end, which replace all rows of their cases."""
    cases = {row["case"] for row in rows}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for row in table if row["case"] not in cases)
    writer.writerows(rows)
    return text.getvalue()
