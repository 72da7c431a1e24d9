"""Benchmarks run and print their tables; what the figures are is no matter of a test."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_volume_benchmark_prints_a_row_for_each_number_of_objects():
    words = ["--model", "nano", "--image-size", "64", "--slices", "6", "--objects", "1", "2"]
    command = [sys.executable, ROOT / "experiments" / "benchmarks" / "volume.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, header, rule, *rows = done.stdout.splitlines()
    names = [name.strip() for name in header.strip("|").split("|")]
    assert names[0] == "objects" and "correction to mask, s" in names and "peak memory, MiB" in names
    assert set(rule) <= set("|-") and len(rows) == 2
    for objects, row in enumerate(rows, start=1):
        values = [float(value) for value in row.strip("|").split("|")]
        assert values[0] == objects and all(value > 0 for value in values)
