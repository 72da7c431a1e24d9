"""Parameter groups by patterns on parameter paths: what is frozen, and what has another learning rate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.sam2.parameters import Weights

FROZEN_ALWAYS = (r"positional_encoding_gaussian_matrix$",)  # the random Fourier matrix is a constant
ENCODER = (r"^image_encoder\.", r"^sam_mask_decoder\.conv_s[01]\.")  # computes the features of a slice
FROZEN_PRETRAINED = (*ENCODER, r"^sam_prompt_encoder\.")  # both encoders keep what they have learned


class FrozenPatterns(NamedTuple):
    """Patterns of the parameters of a kind of model that do not train."""

    always: tuple[str, ...]
    pretrained: tuple[str, ...]  # with loaded weights, unless `training.frozen` is set


SAM2_FROZEN = FrozenPatterns(FROZEN_ALWAYS, FROZEN_PRETRAINED)


def frozen_patterns(
    chosen: Sequence[str] | None,
    pretrained: bool,
    patterns: FrozenPatterns = SAM2_FROZEN,
) -> tuple[str, ...]:
    """Return the patterns of the frozen parameters of a run.

    Args:
        chosen: `training.frozen`; None for the default.
        pretrained: whether weights are loaded.
        patterns: of the kind of model.
    """
    if chosen is None:
        chosen = patterns.pretrained if pretrained else ()
    return (*patterns.always, *chosen)


def partition(weights: Weights, frozen: Sequence[str]) -> tuple[Weights, Weights]:
    """Split weights into those that train and those that are frozen.

    Raises:
        UserError: a pattern without a matching parameter, or nothing left to train.
    """
    for pattern in frozen:
        if not any(re.search(pattern, path) for path in weights):
            raise UserError(f"training.frozen: no parameter matches '{pattern}'; correct it or leave it out")
    matched = {path for path in weights if any(re.search(pattern, path) for pattern in frozen)}
    if len(matched) == len(weights):
        raise UserError("training.frozen: it leaves nothing to train; freeze fewer parameters")
    trained = {path: value for path, value in weights.items() if path not in matched}
    return trained, {path: weights[path] for path in sorted(matched)}


def paths_by_module(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return parameter paths by top-level module: `memory_attention`, `boundary`, ..."""
    modules: dict[str, list[str]] = {}
    for path in sorted(paths):
        modules.setdefault(path.split(".")[0], []).append(path)
    return modules


def rate_factors(weights: Weights, rules: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return the learning-rate factor of each parameter: of the first rule that matches its path, else 1.

    Raises:
        UserError: a rule without a matching parameter.
    """
    for pattern, _ in rules:
        if not any(re.search(pattern, path) for path in weights):
            raise UserError(f"training.part_learning_rates: no trained parameter matches '{pattern}'; correct it")
    return {path: next((f for pattern, f in rules if re.search(pattern, path)), 1.0) for path in weights}
