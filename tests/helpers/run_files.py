"""Readers of a run's files, and a run in its own process that ends with a signal."""

import csv
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tensorboardX.proto.event_pb2 import Event

from sam2_3dmed_jax import load_model
from sam2_3dmed_jax.sam2.parameters import split

ROOT = Path(__file__).resolve().parents[2]


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of the log, without the seconds."""
    with (run / "log.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same_result(run: Path, other: Path) -> None:
    """Check that both runs have the same log, final weights and best weights, to the bit."""
    assert rows(run) == rows(other)
    for name in ("final", "best"):
        actual, expected = (split(load_model(folder / name))[1] for folder in (run, other))
        for path, value in expected.items():
            np.testing.assert_array_equal(actual[path], value, err_msg=path)


def events(run: Path) -> Iterator[Event]:
    """TensorBoard's events, each stored as length (8 bytes), checksum (4), message, checksum (4)."""
    for file in sorted(run.glob("events.out.tfevents*")):
        content, start = file.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            yield Event.FromString(content[start + 12 : start + 12 + length])
            start += 16 + length


def started(experiment: Path, run: Path) -> subprocess.Popen[str]:
    """Train in a new process."""
    words = [sys.executable, "-m", "sam2_3dmed_jax.commands.main", "train", str(experiment), "--out", str(run)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def signalled(experiment: Path, run: Path, step: int, number: int) -> tuple[int, str]:
    """Train in a new process, send it a signal after `step` is logged, and return its exit code and stderr."""
    process = started(experiment, run)
    log = run / "log.csv"
    while process.poll() is None and not (log.exists() and len(log.read_bytes().splitlines()) > step):
        time.sleep(0.002)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=600)
    return process.returncode, stderr
