"""One case from its files to its shard: read, checked, resampled where asked, written, and read back."""

from __future__ import annotations

import hashlib
import os
import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import orientations

from sam2_3dmed_jax.config import PrepareConfig
from sam2_3dmed_jax.data.archive import unpacked
from sam2_3dmed_jax.data.datasets import Case, Dataset
from sam2_3dmed_jax.data.prepare.folder import SHARDS, TEMPORARY, Stamp, finish_case, writing
from sam2_3dmed_jax.data.prepare.stored_values import Scaling, scaling_of
from sam2_3dmed_jax.data.prepare.validate import areas_of, modality_of, read_case
from sam2_3dmed_jax.data.prepared import CaseEntry
from sam2_3dmed_jax.data.records import Shard, write_shard
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.resample import Regrid, regrid, resample_labels, resample_values


@dataclass(frozen=True)
class Task:
    """A case to be prepared, and the state of its files when that was decided."""

    case: Case
    stamp: Stamp


@dataclass(frozen=True)
class Refused:
    """A case that cannot be prepared."""

    reason: str  # one sentence
    traceback: str = ""  # of a bug


def prepare_case(task: Task, dataset: Dataset, out: str, settings: PrepareConfig) -> CaseEntry | Refused:
    """Prepare a case, and leave its shard and, last, its sidecar in `out`.

    Raises:
        UserError: nothing can be written to `out`, which concerns all cases.
    """
    folder = Path(out, TEMPORARY, task.case.id)
    try:
        with unpacked(dataset, task.case, folder) as case:
            loaded = _load(case, dataset, settings)
    except UserError as error:
        return Refused(" ".join(str(error).split()))
    except Exception as error:  # a bug on one case must not cost the others
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return Refused(f"a bug: {told} (run again with --debug and report it)", traceback.format_exc())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    entry = _store(task.case, loaded, Path(out))
    finish_case(Path(out), entry, task.stamp)
    return entry


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A case as it will be stored, but for the scaling."""

    volume: Volume
    values: np.ndarray
    labels: np.ndarray
    plan: Regrid
    hashes: dict[str, tuple[int, str]]  # image and label: bytes and SHA-256


def _load(case: Case, dataset: Dataset, settings: PrepareConfig) -> _Loaded:
    volume, labels = read_case(case, dataset.labels, modality_of(dataset.modality))
    values = volume.array
    plan = regrid(volume.grid.canonical_shape, volume.canonical_affine, settings.spacing, case.image)
    if plan.step != (1.0, 1.0, 1.0):
        values, labels = resample_values(values, plan), resample_labels(labels, plan)
        if not labels.any():
            raise UserError(f"{case.label} has objects too small for the spacing asked for: ask for a finer one")
    return _Loaded(volume, values, labels, plan, {"image": _hash(case.image), "label": _hash(case.label)})


def _store(case: Case, loaded: _Loaded, out: Path) -> CaseEntry:
    scaling = scaling_of(loaded.values, loaded.volume.modality)
    name = f"{SHARDS}/{case.id}.arrayrecord"
    with writing(out):
        size = write_shard(
            out / name, ((scaling.stored(v), m) for v, m in zip(loaded.values, loaded.labels, strict=True))
        )
    _read_back(out / name, loaded, scaling)
    source: dict[str, Any] = {}
    for part, path in (("image", case.image), ("label", case.label)):
        length, digest = loaded.hashes[part]
        source[part] = {"file": os.path.basename(path), "bytes": length, "sha256": digest}
    dz, dy, dx = np.linalg.norm(loaded.plan.affine[:3, :3], axis=0).tolist()
    return CaseEntry(
        id=case.id,
        shard=name,
        bytes=size,
        shape=loaded.plan.shape,
        spacing=(dz, dy, dx),
        affine=tuple(tuple(row) for row in loaded.plan.affine.tolist()),
        orientation="".join(orientations.aff2axcodes(loaded.volume.grid.affine)),
        modality=loaded.volume.modality,
        slope=scaling.slope,
        intercept=scaling.intercept,
        areas=areas_of(loaded.labels),
        source=source,
    )


def _read_back(path: Path, loaded: _Loaded, scaling: Scaling) -> None:
    """Compare every slice, bit for bit, with what was to be written."""
    shard = Shard(path, loaded.plan.shape)
    for d, (values, labels) in enumerate(zip(loaded.values, loaded.labels, strict=True)):
        found = shard.read([d])
        if not (np.array_equal(found[0][0], scaling.stored(values)) and np.array_equal(found[1][0], labels)):
            raise UserError(
                f"{path}: slice {d} reads back otherwise than it was written; check the disk, or try another"
            )


def _hash(path: str) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return os.path.getsize(path), digest.hexdigest()
