"""Folder of a sweep's cells: a sweep whose files have changed does not resume."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.sweep.cells import Cells
from sam2_3dmed_jax.evaluation.sweep.factors import Setting
from sam2_3dmed_jax.runtime.hashing import sha256_of_json


def test_a_sweep_resumes_with_more_cases_but_not_with_changed_files(tmp_path: Path):
    spec, cells = SweepSpec(data="data"), Cells(tmp_path / "out")
    cells.claim(spec, [], "sizes", {"a": "1", "b": "2"}, "float32")
    cells.claim(spec, [], "sizes", {"a": "1", "b": "2", "c": "3"}, "float32")
    with pytest.raises(UserError, match=r"differs in data \(the files of 'b'\)"):
        cells.claim(spec, [], "sizes", {"a": "1", "b": "changed"}, "float32")


def test_a_cell_of_a_sweep_without_exchanged_prompts_is_found_again(tmp_path: Path):
    entry: Any = SimpleNamespace(model="m", checkpoint=str(tmp_path / "m"), fold=0, seed="")
    key = {
        **{"model": "m", "checkpoint": str(tmp_path / "m"), "fold": 0, "seed": "", "case": "a"},
        **{"prompt": "point", "placement": "centre", "noise_mm": 0.0, "misplacement_mm": 0.0, "neighbour": False},
        **{"prompted_slices": 1, "order": "sequential", "bd": "on"},  # all factors of version 0.1 but the threshold
    }
    cells = tmp_path / "cells"
    cells.mkdir()
    (cells / f"{sha256_of_json(key)[:24]}.json").write_text(json.dumps({"key": key, "rows": [[0.0, [{"dice": 1}]]]}))
    assert Cells(tmp_path).get(entry, "a", Setting()) == {0.0: [{"dice": 1}]}
    assert Cells(tmp_path).get(entry, "a", Setting(prompt_of="other")) == {}


def test_a_sweep_does_not_resume_in_another_dtype_and_auto_stands_for_one(tmp_path: Path):
    cells = Cells(tmp_path / "out")
    cells.claim(SweepSpec(data="data"), [], "sizes", {}, "float32")
    cells.claim(SweepSpec(data="data", compute_dtype="float32"), [], "sizes", {}, "float32")
    with pytest.raises(UserError, match=r"differs in compute_dtype \(float32 there, bfloat16 here\)"):
        cells.claim(SweepSpec(data="data"), [], "sizes", {}, "bfloat16")
