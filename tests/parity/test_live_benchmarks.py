"""The benchmarks against PyTorch run at a tiny size and check agreement; no test depends on the times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parity.live import reference

reference("torch")
reference("sam2")
reference("transformers")

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # half the time to compile


def run(script: str, *words: object) -> list[str]:
    """Run a benchmark and return the lines that it prints."""
    command = [sys.executable, "-m", f"experiments.benchmarks.pytorch.{script}", *map(str, words)]
    env = {**os.environ, **QUICK, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=env).stdout.splitlines()


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of results: the encoder with peak memory, and memory attention in bfloat16."""
    folder = tmp_path_factory.mktemp("figures")
    run("image_encoder", "--size", 64, "--pairs", 2, "--json", folder / "encoder.json")
    words = ("--size", 64, "--pairs", 1, "--dtype", "bfloat16", "--reference", "transformers")
    run("memory_attention", *words, "--json", folder / "attention.json")
    return folder


def test_a_row_has_times_per_pair_peak_memory_flops_agreement_and_the_machine(figures: Path) -> None:
    row = json.loads((figures / "encoder.json").read_text())
    assert len(row["ours_seconds"]) == len(row["theirs_seconds"]) == 2
    assert all(seconds > 0 for seconds in row["ours_seconds"] + row["theirs_seconds"])
    assert row["ours_peak_mib"] > 100 and row["theirs_peak_mib"] > 100
    # The reference also projects the padding of windows, which is most of such a small slice.
    assert 0.3 < row["ours_flops"] / row["theirs_flops"] < 1
    assert row["agreement"].startswith("features within") and {"CPU", "jax", "torch", "date"} <= row["machine"].keys()


def test_a_row_has_the_time_of_each_kind_of_operation_for_both_sides(figures: Path) -> None:
    row = json.loads((figures / "encoder.json").read_text())
    for side in ("ours", "theirs"):
        where = row[f"{side}_where"]
        assert where["products"] > 0 and where["other"] > 0 and where["between"] >= 0
        assert sum(where[kind] for kind in ("products", "copies", "other", "between")) >= where["seconds"] * 0.999


def test_rows_become_one_table_and_a_plot(figures: Path) -> None:
    files = sorted(figures.glob("*.json"))
    run("combine", *files, "--out", figures)
    lines = (figures / "pytorch.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith(("| image encoder", "| memory attention"))]
    assert len(rows) == 2 + 4 and (figures / "pytorch.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("dtype", "agreement"), [("float32", "same sign 100"), ("bfloat16", "as the reference in float32: 99.")]
)
def test_a_volume_agrees_with_the_reference_in_float32(dtype: str, agreement: str) -> None:
    table = run("volume", "--size", 128, "--slices", 3, "--pairs", 1, "--dtype", dtype)
    assert agreement in table[2]
