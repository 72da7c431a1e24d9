"""Batches of clips by Grain.

All randomness and batching live in the `MapDataset`, so batch i is a function of the seed and i alone: the state to
restore is the count of consumed batches, whatever the number of workers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.clips import Clip, PreparedCase, cut_clip


def clip_batches(cases: Sequence[PreparedCase], config: DataConfig, batch_size: int, seed: int) -> grain.MapDataset:
    """An endless random-access dataset of batches: `Clip` with a leading axis of `batch_size`."""
    return (
        grain.MapDataset.range(len(cases))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(functools.partial(_cut, cases, config))
        .batch(batch_size, drop_remainder=True)
    )


def iterate(dataset: grain.MapDataset, start: int, workers: int) -> Iterator[Clip]:
    """Batches from number `start` on, cut ahead of time by threads."""
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * max(workers, 1))
    return iter(dataset[start:].to_iter_dataset(options))


def _cut(cases: Sequence[PreparedCase], config: DataConfig, index: int, rng: np.random.Generator) -> Clip:
    return cut_clip(cases[index], config, rng)
