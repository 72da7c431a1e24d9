"""The features of a run's cases: those that the cache lacks are made first, case by case, by all processes together.

An interrupted run goes on with the next case. Several runs may fill one folder at a time: files appear whole, and a
case that another run has finished is not made again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.data.prepare.folder import writing
from sam2_3dmed_jax.data.prepare.source import Progress
from sam2_3dmed_jax.data.prepared import CaseEntry, is_prepared, read_prepared
from sam2_3dmed_jax.data.view import ModelView
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.training.dataset import open_view, split_cases
from sam2_3dmed_jax.training.features.cache import NEW, FeatureCache, FeatureKey
from sam2_3dmed_jax.training.features.choice import why_not
from sam2_3dmed_jax.training.features.encoder import FrozenEncoder
from sam2_3dmed_jax.training.features.shards import slice_bytes, write_features

log = logging.getLogger(__name__)


def check_features(config: ExperimentConfig, encoder: FrozenEncoder | None) -> None:
    """Find mistakes in `data.features` before the run's folder is made, and say if it is not used.

    Raises:
        UserError: as `open_features`, which looks again; only of a dataset that is prepared.
    """
    if config.data.features and encoder is None:
        log.warning(why_not(config))
    if encoder is not None and is_prepared(config.data.path):
        view = open_view(read_prepared(config.data.path), config)
        cache = _cache(config, encoder, view)
        cache.check()
        cases, inner, _ = split_cases(view, config)
        _lacking(cache, [*cases, *inner])


def open_features(
    config: ExperimentConfig,
    encoder: FrozenEncoder | None,
    devices: Iterable[jax.Device],
    view: ModelView,
    cases: Sequence[CaseEntry],
    progress: Progress | None = None,
) -> FeatureCache | None:
    """The features of the cases in `data.features`; those that are not there are made first.

    Args:
        config: the experiment.
        encoder: of a run from features; None: the run encodes at each step.
        devices: of the mesh; each process encodes its share of the cases on its own ones.
        view: of the dataset.
        cases: of all processes. They share the folder.
        progress: called with (what, slices done, slices, room on disk and where), first before anything is encoded.

    Raises:
        UserError: the folder holds something else or other features, cannot be written, or has no room.
    """
    if encoder is None:
        return None
    cache = _cache(config, encoder, view)
    cache.check()
    lacking = _lacking(cache, cases)
    for case in lacking:
        if (why := cache.lacks(case)) != NEW:
            log.warning("%s; its slices are encoded anew", why)
    multihost_utils.sync_global_devices("features: looked")  # before any process changes what the others look at
    cache.claim()
    mine = lacking[jax.process_index() :: jax.process_count()]
    if mine:
        ours = [device for device in devices if device.process_index == jax.process_index()]
        _make(cache, encoder, ours, view, mine, progress)
    multihost_utils.sync_global_devices("features: made")
    return cache


def _cache(config: ExperimentConfig, encoder: FrozenEncoder, view: ModelView) -> FeatureCache:
    model, dataset = config.model, view.dataset
    key = FeatureKey(
        encoder=encoder.digest,
        preset=model.preset,
        image_size=view.image_size,
        compute_dtype=model.compute_dtype,
        window=config.data.preprocessing.window,
        dataset=dataset.name,
        prepared=dataset.settings,
    )
    return FeatureCache(config.data.features, key, encoder.shapes)


def _lacking(cache: FeatureCache, cases: Sequence[CaseEntry]) -> list[CaseEntry]:
    """The cases to be made.

    Raises:
        UserError: the disk has no room for them.
    """
    lacking = [case for case in cases if cache.lacks(case)]
    count = sum(case.shape[0] for case in lacking)
    folder = Path(cache.path).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    need, free = count * slice_bytes(cache.shapes), shutil.disk_usage(there).free
    if need > free:
        raise UserError(
            f"data.features: the features of {count} slices take {_size(need)}, and the disk of {folder} has "
            f"{_size(free)} free; free some, or give a folder on another disk"
        )
    return lacking


def _make(
    cache: FeatureCache,
    encoder: FrozenEncoder,
    devices: Sequence[jax.Device],
    view: ModelView,
    cases: Sequence[CaseEntry],
    progress: Progress | None,
) -> None:
    total = sum(case.shape[0] for case in cases)
    note = f"{_size(total * slice_bytes(cache.shapes))} in {cache.path}"
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress("encoding slices", done, total, note)

    tell(0)
    encode = encoder.start(devices)

    def blocks(case: CaseEntry) -> Iterator[np.ndarray]:
        depth = case.shape[0]
        for start in range(0, depth, encode.block):
            values = view.values(case, range(start, min(start + encode.block, depth)))
            yield values
            tell(len(values))

    for case in cases:
        if not cache.lacks(case):  # another run has made it meanwhile
            tell(case.shape[0])
            continue
        with writing(Path(cache.path)):
            size = write_features(cache.shard(case), encode(blocks(case)))
        cache.finish(case, size)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
