"""Whether a run trains from cached features: it must not train the encoder, nor change the pixels that it saw."""

from __future__ import annotations

import re

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.data.augment import changes
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.sam2.parameters import Weights
from sam2_3dmed_jax.training.parameter_groups import ENCODER


def trains_from_features(config: ExperimentConfig) -> bool:
    """Whether `data.features` is set and no augmentation is on that a cache cannot hold."""
    return bool(config.data.features) and not changes(config.data)


def why_not(config: ExperimentConfig) -> str:
    """One line for a run that asks for features and does not take them."""
    found = changes(config.data)
    given = ", ".join(f"data.{name} {value:g}" for name, value in found.items())
    return (
        f"data.features is not used: augmentation changes the slices ({given}), so they are encoded at each step; set "
        f"{'it' if len(found) == 1 else 'these'} to 0 to train from the cache"
    )


def without_encoder(trained: Weights, frozen: Weights) -> tuple[Weights, Weights]:
    """Frozen weights as those that a step from features needs, and the encoder's.

    Raises:
        UserError: a part of the encoder trains.
    """
    for path in trained:
        if any(re.search(pattern, path) for pattern in ENCODER):
            patterns = " ".join(f"'{pattern}'" for pattern in ENCODER)
            raise UserError(
                f"data.features: the image encoder trains ({path}), so its features change at each step; give "
                f"model.init, freeze it by --training.frozen {patterns}, or leave data.features out"
            )
    encoder = {path for path in frozen if any(re.search(pattern, path) for pattern in ENCODER)}
    return (
        {path: value for path, value in frozen.items() if path not in encoder},
        {path: value for path, value in frozen.items() if path in encoder},
    )
