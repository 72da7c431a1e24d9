"""Prepared datasets from arrays, written by the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.data.prepared import PreparedCase, PreparedDataset, read_prepared, write_index
from sam2_3dmed_jax.data.shards import write_shard


def write_prepared(
    folder: Path,
    cases: Mapping[str, tuple[np.ndarray, np.ndarray]],
    labels: Mapping[int, str],
    spacing: tuple[float, float, float] = (2.5, 1.0, 1.0),
    modality: str = "CT",
    keep_empty: bool = False,
) -> PreparedDataset:
    """Write a dataset of `cases`, each values int16 and labels uint8 `[D, H, W]` in canonical order."""
    (folder / "shards").mkdir(parents=True)
    dz, dy, dx = spacing
    affine = ((0.0, 0.0, -dx, 0.0), (0.0, -dy, 0.0, 0.0), (dz, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    entries = []
    for name, (values, label) in sorted(cases.items()):
        shard = f"shards/{name}.arrayrecord"
        size = write_shard(folder / shard, zip(values, label, strict=True))
        areas = {value: tuple((label == value).sum((1, 2)).tolist()) for value in labels if (label == value).any()}
        entries.append(
            PreparedCase(name, shard, size, values.shape, spacing, affine, "LPS", modality, 1.0, 0.0, areas, {})
        )
    source = {"ids": sorted(cases), "fingerprint": folder.name}
    settings = {"keep_empty": True} if keep_empty else {}
    write_index(PreparedDataset(str(folder), "test", dict(labels), settings, source, tuple(entries)))
    return read_prepared(folder)
