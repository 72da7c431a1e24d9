"""Preparation of one case: reading, checks, resampling, writing of the shard, and a comparison after writing."""

from __future__ import annotations

import os
import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel import orientations

from sam2_3dmed_jax.config import PrepareConfig
from sam2_3dmed_jax.data.archive import unpack_case
from sam2_3dmed_jax.data.case_content import CaseContent, affine_rows, case_content
from sam2_3dmed_jax.data.datasets import Dataset, LabelledCase, scan_modality
from sam2_3dmed_jax.data.prepare.folder import SHARDS, TEMPORARY, FileStamps, mark_finished
from sam2_3dmed_jax.data.prepare.stored_values import Scaling, choose_scaling
from sam2_3dmed_jax.data.prepare.validate import label_areas, read_case
from sam2_3dmed_jax.data.prepared import CaseSource, PreparedCase, SourceFile
from sam2_3dmed_jax.data.shards import Shard, write_shard
from sam2_3dmed_jax.errors import UserError, path_errors_as_mistakes
from sam2_3dmed_jax.runtime.hashing import sha256_of_file
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.resample import Regrid, regrid, resample_labels, resample_values


@dataclass(frozen=True)
class PrepareTask:
    """A case to prepare, and the state of its files at the start of the run."""

    case: LabelledCase
    stamps: FileStamps


@dataclass(frozen=True)
class RefusedCase:
    """A case that cannot be prepared."""

    reason: str  # one sentence
    traceback: str = ""  # if the reason is a bug


def prepare_case(task: PrepareTask, dataset: Dataset, out: str, settings: PrepareConfig) -> PreparedCase | RefusedCase:
    """Prepare a case: write its shard, and then its sidecar, to `out`.

    Raises:
        UserError: `out` cannot be written, which concerns all cases.
    """
    folder = Path(out, TEMPORARY, task.case.id)
    try:
        with path_errors_as_mistakes(), unpack_case(dataset, task.case, folder) as case:
            loaded = _load(case, task.case, dataset, settings)
    except UserError as error:
        return RefusedCase(" ".join(str(error).split()))
    except Exception as error:  # a bug in one case must not stop the others
        bug = " ".join(f"{type(error).__name__}: {error}".split())
        return RefusedCase(f"a bug: {bug} (run again with --debug and report it)", traceback.format_exc())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    entry = _store(task.case, loaded, Path(out))
    mark_finished(Path(out), entry, task.stamps)
    return entry


@dataclass(frozen=True, eq=False)
class _LoadedCase:
    """A case after resampling, before the values are scaled."""

    volume: Volume  # as read
    values: np.ndarray  # float32 [D, H, W]
    labels: np.ndarray  # uint8 [D, H, W]
    plan: Regrid
    source: CaseSource
    content: CaseContent  # before resampling


def _load(case: LabelledCase, original: LabelledCase, dataset: Dataset, settings: PrepareConfig) -> _LoadedCase:
    """Read, check and resample a case; `original` has the names of its files in the dataset."""
    modality = scan_modality(dataset, settings.modality)
    volume, labels = read_case(case, dataset.labels, modality, settings.keep_empty)
    values, content = volume.array, case_content(volume, labels)
    plan = regrid(volume.grid.canonical_shape, volume.canonical_affine, settings.spacing, case.image)
    if plan.step != (1.0, 1.0, 1.0):
        was_empty = not labels.any()
        values, labels = resample_values(values, plan), resample_labels(labels, plan)
        if not was_empty and not labels.any():
            raise UserError(f"{case.label} has only objects that vanish at this --spacing: choose a finer one")
    source: CaseSource = {
        "image": _source_file(case.image, original.image),
        "label": _source_file(case.label, original.label),
    }
    return _LoadedCase(volume, values, labels, plan, source, content)


def _store(case: LabelledCase, loaded: _LoadedCase, out: Path) -> PreparedCase:
    """Write the shard, compare it with the data, and return the entry of the index."""
    scaling = choose_scaling(loaded.values, loaded.volume.modality)
    name = f"{SHARDS}/{case.id}.arrayrecord"
    slices = ((scaling.stored(v), m) for v, m in zip(loaded.values, loaded.labels, strict=True))
    size = write_shard(out / name, slices)
    _read_back(out / name, loaded, scaling)
    dz, dy, dx = np.linalg.norm(loaded.plan.affine[:3, :3], axis=0).tolist()
    return PreparedCase(
        id=case.id,
        shard=name,
        bytes=size,
        shape=loaded.plan.shape,
        spacing=(dz, dy, dx),
        affine=affine_rows(loaded.plan.affine),
        orientation="".join(orientations.aff2axcodes(loaded.volume.grid.affine)),
        modality=loaded.volume.modality,
        slope=scaling.slope,
        intercept=scaling.intercept,
        areas=label_areas(loaded.labels),
        source=loaded.source,
        content=loaded.content,
    )


def _read_back(path: Path, loaded: _LoadedCase, scaling: Scaling) -> None:
    """Compare every slice of the shard bit for bit with the data."""
    shard = Shard(path, loaded.plan.shape)
    for d, (values, labels) in enumerate(zip(loaded.values, loaded.labels, strict=True)):
        stored = shard.read([d])
        if not (np.array_equal(stored[0][0], scaling.stored(values)) and np.array_equal(stored[1][0], labels)):
            raise UserError(f"{path}: slice {d} differs after writing; check the disk, or use another one")


def _source_file(path: str, name: str) -> SourceFile:
    """Describe a file; `path` is where it is read, `name` its path in the dataset."""
    return {"file": os.path.basename(name), "bytes": os.path.getsize(path), "sha256": sha256_of_file(path)}
