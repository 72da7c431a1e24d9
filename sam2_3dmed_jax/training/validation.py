"""Dice on the inner cases of a split, by which `best/` is chosen.

Ours: it is taken over clips, not over whole volumes, which would cost many steps' time at each validation. The clips
are always the same: as many of each case, unaugmented, prompted by one click at the object's centre, with the lengths,
directions and ends that the experiment trains on. Whole volumes are `evaluate`'s, whose numbers are lower: most slices
of a volume are farther from the click than a clip's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import grain
import jax
import numpy as np

from sam2_3dmed_jax.config import DataConfig, TrainingConfig
from sam2_3dmed_jax.data.augment import CHANGES
from sam2_3dmed_jax.data.clips import Features
from sam2_3dmed_jax.data.pipeline import iterate
from sam2_3dmed_jax.data.prepared import CaseEntry
from sam2_3dmed_jax.data.view import ModelView
from sam2_3dmed_jax.training.feed import to_devices
from sam2_3dmed_jax.training.methods import Method
from sam2_3dmed_jax.training.setup import Setup
from sam2_3dmed_jax.training.step import TrainState, result

SEED = 0  # of the clips: runs of other seeds are compared on the same ones


def plain(data: DataConfig) -> DataConfig:
    """Settings of the same clips without augmentation, each prompted by a click at its object; patches hold a class."""
    still: dict[str, Any] = dict.fromkeys(CHANGES, 0.0)
    return replace(data, **still, box=0.0, point_noise=0.0, foreground=1.0)


def fixed_batches(
    method: Method,
    view: ModelView,
    cases: Sequence[CaseEntry],
    data: DataConfig,
    training: TrainingConfig,
    host: int,
    hosts: int,
    features: Features | None = None,
) -> grain.MapDataset:
    """The batches that a run is validated on, `[B / hosts, ...]` each; the first is the one that is drawn.

    Raises:
        UserError: fewer cases than hosts.
    """
    here = training.batch_size // hosts
    batches = method.batches(view, cases, plain(data), here, SEED, host, hosts, features)
    return batches[: max(-(-training.validation_clips // training.batch_size), 1)]


def inner_dice(
    setup: Setup, forward: jax.stages.Wrapped, state: TrainState, batches: grain.MapDataset, workers: int
) -> float:
    """Mean Dice in [0, 1] over the clips and objects of `batches`, of the weights that would be the result.

    Args:
        setup: of the run.
        forward: of `make_forward`.
        state: whose weights to look at.
        batches: of `fixed_batches`.
        workers: threads that cut them.
    """
    weights = result(state)
    with closing(iterate(batches, 0, workers)) as clips:
        found = [forward(weights, setup.frozen, batch).dice for batch in to_devices(clips, setup.sharding)]
    totals, numbers = np.array(jax.device_get(found), np.float64).T
    return float(totals.sum() / max(numbers.sum(), 1.0))
