"""Benchmarks run and print their tables; the figures are not tested."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_the_volume_benchmark_prints_one_row_per_number_of_objects():
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


@pytest.mark.long
def test_the_data_benchmark_compares_shards_with_nifti_and_shows_memory_at_intervals():
    words = ["--cases", "2", "--depth", "16", "--clips", "5", "--memory-clips", "20"]
    command = [sys.executable, ROOT / "experiments" / "benchmarks" / "data.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts, _, header, rule, *rows = done.stdout.splitlines()
    assert "outputs are equal" in facts and "clips/s | MB/s | times NIfTI | CPU ms/clip" in header
    speeds = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[:10]]
    assert {row[0] for row in speeds} == {"none", "default"}
    assert [row[2] for row in speeds[:5]] == ["a loop", "0", "1 thread", "2 threads", "2 processes"]
    assert all(float(value) > 0 for row in speeds for value in row[3:6])
    (feed,) = (row for row in rows if row.startswith("| D = 12, 1024 px, default augmentation |"))
    assert all(float(value) > 0 for value in feed.strip("|").split("|")[1:])
    memory = rows[rows.index("| clips | peak resident memory, MiB |") :]
    assert len([row for row in memory if row.startswith("| ")]) == 1 + 10
    assert rows[-1].startswith("Growth after the first 2 clips")


@pytest.mark.slow
def test_the_tpu_benchmark_prints_the_plan_and_attention_stores_no_score_matrix():
    words = ["--presets", "nano", "--image-size", "512", "--work", "attention", "--attention", "flash"]
    command = [sys.executable, "-m", "experiments.benchmarks.tpu", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    setting, _, header, _, row = done.stdout.splitlines()
    names, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (header, row))
    found = dict(zip(names, cells, strict=True))
    assert setting.startswith("v5e:1x1, 512 px") and found["program"] == "memory attention, one slice"
    assert float(found["ms"]) > 0 and 0 < float(found["of the peak"].removesuffix("%")) <= 100
    assert found["[N, M] in HBM"] == "no"


@pytest.mark.long
def test_the_benchmark_of_the_server_clicks_and_prints_its_latency():
    words = "--model nano --image-size 64 --dtype float32 --shape 64 64 12 --clicks 2"
    command = [sys.executable, "-m", "experiments.benchmarks.serve", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = dict(line.strip("| ").split(" | ", 1) for line in done.stdout.splitlines()[4:])
    median, worst = (float(cell) for cell in rows["click to the mask of its slice, ms"].split(" | "))
    assert 0 < median <= worst
    assert 0 < float(rows["bytes of a slice"].split(" | ")[0]) <= 64 * 64 / 8 + 18
