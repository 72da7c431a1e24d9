"""Sweeps of two tiny checkpoints over phantoms: shared work, written files, and the state after a kill."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.datasets import dataset_fingerprint, read_dataset
from sam2_3dmed_jax.data.split_choice import choose_split, split_description
from sam2_3dmed_jax.data.split_files import write_run_split
from sam2_3dmed_jax.inference import compiled_programs, feature_store
from sam2_3dmed_jax.model.checkpoint import assemble
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.runtime.folder_lock import LOCK, one_writer
from sam2_3dmed_jax.sam2.parameters import split

ROOT = Path(__file__).resolve().parents[3]
SPEC = """
from sam2_3dmed_jax.config import SweepSpec

def get_spec():
    return SweepSpec(
        checkpoints=("seed{seed}",), data="data", folds=(0,), seeds=(0, 1), prompt=("point",),
        misplacement_mm=(0.0, 10.0), bd=(True, False), threshold=(0.0, -1.0), metrics="overlap",
    )
"""
COMPILED = (
    *(feature_store.encode_block, feature_store.embed_block, feature_store.slice_context),
    *(compiled_programs.segment_from_points, compiled_programs.segment_from_masks, compiled_programs.propagate_block),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a dataset of five cases and two checkpoints with equal encoders and different heads."""
    root = tmp_path_factory.mktemp("sweep")
    write_phantom_dataset(root / "data", 5, 0, "spleen", matrix=48)
    model = new_model("nano", 64, with_3dmed=True)
    _, weights = split(model)
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        changed = {
            path: value + 0.3 * rng.normal(size=value.shape).astype(np.float32)
            if re.match("boundary.to_mask|slice_position.to_features", path)
            else value
            for path, value in weights.items()
        }
        save_model(assemble(changed, model.info), root / f"seed{seed}")
    (root / "spec.py").write_text(SPEC)
    return root


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def sweep(*words: str, out: str) -> Path:
    assert main(["sweep", "spec.py", "--out", out, *words]) == 0
    return Path(out)


