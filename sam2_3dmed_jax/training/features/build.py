"""Filling of the feature cache: missing cases of a run are encoded first, shared among all processes.

An interrupted run resumes with the next case. One run fills a folder at a time; any number of runs may read it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.folder_lock import one_job
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.training.features.cache import NEW, FeatureCache, FeatureKey
from sam2_3dmed_jax.training.features.choice import reason_not_used
from sam2_3dmed_jax.training.features.encoder import Encoding, FrozenEncoder
from sam2_3dmed_jax.training.features.shards import slice_bytes, write_features

log = logging.getLogger(__name__)


def check_features(
    config: ExperimentConfig,
    encoder: FrozenEncoder | None,
    prepared: tuple[CaseReader, Sequence[PreparedCase]] | None,
) -> None:
    """Find mistakes in `data.features` before the run's folder is created, and warn if the features are not used.

    Args:
        config: the experiment.
        encoder: of a run that trains from features, or None.
        prepared: reader and cases of the run, or None if the dataset is not prepared yet, and nothing can be checked.

    Raises:
        UserError: as `open_features`, which checks again.
    """
    if config.data.features and encoder is None:
        log.warning(reason_not_used(config))
    if encoder is not None and prepared is not None:
        reader, cases = prepared
        cache = _cache(config, encoder, reader)
        cache.check()
        _missing_cases(cache, cases)


def open_features(
    config: ExperimentConfig,
    encoder: FrozenEncoder | None,
    devices: Iterable[jax.Device],
    reader: CaseReader,
    cases: Sequence[PreparedCase],
    progress: Progress | None = None,
) -> FeatureCache | None:
    """Return the features of the cases in `data.features`; missing ones are computed first.

    Args:
        config: the experiment.
        encoder: of a run that trains from features; None: the run encodes at each step.
        devices: of the mesh; each process encodes its share of the cases on its own devices.
        reader: reads the cases.
        cases: of all processes, which share the folder.
        progress: counts encoded slices; its note is the space on disk and the folder.

    Raises:
        UserError: the folder holds something else or other features, is being filled by another run, cannot be written,
            or has no room.
    """
    if encoder is None:
        return None
    cache = _cache(config, encoder, reader)
    cache.check()
    missing = _missing_cases(cache, cases)
    for case in missing:
        if (reason := cache.missing_reason(case)) != NEW:
            log.warning("%s; its slices are encoded again", reason)
    multihost_utils.sync_global_devices("features: checked")  # before any process changes what the others check
    with one_job(cache.path, "give another data.features") if missing else nullcontext():
        cache.claim()
        share = missing[jax.process_index() :: jax.process_count()]
        if share:
            local_devices = [device for device in devices if device.process_index == jax.process_index()]
            _encode_cases(cache, encoder.start(local_devices), reader, share, progress)
        multihost_utils.sync_global_devices("features: complete")
    return cache


def _cache(config: ExperimentConfig, encoder: FrozenEncoder, reader: CaseReader) -> FeatureCache:
    dataset = reader.dataset
    key = FeatureKey(
        encoder=encoder.digest,
        preset=encoder.config.preset,
        image_size=reader.image_size,
        compute_dtype=encoder.config.compute_dtype,
        window=reader.preprocessing.window,
        dataset=dataset.name,
        prepared=dataset.settings,
    )
    return FeatureCache(config.data.features, key, encoder.shapes)


def _missing_cases(cache: FeatureCache, cases: Sequence[PreparedCase]) -> list[PreparedCase]:
    """Return the cases to encode.

    Raises:
        UserError: the disk has no room for them.
    """
    missing = [case for case in cases if cache.missing_reason(case)]
    count = sum(case.shape[0] for case in missing)
    folder = Path(cache.path).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    need, free = count * slice_bytes(cache.shapes), shutil.disk_usage(existing).free
    if need > free:
        raise UserError(
            f"data.features: the features of {count} slices take {_size(need)}, and the disk of {folder} has "
            f"{_size(free)} free; free some, or give a folder on another disk"
        )
    return missing


def _encode_cases(
    cache: FeatureCache,
    encode: Encoding,
    reader: CaseReader,
    cases: Sequence[PreparedCase],
    progress: Progress | None,
) -> None:
    """Encode cases one after the other and write their shards."""
    total = sum(case.shape[0] for case in cases)
    note = f"{_size(total * slice_bytes(cache.shapes))} in {cache.path}"
    done = 0

    def count(slices: int) -> None:
        nonlocal done
        done += slices
        if progress:
            progress("encoding slices", done, total, note)

    def blocks(case: PreparedCase) -> Iterator[np.ndarray]:
        depth = case.shape[0]
        for start in range(0, depth, encode.block):
            values = reader.values(case, range(start, min(start + encode.block, depth)))
            yield values
            count(len(values))

    count(0)
    for case in cases:
        if not cache.missing_reason(case):  # another run has finished it in the meantime
            count(case.shape[0])
            continue
        size = write_features(cache.shard(case), encode(blocks(case)))
        cache.finish(case, size)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
