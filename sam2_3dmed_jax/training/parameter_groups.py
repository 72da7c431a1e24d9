"""Tables of patterns on parameter paths: what is frozen, and what learns at another rate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.sam2.parameters import Weights

# With loaded weights the encoders keep what they learned; the random Fourier matrix is a constant, always.
FROZEN_ALWAYS = (r"positional_encoding_gaussian_matrix$",)
ENCODER = (r"^image_encoder\.", r"^sam_mask_decoder\.conv_s[01]\.")  # what makes features of a slice
FROZEN_PRETRAINED = (*ENCODER, r"^sam_prompt_encoder\.")


def frozen_patterns(
    chosen: Sequence[str] | None,
    pretrained: bool,
    default: tuple[tuple[str, ...], tuple[str, ...]] = (FROZEN_ALWAYS, FROZEN_PRETRAINED),
) -> tuple[str, ...]:
    """The patterns of frozen parameters: those of `training.frozen`, or the default.

    `default` has those that are always frozen, and those that are with loaded weights.
    """
    if chosen is None:
        chosen = default[1] if pretrained else ()
    return (*default[0], *chosen)


def partition(weights: Weights, frozen: Sequence[str]) -> tuple[Weights, Weights]:
    """Split weights into those that train and those that do not.

    Raises:
        UserError: a pattern that no parameter matches, or nothing left to train.
    """
    for pattern in frozen:
        if not any(re.search(pattern, path) for path in weights):
            raise UserError(f"training.frozen: no parameter matches '{pattern}'; correct it or leave it out")
    still = {path for path in weights if any(re.search(pattern, path) for pattern in frozen)}
    if len(still) == len(weights):
        raise UserError("training.frozen: it leaves nothing to train; name fewer parts")
    trained = {path: value for path, value in weights.items() if path not in still}
    return trained, {path: weights[path] for path in sorted(still)}


def by_part(paths: Iterable[str]) -> dict[str, list[str]]:
    """Parameter paths by the top-level module that they belong to: `memory_attention`, `boundary`, ..."""
    parts: dict[str, list[str]] = {}
    for path in sorted(paths):
        parts.setdefault(path.split(".")[0], []).append(path)
    return parts


def rate_factors(weights: Weights, rules: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The learning-rate factor of each parameter: of the first rule that matches its path, else 1.

    Raises:
        UserError: a rule that no parameter matches.
    """
    for pattern, _ in rules:
        if not any(re.search(pattern, path) for path in weights):
            raise UserError(f"training.part_learning_rates: no trained parameter matches '{pattern}'; correct it")
    return {path: next((f for pattern, f in rules if re.search(pattern, path)), 1.0) for path in weights}
