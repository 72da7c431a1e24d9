"""What a run left, read back."""

import csv
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tensorboardX.proto.event_pb2 import Event

from sam2_3dmed_jax import load_model
from sam2_3dmed_jax.sam2.parameters import split


def rows(run: Path) -> list[dict[str, str]]:
    """The log, but for the seconds."""
    with (run / "log.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same_result(run: Path, other: Path) -> None:
    """Both runs logged the same numbers, and ended with the same weights and the same best ones, to the bit."""
    assert rows(run) == rows(other)
    for name in ("final", "best"):
        found, expected = (split(load_model(folder / name))[1] for folder in (run, other))
        for path, value in expected.items():
            np.testing.assert_array_equal(found[path], value, err_msg=path)


def events(run: Path) -> Iterator[Event]:
    """TensorBoard's events: each is its length (8 bytes), a checksum (4), the message, and a checksum (4)."""
    for file in sorted(run.glob("events.out.tfevents*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            yield Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