def mistake(capsys: pytest.CaptureFixture[str], *words: str, spec: str = "spec.py", out: str = "new") -> str:
    capsys.readouterr()
    assert main(["sweep", spec, "--out", out, *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert not Path("new").exists()
    return line


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def texts(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture(scope="module")
def encoded() -> list[int]:
    """Return the number of slices of each call of the encoder, counted from now on."""
    return []


@pytest.fixture(scope="module")
def swept(place: Path, encoded: list[int]) -> Path:
    """Return the folder of the whole sweep, without interruption."""
    importlib.import_module(
        "sam2_3dmed_jax.evaluation.sweep.run"
    )  # imported before the patch, so that the module does not keep the counting function
    encode = feature_store.encode_block

    def counted(graphdef, weights, block):
        encoded.append(len(block))
        return encode(graphdef, weights, block)

    patch = pytest.MonkeyPatch()
    patch.chdir(place)
    patch.setattr(feature_store, "encode_block", counted)
    try:
        return place / sweep(out="whole")
    finally:
        patch.undo()


def test_each_cell_has_a_row_with_every_factor_and_score(swept: Path):
    rows = table(swept / "sweep.csv")
    assert len(rows) == 2 * 1 * 2 * 2 * 2  # checkpoints, cases, misplacements, BD, thresholds
    factors = [(r["seed"], r["misplacement_mm"], r["bd"], r["threshold"]) for r in rows]
    assert len(set(factors)) == len(rows) and {r["kind"] for r in rows} == {"exploratory"}
    assert {(r["checkpoint"], r["model"], r["fold"]) for r in rows} == {
        (f"seed{seed}", "seed{seed}", "0") for seed in (0, 1)
    }
    assert {r["protocol"] for r in rows if r["misplacement_mm"] == "0"} == {"one-click"}
    assert {r["moved_mm"] for r in rows} == {"0", "10"} and all(r["dice"] for r in rows)
    of = dict(zip(factors, rows, strict=True))
    assert of["0", "0", "on", "0"]["volume_ml_prediction"] != of["0", "0", "off", "0"]["volume_ml_prediction"]
    # The displacement reaches the model: otherwise all robustness curves would be flat.
    assert of["0", "0", "on", "0"]["volume_ml_prediction"] != of["0", "10", "on", "0"]["volume_ml_prediction"]
    for seed, mm, bd, threshold in factors:  # a lower threshold only adds
        if threshold == "0":
            lower = float(of[seed, mm, bd, "-1"]["volume_ml_prediction"])
            assert lower >= float(of[seed, mm, bd, "0"]["volume_ml_prediction"])


def test_two_checkpoints_of_one_encoder_encode_a_case_once_for_all_cells(swept: Path, encoded: list[int]):
    (case,) = {row["case"] for row in table(swept / "sweep.csv")}
    depth = nib.load(f"data/imagesTr/{case}.nii.gz").shape[2]
    assert len(encoded) == -(-depth // feature_store.BLOCK)


def test_the_base_cell_equals_the_result_of_evaluate(swept: Path):
    words = ["evaluate", "seed1", "data", "--fold", "0", "--metrics", "overlap", "--out", "evaluated"]
    assert main(words) == 0
    (direct,) = table(Path("evaluated/cases.csv"))
    (cell,) = [
        row
        for row in table(swept / "sweep.csv")
        if (row["seed"], row["misplacement_mm"], row["bd"], row["threshold"]) == ("1", "0", "on", "0")
    ]
    same = (
        "case",
        "class",
        "dice",
        "volume_ml_prediction",
        "volume_ml_reference",
        "prompt_slices",
        "protocol",
        "empty",
    )
    assert {name: cell[name] for name in same} == {name: direct[name] for name in same}
    assert float(cell["volume_ml_prediction"]) > 0


def test_the_summary_averages_seeds_and_is_marked_exploratory(swept: Path):
    rows, summary = table(swept / "sweep.csv"), table(swept / "summary.csv")
    assert len(summary) == 8 * 2 and {row["class"] for row in summary} == {"spleen", "macro"}
    for row in summary:
        own = [float(r["dice"]) for r in rows if all(r[f] == row[f] for f in ("misplacement_mm", "bd", "threshold"))]
        assert len(own) == 2 and float(row["dice_mean"]) == pytest.approx(np.mean(own), rel=1e-5)
        assert row["kind"] == "exploratory" and row["cases"] == "1"
    record = json.loads((swept / "sweep.json").read_text())
    assert record["kind"] == "exploratory" and record["cells"] == len(rows) and record["settings"] == 8
    assert {"misplacement_mm", "neighbour", "dice", "prompted_slices"} <= record["definitions"].keys()
    page = (swept / "report.html").read_text()
    assert "Exploratory: settings are scored on the held-out test cases" in page
    assert page.count("<img") == 2  # Dice, against misplacement and threshold
    shown = set(re.findall(r'<data value="([^"]*)"', page))
    assert {row["dice_mean"] for row in summary} <= shown


def test_the_report_of_a_sweep_starts_with_the_base_and_the_worst_setting(swept: Path):
    page = (swept / "report.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["Result", "Robustness", "Settings", "What was swept", "Definitions"]
    box = page[page.index('class="headline"') : page.index("<h2>Robustness")]
    for bd in ("on", "off"):
        rows = [row for row in table(swept / "summary.csv") if row["class"] == "spleen" and row["bd"] == bd]
        (base,) = [row for row in rows if float(row["misplacement_mm"]) == float(row["threshold"]) == 0]
        assert {base["dice_mean"], min((row["dice_mean"] for row in rows), key=float)} <= set(
            re.findall(r'<data value="([^"]*)"', box)
        )


def test_a_killed_sweep_resumes_to_byte_equal_tables(swept: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sam2_3dmed_jax.commands.main", "sweep", "spec.py", "--out", "killed"]
    child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    cells = Path("killed/cells")
    begin = time.monotonic()
    while len(list(cells.glob("[0-9a-f]*.json"))) < 2 and child.poll() is None and time.monotonic() - begin < 300:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    (cells / ".torn.json.tmp").write_text("{")  # left by a kill between writing and renaming
    done = {file.name: file.stat().st_mtime_ns for file in cells.glob("[0-9a-f]*.json")}
    assert 2 <= len(done) < 8 and not Path("killed/sweep.csv").exists()
    sweep(out="killed")
    assert texts(Path("killed")) == texts(swept)
    assert all((cells / name).stat().st_mtime_ns == when for name, when in done.items())
    assert sorted(file.name for file in cells.iterdir()) == sorted(f.name for f in (swept / "cells").iterdir())


def test_more_cells_and_other_depths_compile_and_encode_nothing_again(swept: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = [function._cache_size() for function in COMPILED]
    words = ["--folds", "1", "2", "--misplacement_mm", "0", "3", "--threshold", "0", "1", "2", "--noise_mm", "0", "4"]
    folder = sweep(*words, "--seeds", "0", out="more")
    rows = table(folder / "sweep.csv")
    assert len(rows) == 2 * 2 * 2 * 3 * 2  # cases, misplacements, BD, thresholds, noises
    assert len({row["case"] for row in rows}) == 2
    assert [function._cache_size() for function in COMPILED] == sizes
    # With all cells finished, nothing is encoded, and the tables are the same.
    monkeypatch.setattr(feature_store, "encode_block", lambda *_: pytest.fail("a slice was encoded again"))
    before = texts(folder)
    sweep(*words, "--seeds", "0", out="more")
    assert texts(folder) == before


def test_shards_compute_the_cells_of_their_cases_and_the_last_writes_the_tables(
    swept: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--folds", "1", "2", "--seeds", "0", "--bd", "True", "--threshold", "0"]
    whole = sweep(*words, out="alone")
    sweep(*words, "--shard", "1/2", out="shared")
    assert "2 of 4 propagations are done" in capsys.readouterr().out and not Path("shared/sweep.csv").exists()
    with one_writer("shared", "", f"{LOCK}-1-of-2"):  # another shard
        assert "in use by this process" in mistake(capsys, *words, "--shard", "1/2", out="shared")
        sweep(*words, "--shard", "2/2", out="shared")
    assert texts(Path("shared")) == texts(whole)


def test_a_folder_takes_more_cells_and_refuses_another_sweep(swept: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--seeds", "0", "--bd", "False"]
    folder = sweep(*words, "--threshold", "0", out="grown")
    first = table(folder / "sweep.csv")
    sweep(*words, "--threshold", "0", "1", out="grown")
    rows = table(folder / "sweep.csv")
    assert len(rows) == 2 * len(first) and [row for row in rows if row["threshold"] == "0"] == first
    before = texts(folder)
    less = mistake(capsys, *words, "--threshold", "0", out="grown")
    assert "grown holds another sweep, which differs in threshold; choose another --out" in less
    message = mistake(
        capsys, *words, "--threshold", "0", "1", "--prompt_seed", "1", "--definition", "medpy", out="grown"
    )
    assert "differs in prompt_seed, definition;" in message
    assert "is not empty and contains no sweep" in mistake(capsys, out="data")
    assert texts(folder) == before


def test_a_dry_run_counts_the_cells_and_writes_nothing(capsys: pytest.CaptureFixture[str]):
    assert main(["sweep", "spec.py", "--out", "new", "--dry-run"]) == 0
    assert "16 cells: 8 settings, 2 checkpoints, 1 case, 1 class; 8 propagations" in capsys.readouterr().out
    assert not Path("new").exists()


def test_mistakes_are_one_line_and_leave_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert "absent.py: the sweep file does not exist; give a Python file with get_spec()" in mistake(
        capsys, spec="absent.py"
    )
    (tmp_path / "bare.py").write_text("")
    assert "bare.py: it has no get_spec(); define one that returns a SweepSpec" in mistake(
        capsys, spec=str(tmp_path / "bare.py")
    )
    (tmp_path / "other.py").write_text("def get_spec():\n    return 1\n")
    assert "get_spec() returns int; return a SweepSpec" in mistake(capsys, spec=str(tmp_path / "other.py"))
    (tmp_path / "circle.py").write_text(SPEC.replace('"point"', '"circle"'))
    assert "is \"circle\", expected 'point', 'box' or 'mask'; correct it" in mistake(
        capsys, spec=str(tmp_path / "circle.py")
    )
    (tmp_path / "none.py").write_text(SPEC.replace('prompt=("point",)', "prompt=()"))
    assert "prompt: it is empty, so the sweep has no cells" in mistake(capsys, spec=str(tmp_path / "none.py"))
    assert "a flag does not fit the sweep" in mistake(capsys, "--treshold", "1")
    assert "checkpoints: absent: the checkpoint does not exist" in mistake(capsys, "--checkpoints", "absent")
    assert "only {fold} and {seed} are filled in" in mistake(capsys, "--checkpoints", "{name}/final")
    assert "folds is empty; give some" in mistake(capsys, "--checkpoints", "run{fold}/final", "--folds")
    assert "fold" in mistake(capsys, "--folds", "7")
    assert "--shard: '3/2' is not a part" in mistake(capsys, "--shard", "3/2")


def test_a_case_that_a_run_was_trained_on_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    dataset = read_dataset("data")
    shutil.copytree("seed0", tmp_path / "run" / "final")
    config = DataConfig(path="data", fold=1)
    split_ = choose_split([case.id for case in dataset.cases], config)
    write_run_split(tmp_path / "run" / "split.json", split_, split_description(config, dataset_fingerprint(dataset)))
    words = ["--checkpoints", str(tmp_path / "run" / "final")]
    assert "was trained on 1 of 1 cases to score" in mistake(capsys, *words)
    assert main(["sweep", "spec.py", "--out", "new", "--dry-run", *words, "--folds", "1"]) == 0


def test_masks_and_several_prompted_slices_are_propagated_and_a_mask_prompt_is_the_output(swept: Path):
    words = ["--prompt", "mask", "--prompted_slices", "1", "3", "--misplacement_mm", "0", "--threshold", "0"]
    rows = table(sweep(*words, "--seeds", "0", "--bd", "True", out="masks") / "sweep.csv")
    one, three = sorted(rows, key=lambda row: int(row["prompted_slices"]))
    assert (one["prompt"], one["placement"], one["n_prompts"], three["n_prompts"]) == ("mask", "none", "1", "3")
    assert len(three["prompt_slices"].split()) == 3
    assert set(one["prompt_slices"].split()) < set(three["prompt_slices"].split())
    # SAM 2 returns a mask prompt as its output, so more of them raise Dice, but not that without prompted slices.
    assert float(three["dice"]) > float(one["dice"]) > float(one["dice_without_prompted_slices"])


@pytest.mark.long  # each process compiles for itself
def test_two_processes_share_the_cases_and_give_the_same_tables(swept: Path):
    words = ["--folds", "1", "2", "--seeds", "0", "--bd", "True", "--threshold", "0"]
    launcher = [sys.executable, str(ROOT / "experiments" / "launch" / "local.py"), "--processes", "2", "--"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*launcher, "sweep", "spec.py", "--out", "processes", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole = sweep(*words, out="alone")
    assert texts(Path("processes")) == texts(whole)


@pytest.mark.long  # each device compiles for itself
def test_several_devices_share_the_cases_and_give_the_same_tables(swept: Path):
    words = ["--folds", "1", "2", "--seeds", "0", "--bd", "True", "--threshold", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "sam2_3dmed_jax.commands.main", "sweep", "spec.py", "--out", "devices", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole = sweep(*words, out="alone")
    assert (Path("devices") / "sweep.csv").read_bytes() == (whole / "sweep.csv").read_bytes()
