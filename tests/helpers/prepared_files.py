"""Prepared datasets from arrays, written with the package's own writers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.data.prepared import CaseEntry, PreparedDataset, read_prepared, write_index
from sam2_3dmed_jax.data.records import write_shard

NO_AUGMENTATION = {"rotation": 0.0, "scaling": 0.0, "shift": 0.0, "intensity": 0.0, "gamma": 0.0, "noise": 0.0}


def write_prepared(
    folder: Path,
    cases: Mapping[str, tuple[np.ndarray, np.ndarray]],
    labels: Mapping[int, str],
    spacing: tuple[float, float, float] = (2.5, 1.0, 1.0),
    modality: str = "CT",
) -> PreparedDataset:
    """A dataset of `cases`, each values int16 and labels uint8 `[D, H, W]`, canonical."""
    (folder / "shards").mkdir(parents=True)
    dz, dy, dx = spacing
    affine = ((0.0, 0.0, -dx, 0.0), (0.0, -dy, 0.0, 0.0), (dz, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    entries = []
    for name, (values, label) in sorted(cases.items()):
        shard = f"shards/{name}.arrayrecord"
        size = write_shard(folder / shard, zip(values, label, strict=True))
        areas = {value: tuple((label == value).sum((1, 2)).tolist()) for value in labels if (label == value).any()}
        entries.append(
            CaseEntry(name, shard, size, values.shape, spacing, affine, "LPS", modality, 1.0, 0.0, areas, {})
        )
    source = {"ids": sorted(cases), "fingerprint": folder.name}
    write_index(PreparedDataset(str(folder), "test", dict(labels), {}, source, tuple(entries)))
    return read_prepared(folder)
