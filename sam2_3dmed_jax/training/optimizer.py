"""AdamW with warm-up and cosine, per-part learning rates, and small parameters packed into a few vectors.

A model has hundreds of small parameters. Updated one by one they are more than half of the train step's program,
in compile time and in kernel launches; packed, a few vector operations. Large ones stay apart, to be sharded.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import TrainingConfig
from sam2_3dmed_jax.sam2.parameters import Weights
from sam2_3dmed_jax.training.parameter_groups import rate_factors
from sam2_3dmed_jax.training.sharding import SMALL, weight_shardings

# Far above rounding and far below gradients: a softmax does not see its keys' bias, whose gradient is rounding alone
# (1e-10), and which an epsilon of 1e-8 would let walk apart on other meshes.
EPSILON = 1e-7


def learning_rate(config: TrainingConfig) -> optax.Schedule:
    """Linear warm-up, then cosine to a hundredth of the peak."""
    warmup = min(config.warmup_steps, config.steps)
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(config.steps, warmup + 1), config.learning_rate / 100
    )


@dataclass(frozen=True)
class Group:
    """Parameters that are updated as one array; they share learning-rate factor and weight decay."""

    paths: tuple[str, ...]
    factor: float
    decays: bool


class Optimizer:
    """AdamW over the groups of a set of weights. Pure: it holds structure, never values."""

    def __init__(self, config: TrainingConfig, weights: Weights):
        factors = rate_factors(weights, config.part_learning_rates)
        packed: dict[tuple[float, bool], list[str]] = {}
        self.groups: dict[str, Group] = {}
        for path, value in sorted(
            weights.items()
        ):  # a checkpoint's packed moments must not depend on who made the dict
            kind = (factors[path], path.endswith("kernel"))  # vectors, embeddings and norms do not decay
            if value.size < SMALL:
                packed.setdefault(kind, []).append(path)
            else:
                self.groups[path] = Group((path,), *kind)
        for (factor, decays), paths in packed.items():
            name = f"packed: rate x {factor:g}, {'with' if decays else 'without'} decay"
            self.groups[name] = Group(tuple(paths), factor, decays)
        self._update = optax.chain(
            optax.clip_by_global_norm(config.gradient_clip),
            optax.scale_by_adam(b1=0.9, b2=0.95, eps=EPSILON),
            optax.add_decayed_weights(config.weight_decay, mask={n: g.decays for n, g in self.groups.items()}),
            optax.stateless(lambda updates, _: {n: u * self.groups[n].factor for n, u in updates.items()}),
            optax.scale_by_learning_rate(learning_rate(config)),
        )

    def init(self, weights: Weights) -> optax.OptState:
        """The state for these weights: two moments each, and the step count."""
        return self._update.init(self._pack(weights))

    def apply(self, gradients: Weights, state: optax.OptState, weights: Weights) -> tuple[Weights, optax.OptState]:
        """One update; returns new weights and state."""
        old = self._pack(weights)
        updates, state = self._update.update(self._pack(gradients), state, old)
        return self._unpack(optax.apply_updates(old, updates), weights), state

    def shardings(self, weights: Weights, mesh: Mesh) -> optax.OptState:
        """Where the state lives: moments of large parameters like these, all else everywhere."""
        everywhere = NamedSharding(mesh, P())
        large = weight_shardings(mesh, weights)
        like = {name: large.get(name, everywhere) for name in self.groups}
        return optax.tree_map_params(
            self._update,
            lambda _, sharding: sharding,
            jax.eval_shape(self.init, weights),
            like,
            transform_non_params=lambda _: everywhere,
        )

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
    """One vector, behind a barrier: fused into what reads it, XLA finds each number's array by hundreds of branches."""
    return jax.lax.optimization_barrier(jnp.concatenate([array.reshape(-1) for array in arrays]))
