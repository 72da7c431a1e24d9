"""Parameter groups by patterns on parameter paths: what is frozen, and what has another learning rate."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from sam2_3dmed_jax.config import AnyModelConfig, HieraConfig, ModelConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.sam2.parameters import Weights
from sam2_3dmed_jax.sam2.presets import preset_config

FROZEN_ALWAYS = (r"positional_encoding_gaussian_matrix$",)  # the random Fourier matrix is a constant
ENCODER = (r"^image_encoder\.", r"^sam_mask_decoder\.conv_s[01]\.")  # computes the features of a slice
FROZEN_PRETRAINED = (*ENCODER, r"^sam_prompt_encoder\.")  # both encoders keep what they have learned
FROZEN_ADAPTED = (r"^(?!(slice_position|boundary)\.)",)  # adapters change SAM 2; SRPP and BD are trained from scratch
TRUNK = "image_encoder.trunk."
TRUNK_BLOCK = re.compile(r"^image_encoder\.trunk\.blocks\.(\d+)\.")
NECK_CONVOLUTION = re.compile(r"^image_encoder\.neck\.convs\.(\d+)\.")


class FrozenPatterns(NamedTuple):
    """Patterns of the parameters of a kind of model that do not train."""

    always: tuple[str, ...]
    pretrained: tuple[str, ...]  # with loaded weights, unless `training.frozen` is set
    adapted: tuple[str, ...] = ()  # with adapters, unless `training.frozen` is set


SAM2_FROZEN = FrozenPatterns(FROZEN_ALWAYS, FROZEN_PRETRAINED, FROZEN_ADAPTED)


def frozen_patterns(
    chosen: Sequence[str] | None,
    pretrained: bool,
    patterns: FrozenPatterns = SAM2_FROZEN,
    adapted: bool = False,
) -> tuple[str, ...]:
    """Return the patterns of the frozen parameters of a run.

    Args:
        chosen: `training.frozen`; None for the default.
        pretrained: whether weights are loaded.
        patterns: of the kind of model.
        adapted: whether the loaded weights have adapters.
    """
    if chosen is None:
        chosen = patterns.adapted if adapted else patterns.pretrained if pretrained else ()
    return (*patterns.always, *chosen)


def partition(weights: Weights, frozen: Sequence[str], trained: Collection[str] = ()) -> tuple[Weights, Weights]:
    """Split weights into those that train and those that are frozen.

    Args:
        weights: by path.
        frozen: patterns of the frozen ones.
        trained: paths that train although a pattern matches them.

    Raises:
        UserError: a pattern without a matching parameter, or nothing left to train.
    """
    for pattern in frozen:
        if not any(re.search(pattern, path) for path in weights):
            raise UserError(f"training.frozen: no parameter matches '{pattern}'; correct it or leave it out")
    matched = {path for path in weights if path not in trained and any(re.search(pattern, path) for pattern in frozen)}
    if len(matched) == len(weights):
        raise UserError("training.frozen: it leaves nothing to train; freeze fewer parameters")
    kept = {path: value for path, value in weights.items() if path not in matched}
    return kept, {path: weights[path] for path in sorted(matched)}


def trunk_blocks(model: AnyModelConfig) -> int:
    """Return the number of blocks of a model's trunk; 0 for a U-Net, which has none."""
    return sum(preset_config(model.preset).trunk.stages) if isinstance(model, ModelConfig) else 0


def stage_paths(paths: Iterable[str], trunk: HieraConfig, stages: int) -> set[str]:
    """Return the parameters of the last stages of the trunk, with the convolution of each in the neck.

    Args:
        paths: of all parameters.
        trunk: the trunk.
        stages: number of stages (`training.unfreeze_stages`).

    Raises:
        UserError: the trunk has fewer stages.
    """
    if not 0 <= stages <= len(trunk.stages):
        raise UserError(
            f"training.unfreeze_stages: {stages} is not a number of stages of the trunk; give 0 to {len(trunk.stages)}"
        )
    first = sum(trunk.stages[: len(trunk.stages) - stages])
    chosen = set()
    for path in paths:
        block, convolution = TRUNK_BLOCK.search(path), NECK_CONVOLUTION.search(path)
        # The neck's convolutions are numbered from the last stage.
        if (block and int(block[1]) >= first) or (convolution and int(convolution[1]) < stages):
            chosen.add(path)
    return chosen


def paths_by_module(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return parameter paths by top-level module: `memory_attention`, `boundary`, ..."""
    modules: dict[str, list[str]] = {}
    for path in sorted(paths):
        modules.setdefault(path.split(".")[0], []).append(path)
    return modules


def rate_factors(
    weights: Weights, rules: Sequence[tuple[str, float]], layer_decay: float = 1.0, blocks: int = 0
) -> dict[str, float]:
    """Return the learning-rate factor of each parameter: of the first rule that matches its path, else 1.

    In the trunk it is multiplied by `layer_decay` to the power of the distance from the trunk's end: 1 for the last
    block, `blocks` for the first one and one more for the embeddings, as in BEiT (Bao et al. 2022). SAM 2's training
    does the same, except that its position embeddings do not decay.

    Args:
        weights: that train.
        rules: `training.part_learning_rates`.
        layer_decay: `training.layer_decay`.
        blocks: number of blocks of the trunk.

    Raises:
        UserError: a rule without a matching parameter, or a decay that is not in (0, 1] or has no parameter.
    """
    for pattern, _ in rules:
        if not any(re.search(pattern, path) for path in weights):
            raise UserError(f"training.part_learning_rates: no trained parameter matches '{pattern}'; correct it")
    factors = {path: next((f for pattern, f in rules if re.search(pattern, path)), 1.0) for path in weights}
    if layer_decay == 1:
        return factors
    if not 0 < layer_decay < 1:
        raise UserError(f"training.layer_decay: {layer_decay:g} is not a factor; give more than 0 and at most 1")
    if not any(path.startswith(TRUNK) for path in weights):
        raise UserError(
            "training.layer_decay: no parameter of the trunk trains; leave it out, or set training.lora.rank, "
            "training.unfreeze_stages or training.frozen"
        )
    for path in factors:
        if path.startswith(TRUNK):
            block = TRUNK_BLOCK.search(path)
            factors[path] *= layer_decay ** (blocks - (int(block[1]) if block else -1))
    return factors
