"""AdamW with learning-rate schedules and parameter groups; small parameters are packed into a few vectors.

A model has hundreds of small parameters. If each were updated separately, the updates would be more than half of the
train step's compile time and kernel launches; packed, they are a few vector operations. Large parameters are not
packed, so that they can be sharded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import TrainingConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.sam2.parameters import Weights
from sam2_3dmed_jax.training.parameter_groups import rate_factors
from sam2_3dmed_jax.training.sharding import SMALL, weight_shardings

# Far above rounding errors and far below gradients. The gradient of the bias of attention keys is rounding error alone
# (1e-10), because a softmax does not depend on it; with an epsilon of 1e-8 it would differ between meshes.
EPSILON = 1e-7


def warmup_cosine(config: TrainingConfig) -> optax.Schedule:
    """Return linear warm-up, then cosine decay to `learning_rate_floor` of the peak."""
    warmup = min(config.warmup_steps, config.steps)
    floor = config.learning_rate * config.learning_rate_floor
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(config.steps, warmup + 1), floor)


# The values of `training.learning_rate_schedule`.
SCHEDULES: dict[str, Callable[[TrainingConfig], optax.Schedule]] = {"warmup_cosine": warmup_cosine}


def learning_rate(config: TrainingConfig) -> optax.Schedule:
    """Return the learning rate by step.

    Raises:
        UserError: an unknown schedule.
    """
    if config.learning_rate_schedule not in SCHEDULES:
        raise UserError(
            f"training.learning_rate_schedule: {config.learning_rate_schedule} does not exist; choose from "
            f"{', '.join(SCHEDULES)}"
        )
    return SCHEDULES[config.learning_rate_schedule](config)


@dataclass(frozen=True)
class Group:
    """Parameters that are updated as one array, with the same learning-rate factor and weight decay."""

    paths: tuple[str, ...]
    factor: float
    decays: bool


class Optimizer:
    """AdamW over the groups of a set of weights. Its methods are pure functions; it stores no arrays."""

    def __init__(self, config: TrainingConfig, weights: Weights, trunk_blocks: int = 0):
        factors = rate_factors(weights, config.part_learning_rates, config.layer_decay, trunk_blocks)
        packed: dict[tuple[float, bool], list[str]] = {}
        self.groups: dict[str, Group] = {}
        # Sorted, because the packed moments of a checkpoint must not depend on the order of the weights.
        for path, value in sorted(weights.items()):
            kind = (factors[path], path.endswith("kernel"))  # vectors, embeddings and norms do not decay
            if value.size < SMALL:
                packed.setdefault(kind, []).append(path)
            else:
                self.groups[path] = Group((path,), *kind)
        for (factor, decays), paths in packed.items():
            number = repr(factor).removesuffix(".0")  # all digits, because names of different factors must differ
            name = f"packed: rate x {number}, {'with' if decays else 'without'} decay"
            self.groups[name] = Group(tuple(paths), factor, decays)
        self._update = optax.chain(
            optax.clip_by_global_norm(config.gradient_clip),
            optax.scale_by_adam(*config.adam_betas, eps=EPSILON),
            optax.stateless(functools.partial(self._add_decay, config.weight_decay)),
            optax.stateless(lambda updates, _: {n: u * self.groups[n].factor for n, u in updates.items()}),
            optax.scale_by_learning_rate(learning_rate(config)),
        )

    def init(self, weights: Weights) -> optax.OptState:
        """Return the state for these weights: two moments each, and the step count."""
        return self._update.init(self._pack(weights))

    def apply(self, gradients: Weights, state: optax.OptState, weights: Weights) -> tuple[Weights, optax.OptState]:
        """Return the updated weights and state."""
        old = self._pack(weights)
        updates, state = self._update.update(self._pack(gradients), state, old)
        return self._unpack(optax.apply_updates(old, updates), weights), state

    def shardings(self, weights: Weights, mesh: Mesh) -> optax.OptState:
        """Return the shardings of the state: moments like their large parameters, everything else replicated."""
        replicated = NamedSharding(mesh, P())
        large = weight_shardings(mesh, weights)
        like = {name: large.get(name, replicated) for name in self.groups}
        return optax.tree_map_params(
            self._update,
            lambda _, sharding: sharding,
            jax.eval_shape(self.init, weights),
            like,
            transform_non_params=lambda _: replicated,
        )

    def _add_decay(self, rate: float, updates: Weights, weights: Weights | None) -> Weights:
        """Add the weight decay of AdamW, only to numbers that have ever had a gradient.

        Without a gradient, Adam's update is exactly zero. Decay alone would shrink such parameters towards zero: the
        head of a loss whose weight is 0, or the embedding of a kind of prompt that never occurs.
        """
        assert weights is not None
        return {
            name: update + rate * jnp.where(update != 0, weights[name], 0) if self.groups[name].decays else update
            for name, update in updates.items()
        }

    def _pack(self, weights: Weights) -> Weights:
        return {
            name: weights[name] if name in weights else _joined([weights[path] for path in group.paths])
            for name, group in self.groups.items()
        }

    def _unpack(self, packed: Weights, like: Weights) -> Weights:
        weights = {}
        for name, group in self.groups.items():
            if name in like:
                weights[name] = packed[name]
                continue
            start = 0
            for path in group.paths:
                size = like[path].size
                weights[path] = packed[name][start : start + size].reshape(like[path].shape)
                start += size
        return {path: weights[path] for path in like}


def _joined(arrays: list[jax.Array]) -> jax.Array:
    """Return one vector. The barrier keeps XLA from fusing it into its reader, with hundreds of branches per number."""
    return jax.lax.optimization_barrier(jnp.concatenate([array.reshape(-1) for array in arrays]))
