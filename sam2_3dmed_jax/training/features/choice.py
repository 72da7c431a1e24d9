"""Choice between cached features and the encoder: a run that augments slices or trains the encoder needs it."""

from __future__ import annotations

import re
from collections.abc import Collection

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.data.augment import active_augmentations
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.adapters import is_adapter
from sam2_3dmed_jax.sam2.parameters import Weights
from sam2_3dmed_jax.training.parameter_groups import ENCODER


def trains_from_features(config: ExperimentConfig) -> bool:
    """Return whether `data.features` is set and no augmentation changes the slices."""
    return bool(config.data.features) and not active_augmentations(config.data.augmentation)


def reason_not_used(config: ExperimentConfig) -> str:
    """Return one line for a run that sets `data.features` and does not use them."""
    active = active_augmentations(config.data.augmentation)
    settings = ", ".join(f"data.augmentation.{name} {value:g}" for name, value in active.items())
    return (
        f"data.features is not used: augmentation changes the slices ({settings}), so they are encoded at each step; "
        f"set {'it' if len(active) == 1 else 'these'} to 0 to train from the cache"
    )


def separate_encoder(trained: Weights, frozen: Weights, unfrozen: Collection[str] = ()) -> tuple[Weights, Weights]:
    """Split frozen weights into those that a step from features needs, and the weights of the encoder.

    Args:
        trained: weights and adapters that train.
        frozen: the others.
        unfrozen: paths that `training.unfreeze_stages` trains.

    Raises:
        UserError: a parameter of the encoder trains.
    """
    for path in trained:
        if any(re.search(pattern, path) for pattern in ENCODER):
            changing = "so its features change at each step"
            if path in unfrozen:
                raise UserError(
                    f"data.features: training.unfreeze_stages trains the image encoder ({path}), {changing}; leave one "
                    "of the two out"
                )
            if is_adapter(path):
                raise UserError(
                    f"data.features: training.lora adapts the image encoder ({path}), {changing}; leave data.features "
                    "out, or adapt memory attention only by --training.lora.modules '^memory_attention'"
                )
            patterns = " ".join(f"'{pattern}'" for pattern in ENCODER)
            raise UserError(
                f"data.features: the image encoder trains ({path}), {changing}; give "
                f"model.init, freeze it by --training.frozen {patterns}, or leave data.features out"
            )
    encoder = {path for path in frozen if any(re.search(pattern, path) for pattern in ENCODER)}
    return (
        {path: value for path, value in frozen.items() if path not in encoder},
        {path: value for path, value in frozen.items() if path in encoder},
    )
