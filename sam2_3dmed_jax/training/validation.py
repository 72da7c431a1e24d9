"""Validation in the run: Dice on the inner cases of a split, which chooses `best/`.

Dice is measured on clips, because whole volumes would cost many steps' time at each validation. The clips are the same
at every validation: as many of each case, unaugmented, prompted by one click at the object's centre, with the lengths,
directions and ends of training clips. `evaluate` measures whole volumes and gives lower numbers, because most slices of
a volume are farther from the click than a clip's slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import grain
import jax
import numpy as np

from sam2_3dmed_jax.config import DataConfig, PatchConfig, PromptConfig, TrainingConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.clips import CachedFeatures
from sam2_3dmed_jax.data.pipeline import iterate
from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.runtime import distributed
from sam2_3dmed_jax.training.calibration import temperature_of
from sam2_3dmed_jax.training.eval_step import make_eval_step
from sam2_3dmed_jax.training.feed import StepsInFlight, to_devices
from sam2_3dmed_jax.training.methods import Method, method_of
from sam2_3dmed_jax.training.setup import Setup
from sam2_3dmed_jax.training.step import TrainState, final_weights

SEED = 0  # of the clips, so that runs with other seeds are compared on the same ones


def validation_data(data: DataConfig) -> DataConfig:
    """Return the settings without augmentation, with one centred click per object, and with a class in each patch."""
    return replace(
        data,
        slices_schedule=(),
        augmentation=NO_AUGMENTATION,
        prompts=PromptConfig(box_prompt_probability=0.0, random_point_probability=0.0),
        patches=PatchConfig(foreground_probability=1.0),
    )


def fixed_batches(
    method: Method,
    reader: CaseReader,
    cases: Sequence[PreparedCase],
    data: DataConfig,
    training: TrainingConfig,
    host: int,
    hosts: int,
    features: CachedFeatures | None = None,
) -> grain.MapDataset:
    """Return the validation batches, `[B / hosts, ...]` each."""
    batches = method.batches(
        reader, cases, validation_data(data), training.batch_size // hosts, SEED, host, hosts, features
    )
    return batches[: max(-(-training.validation_clips // training.batch_size), 1)]


class ValidationResult(NamedTuple):
    """Scores of the weights of a run on the inner cases."""

    dice: float  # mean in [0, 1]
    temperature: float | None  # for calibrated probabilities; None where it cannot be fitted


class Validation:
    """Evaluates the weights of a run, averaged ones with `training.ema`, on fixed batches."""

    def __init__(
        self, setup: Setup, reader: CaseReader, cases: Sequence[PreparedCase], features: CachedFeatures | None = None
    ):
        """Cut the batches from `cases`; `features` are the cached features of a run that trains from them."""
        config = setup.config
        self._setup, self._method = setup, method_of(config.model)
        arguments = (
            *(self._method, reader, cases, config.data, config.training),
            *(jax.process_index(), jax.process_count()),
        )
        self._batches = fixed_batches(*arguments, features)
        self._drawn = fixed_batches(*arguments)  # with slices
        scale = config.training.lora.scale
        self._eval_step = make_eval_step(config.model, setup.sharding.mesh, features is None, scale)

    def evaluate(self, state: TrainState) -> ValidationResult:
        """Return the scores over all clips and objects of the batches."""
        weights, frozen = final_weights(state), self._setup.frozen
        with closing(iterate(self._batches, 0, self._setup.config.data.workers)) as host_batches:
            outputs, in_flight = [], StepsInFlight()
            for batch in to_devices(host_batches, self._setup.sharding):
                outputs.append(self._eval_step(weights, frozen, batch)[:2])
                in_flight.add(outputs[-1])
        terms, histograms = zip(*jax.device_get(outputs), strict=True)
        totals, counts = np.array(terms, np.float64).T
        pixels = np.array(histograms, np.float64).sum(0)
        return ValidationResult(float(totals.sum() / max(counts.sum(), 1.0)), temperature_of(pixels))

    def images(self, state: TrainState) -> dict[str, np.ndarray]:
        """Return images of the first batch by name, uint8 `[H, W, 3]`; on all processes but the first, none."""
        (batch,) = to_devices([self._batches[0]], self._setup.sharding)
        output = self._eval_step(final_weights(state), self._setup.frozen, batch)
        if not distributed.is_first_process():
            return {}
        drawn = self._method.render(self._drawn[0], validation_data(self._setup.config.data))
        return self._method.images(jax.device_get(drawn), output.image_data)
