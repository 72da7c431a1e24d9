"""Batches of clips, or of patches, by Grain.

All randomness and batching live in the `MapDataset`, so batch i of a host is a function of the seed and i alone: the
state to restore is the count of consumed batches, whatever the number and kind of workers. Workers are threads: the
work is NumPy's and ArrayRecord's, which leave the interpreter to others, and `experiments/benchmarks/data.py` finds
processes no faster.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.augment import changes
from sam2_3dmed_jax.data.clips import Features, cut_clip
from sam2_3dmed_jax.data.patches import Triple, cut_patch
from sam2_3dmed_jax.data.prepared import CaseEntry
from sam2_3dmed_jax.data.view import ModelView
from sam2_3dmed_jax.errors import UserError


def host_cases(cases: Sequence[CaseEntry], seed: int, host: int, hosts: int) -> list[CaseEntry]:
    """The cases of one host: every `hosts`-th of a permutation that the seed gives; no case is in two hosts.

    Raises:
        UserError: fewer cases than hosts.
    """
    if len(cases) < hosts:
        raise UserError(f"data.path: {len(cases)} training cases do not go round {hosts} hosts; use fewer hosts")
    order = np.random.default_rng(seed).permutation(len(cases))
    return [cases[i] for i in order[host::hosts]]


def clip_batches(
    view: ModelView,
    cases: Sequence[CaseEntry],
    config: DataConfig,
    batch_size: int,
    seed: int,
    host: int = 0,
    hosts: int = 1,
    features: Features | None = None,
) -> grain.MapDataset:
    """An endless random-access dataset of batches: `Clip` with a leading axis of `batch_size`.

    Each epoch takes one clip of each of the host's cases, in another order; batches run across its end.

    Args:
        view: reads the cases.
        cases: the training cases of all hosts, each of which holds a class to segment.
        config: how clips are cut and augmented.
        batch_size: clips a batch, on this host.
        seed: of everything random.
        host: number of this host; each draws apart from the others.
        hosts: how many there are.
        features: to cut from in place of slices, by the same random draws; `config` must leave pixels as they are.

    Raises:
        UserError: fewer cases than hosts.
    """
    if features is not None and changes(config):
        raise ValueError(f"features cannot be augmented: {changes(config)}")
    cut = functools.partial(_clip, view, config, features)
    return _batches(cut, cases, batch_size, seed, host, hosts)


def patch_batches(
    view: ModelView,
    cases: Sequence[CaseEntry],
    config: DataConfig,
    size: Triple,
    batch_size: int,
    seed: int,
    host: int = 0,
    hosts: int = 1,
) -> grain.MapDataset:
    """The same of `Patch`es of `size` (D, H, W) voxels; `view` has no image size.

    Raises:
        UserError: fewer cases than hosts.
    """
    return _batches(functools.partial(_patch, view, config, size), cases, batch_size, seed, host, hosts)


def _batches(
    cut: Callable[[CaseEntry, np.random.Generator], Mapping[str, Any]],
    cases: Sequence[CaseEntry],
    batch_size: int,
    seed: int,
    host: int,
    hosts: int,
) -> grain.MapDataset:
    mine = host_cases(cases, seed, host, hosts)
    return (
        grain.MapDataset.range(len(mine))
        .seed(int(np.random.SeedSequence([seed, host]).generate_state(1)[0]))
        .shuffle()
        .repeat()
        .random_map(functools.partial(_cut, cut, mine))
        .batch(batch_size, drop_remainder=True)
    )


def iterate(dataset: grain.MapDataset, start: int, workers: int) -> Generator[dict[str, Any]]:
    """Batches from number `start` on, cut ahead of time by threads, each a batch at a time.

    Close it when done: that cancels what no thread has begun.

    Raises:
        UserError: what a worker met, such as a damaged shard.
    """
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers + 1)
    batches = iter(dataset[start:].to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()


def _cut(
    cut: Callable[[CaseEntry, np.random.Generator], Mapping[str, Any]],
    cases: Sequence[CaseEntry],
    index: int,
    rng: np.random.Generator,
) -> Mapping[str, Any]:
    return cut(cases[index], rng)


def _clip(
    view: ModelView, config: DataConfig, features: Features | None, case: CaseEntry, rng: np.random.Generator
) -> Mapping[str, Any]:
    return cut_clip(view, case, config, rng, features)


def _patch(
    view: ModelView, config: DataConfig, size: Triple, case: CaseEntry, rng: np.random.Generator
) -> Mapping[str, Any]:
    return cut_patch(view, case, config, size, rng)
