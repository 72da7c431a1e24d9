"""The table of statistics of objects."""

import csv
import io

import numpy as np
import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.statistics_table import COLUMNS, read_table, statistics_rows, table_text
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
from sam2_3dmed_jax.volume.geometry import Grid, Volume


def rows_of(case, modality="CT"):
    """Object 2 is a voxel of 40, object 5 is empty."""
    volume = Volume(np.full((2, 3, 4), 40, np.float32), Grid((2, 3, 4), np.eye(4), is_canonical=True), modality)
    labels = np.zeros(volume.array.shape, np.uint16)
    labels[1, 2, 3] = 2
    objects = {2: ObjectLabel("liver tumour"), 5: ObjectLabel("object 5")}
    return statistics_rows(case, labels, volume, objects)


def test_each_object_has_a_row_also_without_a_voxel():
    found, empty = rows_of("a")
    expected = {"case": "a", "object": "2", "name": "liver tumour", "code": "108369006", "volume_ml": "0.001"}
    assert expected.items() <= found.items()
    assert [found[key] for key in ("slices", "mean", "sd", "unit", "centroid_x_mm")] == ["1", "40", "0", "HU", "1"]
    filled = {key: value for key, value in empty.items() if value}
    assert filled == {"case": "a", "object": "5", "name": "object 5", "volume_ml": "0", "slices": "0", "unit": "HU"}
    assert rows_of("a", "MR")[0]["unit"] == ""


def test_the_rows_of_a_case_replace_its_earlier_ones_and_the_others_are_kept(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(table_text([], rows_of("a")), encoding="utf-8")
    path.write_text(table_text(read_table(path), rows_of("b")), encoding="utf-8")
    text = table_text(read_table(path), rows_of("a", "MR"))
    table = list(csv.DictReader(io.StringIO(text)))
    assert list(table[0]) == list(COLUMNS)
    assert [(row["case"], row["unit"]) for row in table] == [("b", "HU"), ("b", "HU"), ("a", ""), ("a", "")]


def test_another_file_is_refused_as_a_table(tmp_path):
    (tmp_path / "other.csv").write_text("case,dice\na,0.5\n")
    with pytest.raises(UserError, match=r"--statistics: .*other\.csv is not a table of statistics"):
        read_table(tmp_path / "other.csv")
