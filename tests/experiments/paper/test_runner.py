"""Runner from runs to tables: a programme that was killed ends with the tables of one that was not."""

import base64
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.paper import cohorts, robustness
from experiments.paper.phantom import INIT
from experiments.paper.programme import cells
from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.report import plots
from sam2_3dmed_jax.evaluation.result_files import read_results, table_text
from sam2_3dmed_jax.evaluation.sweep.factors import FACTORS
from tests.helpers.two_seeds import SIZE, programme

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[3]


def silent(*_: object) -> None: ...


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("programme") / "cohorts"
    cohorts.make_cohort(root / "data" / "spleen", "spleen", SIZE.cases, 0, SIZE.matrix, silent)
    cohorts.make_prepared(root / "data" / "spleen", root / "prepared" / "spleen", (None, None, None), silent)
    save_model(new_model("nano", image_size=SIZE.image_size, seed=0), root / INIT)
    return root


def start(data: Path, *folders: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "tests.helpers.two_seeds", *map(str, (data, *folders))]
    quick = "--xla_backend_optimization_level=0"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {quick}"}
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Folders of a programme that was killed in its first run and of one that was not, and their output."""
    killed, whole = (tmp_path_factory.mktemp(name) for name in ("killed", "whole"))
    first = next(cell for cell in cells(programme(data)) if cell.variant.kind == "trained").folder(killed)
    process = start(data, killed)
    while process.poll() is None and not (first / "run" / "log.csv").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (first / "scores").exists()
    process = start(data, killed, whole)
    _, output = process.communicate(timeout=600)
    assert process.returncode == 2, output  # because one run fails
    return killed, whole, output


def test_a_killed_programme_ends_with_the_tables_of_an_undisturbed_one(runs):
    killed, whole, _ = runs
    for name in ("table.csv", "runs.csv", "comparison.csv", "cases.csv.gz"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert len((whole / "table.csv").read_text().splitlines()) > 20


def test_a_run_that_fails_is_recorded_and_does_not_stop_the_others(runs, data: Path):
    _, whole, output = runs
    failed = [cell for cell in cells(programme(data)) if (cell.folder(whole) / "failed.json").exists()]
    assert [cell.variant.name for cell in failed] == ["others-lost"]
    assert "nowhere/spleen" in json.loads((failed[0].folder(whole) / "failed.json").read_text())["error"]
    assert "1 runs have failed" in output.splitlines()[-1] and "others-lost" in output.splitlines()[-1]
    done = [cell for cell in cells(programme(data)) if (cell.folder(whole) / "done.json").exists()]
    assert [cell.variant.name for cell in done] == ["neither", "region-growing", "neither"]


def test_every_mean_of_the_table_is_the_mean_of_the_cases_of_its_runs(runs):
    _, whole, _ = runs
    with (whole / "table.csv").open() as file, (whole / "runs.csv").open() as other:
        table, run_rows = list(csv.DictReader(file)), list(csv.DictReader(other))
    checked = 0
    for row in (row for row in table if row["mean"] and row["class"] != "macro"):
        of = [r for r in run_rows if all(r[key] == row[key] for key in ("task", "variant", "scoring", "class"))]
        assert {r["config_hash"] for r in of} == {row["config_hash"]} and len(of) == int(row["runs"])
        by_case: dict[str, list[float]] = {}
        for run in of:
            assert run["run"].endswith(f"seed{run['seed']}-{row['config_hash']}")
            for case in read_results(whole / run["run"] / "scores" / row["scoring"]):
                assert case["seed"] == run["seed"] and case["class"] == row["class"]
                by_case.setdefault(case["case"], []).append(case[row["metric"]])
        assert float(row["mean"]) == pytest.approx(
            np.nanmean([np.mean(values) for values in by_case.values()]), rel=1e-4
        )
        checked += 1
    assert checked >= 12 and {row["variant"] for row in table} == {"neither", "region-growing"}


def test_the_page_and_the_text_state_their_limits_and_contain_the_tables(runs):
    _, whole, _ = runs
    markdown, page = ((whole / name).read_text() for name in ("tables.md", "report.html"))
    for report in (markdown, page):
        assert "cannot show that SRPP or BD helps on patients" in report
        assert (
            "Block: reference-prompted" in report and "Region growing" in report and "For research use only" in report
        )
    assert "![Training on Spleen (phantoms)](figures/training_spleen.svg)" in markdown
    assert (whole / "figures" / "training_spleen.svg").read_text().startswith("<?xml")
    assert "![Failure on Spleen (phantoms)](figures/failure_spleen_neither_1.png)" in markdown
    picture = (whole / "figures" / "failure_spleen_neither_1.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and base64.b64encode(picture).decode() in page


def test_each_hash_belongs_to_a_config_in_the_report(runs, data: Path):
    _, whole, _ = runs
    configs = json.loads((whole / "configs.json").read_text())
    with (whole / "runs.csv").open() as file:
        assert {row["config_hash"] for row in csv.DictReader(file)} == configs.keys()
    for config_hash, config in configs.items():
        assert hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest().startswith(config_hash)


def test_robustness_curves_differ_from_the_base_in_one_factor(data: Path, tmp_path: Path, monkeypatch):
    base = {**dict.fromkeys(FACTORS, "0"), "placement": "centre", "class": "macro", "dice_mean": "0.5"}
    rows = [
        {**base, "model": f"runs/spleen-{variant}-fold0-seed0-abc", "prompt": prompt, **changed, "dice_mean": mean}
        for variant in ("neither", "region-growing")
        for prompt in ("point", "box")
        for changed, mean in (({}, "0.8"), ({"noise_mm": "2"}, "0.7"), ({"misplacement_mm": "5"}, "0.6"))
    ]
    rows.append({**rows[0], "noise_mm": "2", "placement": "random", "dice_mean": "0.1"})
    folder = tmp_path / "robustness" / "spleen"
    folder.mkdir(parents=True)
    columns = ["model", "class", "dice_mean", "dice_ci95_low", "dice_ci95_high", *FACTORS]
    (folder / "summary.csv").write_text(table_text(columns, rows))
    drawn: list = []
    monkeypatch.setattr(plots, "curves", lambda points, *_: drawn.append(points) or b"")
    figures = robustness.curves(programme(data), tmp_path)
    assert [f.file for f in figures] == [
        f"figures/robustness_{name}_spleen.svg" for name in ("misplacement_mm", "noise_mm")
    ]
    names = ("SAM 2, fine-tuned", "Region growing")
    for points, x, mean in zip(drawn, (5.0, 2.0), (0.6, 0.7), strict=True):
        assert {point["series"] for point in points} == {f"{p}, {name}" for p in ("point", "box") for name in names}
        assert {(point["x"], point["mean"]) for point in points} == {(0.0, 0.8), (x, mean)} and len(points) == 8


def test_no_person_is_in_two_cohorts(data: Path, tmp_path: Path):
    spleen, organs = data / "data" / "spleen", tmp_path / "organs"
    cohorts.make_cohort(organs, "organs", 1, 7, 32, silent)
    cohorts.check_disjoint([spleen, organs])
    with pytest.raises(UserError, match="share the person"):
        cohorts.check_disjoint([spleen, data / "data" / "spleen"])
