"""Input pipeline: batches of clips or patches with Grain.

Randomness and batching are part of the `MapDataset`: item i of a run is a function of the seed and i only, for any
number of hosts, and each host takes every `hosts`-th item.
The number of consumed batches is all that a resumed run needs, for any number and kind of workers. Workers are threads:
NumPy and ArrayRecord release the interpreter lock, and processes are not faster (`experiments/benchmarks/data.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grain
import numpy as np

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.augment import active_augmentations
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.clip_lengths import clip_length, clip_lengths
from sam2_3dmed_jax.data.clips import CachedFeatures, cut_clip
from sam2_3dmed_jax.data.patches import Shape3D, cut_patch
from sam2_3dmed_jax.data.prepared import PreparedCase


def ordered_cases(cases: Sequence[PreparedCase], seed: int) -> list[PreparedCase]:
    """Return the cases in a permutation drawn from the seed, from which each epoch draws an order of its own."""
    order = np.random.default_rng(seed).permutation(len(cases))
    return [cases[i] for i in order]


def clip_batches(
    reader: CaseReader,
    cases: Sequence[PreparedCase],
    config: DataConfig,
    batch_size: int,
    seed: int,
    host: int = 0,
    hosts: int = 1,
    features: CachedFeatures | None = None,
) -> grain.MapDataset:
    """Return an endless random-access dataset of batches: `Clip` with a leading axis of `batch_size`.

    An epoch has one clip of each case, in an order of its own; a batch can contain clips of two epochs. The order of
    clips is drawn for all hosts together, so that each case is drawn equally often for any number of hosts.

    Args:
        reader: reads the cases.
        cases: training cases of all hosts, each with a class to segment.
        config: how clips are cut and augmented.
        batch_size: clips per batch on this host.
        seed: random seed.
        host: number of this host, from 0; it takes every `hosts`-th clip.
        hosts: number of hosts.
        features: cached features to use instead of slices, with the same random draws; augmentation must be off.

    Raises:
        ValueError: cached features with augmentation.
    """
    if features is not None and active_augmentations(config.augmentation):
        raise ValueError(f"features cannot be augmented: {active_augmentations(config.augmentation)}")

    def of_length(slices: int) -> grain.MapDataset:
        cut = functools.partial(_clip, reader, replace(config, slices=slices), features)
        return _batches(cut, cases, batch_size, seed, host, hosts)

    if not config.slices_schedule:
        return of_length(config.slices)
    return grain.MapDataset.source(_BatchesByLength({d: of_length(d) for d in clip_lengths(config)}, config))


def patch_batches(
    reader: CaseReader,
    cases: Sequence[PreparedCase],
    config: DataConfig,
    size: Shape3D,
    batch_size: int,
    seed: int,
    host: int = 0,
    hosts: int = 1,
) -> grain.MapDataset:
    """Return batches of `Patch`es of `size` (D, H, W) voxels, as `clip_batches`; `reader` has the image size 0."""
    return _batches(functools.partial(_patch, reader, config, size), cases, batch_size, seed, host, hosts)


class _BatchesByLength:
    """A data source of batches, of which number i has clips of the length of step i."""

    def __init__(self, batches: dict[int, grain.MapDataset], config: DataConfig):
        """Store the batches of each D."""
        self._batches, self._config = batches, config

    def __len__(self) -> int:
        return min(len(batches) for batches in self._batches.values())

    def __getitem__(self, index: Any) -> Any:
        return self._batches[clip_length(self._config, int(index))][int(index)]


def _batches(
    cut: Callable[[PreparedCase, np.random.Generator], Mapping[str, Any]],
    cases: Sequence[PreparedCase],
    batch_size: int,
    seed: int,
    host: int,
    hosts: int,
) -> grain.MapDataset:
    drawn = (
        grain.MapDataset.range(len(cases))
        .seed(int(np.random.SeedSequence([seed, 0]).generate_state(1)[0]))
        .shuffle()
        .repeat()
        .random_map(functools.partial(_cut, cut, ordered_cases(cases, seed)))
    )
    return drawn[host::hosts].batch(batch_size, drop_remainder=True)


def iterate(dataset: grain.MapDataset, start: int, workers: int) -> Generator[dict[str, Any]]:
    """Yield batches from number `start` on, which threads prepare ahead of time, each one batch at a time.

    Close the generator when done, which cancels the batches that no thread has started.

    Raises:
        UserError: an error in a worker, such as a damaged shard.
    """
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers + 1)
    batches = iter(dataset[start:].to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()


def _cut(
    cut: Callable[[PreparedCase, np.random.Generator], Mapping[str, Any]],
    cases: Sequence[PreparedCase],
    index: int,
    rng: np.random.Generator,
) -> Mapping[str, Any]:
    return cut(cases[index], rng)


def _clip(
    reader: CaseReader,
    config: DataConfig,
    features: CachedFeatures | None,
    case: PreparedCase,
    rng: np.random.Generator,
) -> Mapping[str, Any]:
    return cut_clip(reader, case, config, rng, features)


def _patch(
    reader: CaseReader, config: DataConfig, size: Shape3D, case: PreparedCase, rng: np.random.Generator
) -> Mapping[str, Any]:
    return cut_patch(reader, case, config, size, rng)
