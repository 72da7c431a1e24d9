"""Results that were edited: numbers are finite and in range, and the cost has its types."""

import json
from pathlib import Path
from typing import Any

import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.result_files import case_columns, read_fixed_cost, read_results, table_text


def results(folder: Path, **cells: Any) -> Path:
    row = {"case": "a", "class": "organ", "dice": 0.5, "hd95_mm": 2.0, **cells}
    (folder / "cases.csv").write_text(table_text(case_columns(), [row]))
    return folder


def test_a_row_has_its_numbers_and_missing_ones_are_nan(tmp_path: Path):
    (row,) = read_results(results(tmp_path))
    assert (row["dice"], row["hd95_mm"], row["seed"]) == (0.5, 2.0, "")
    assert row["assd_mm"] != row["assd_mm"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("volume_error_ml", "1e308", "volume_error_ml is '1e308', expected a number"),
        ("assd_mm", "-inf", "assd_mm is '-inf', expected a number"),
        ("assd_mm", "-1", "assd_mm is -1, expected 0 to inf"),
        ("dice", "inf", "dice is 'inf', expected a number"),
        ("dice", "2", "dice is 2, expected 0 to 1"),
        ("seconds", "x", "seconds is 'x', expected a number"),
    ],
)
def test_a_number_that_is_infinite_or_out_of_range_is_refused(tmp_path: Path, column: str, value: str, message: str):
    with pytest.raises(UserError, match=f"cases.csv, line 2: {message}"):
        read_results(results(tmp_path, **{column: value}))


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"parameters": 5, "machine": "x"}, "cost.parameters is 5, expected an object"),
        ({"parameters": {"a": 1}, "machine": "x"}, "cost.parameters.total is missing"),
        ({"parameters": None, "machine": 5}, "cost.machine is 5, expected a text"),
    ],
)
def test_a_cost_of_other_types_is_refused(tmp_path: Path, cost: object, message: str):
    (tmp_path / "summary.json").write_text(json.dumps({"cost": cost}))
    with pytest.raises(UserError, match=f"summary.json: {message}"):
        read_fixed_cost(tmp_path)


def test_a_cost_that_is_not_stored_is_unknown(tmp_path: Path):
    assert read_fixed_cost(tmp_path) == {}
    (tmp_path / "summary.json").write_text('{"cost": null}')
    assert read_fixed_cost(tmp_path) == {}
