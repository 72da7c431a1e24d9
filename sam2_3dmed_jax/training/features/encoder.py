"""The frozen encoder alone: its weights on the host, and the encoding of slices on this process's devices."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.runtime.imagenet import normalise
from sam2_3dmed_jax.sam2.model import SliceFeatures
from sam2_3dmed_jax.sam2.parameters import Weights, digest, merge
from sam2_3dmed_jax.sam2.presets import preset_config

SLICES_PER_DEVICE = 4  # encoded at once; with the large trunk at 1024 pixels they take 2 GB in bfloat16


def feature_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each field of the `SliceFeatures` of one slice."""
    sam2 = preset_config(config.preset, config.image_size)
    side, c = sam2.image_size // 16, sam2.d_model
    return {
        "embedding": (side, side, c),
        "stride8": (2 * side, 2 * side, c // 4),
        "stride4": (4 * side, 4 * side, c // 8),
    }


class FrozenEncoder:
    """The encoder of a run that trains from cached features."""

    def __init__(self, config: ModelConfig, weights: Weights):
        """`weights` match `parameter_groups.ENCODER`; they are kept on the host."""
        self.config = config
        self.weights: dict[str, Any] = jax.device_get(weights)
        self.shapes = feature_shapes(config)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the weights, by path."""
        return digest(self.weights)

    def start(self, devices: Sequence[jax.Device]) -> Encoding:
        """Put the weights on devices, where they stay as long as the result exists."""
        return Encoding(self, devices)


class Encoding:
    """The encoder on devices. Each device holds all weights and encodes its share of the slices."""

    def __init__(self, encoder: FrozenEncoder, devices: Sequence[jax.Device]):
        mesh = Mesh(np.array(devices), ("data",))
        self._split = NamedSharding(mesh, P("data"))
        self._weights = jax.device_put(encoder.weights, NamedSharding(mesh, P()))
        self.block = SLICES_PER_DEVICE * len(devices)  # maximum number of slices per call
        graphdef, abstract = abstract_model(encoder.config)

        def encode(weights: Weights, slices: jax.Array) -> SliceFeatures:
            model = merge(graphdef, {**abstract, **weights})  # type: ignore[dict-item]  # the other weights are not used
            return jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.encode_image(normalise(slices)))

        self._encode = jax.jit(encode, out_shardings=self._split)

    def __call__(self, blocks: Iterable[np.ndarray]) -> Iterator[SliceFeatures]:
        """Encode blocks of slices, float32 `[n, S, S]` in [0, 1], n at most `block`; one block ahead of the reader.

        Yields:
            Features of each block, bfloat16 on the host, with leading axis n.
        """
        ahead: tuple[SliceFeatures, int] | None = None
        for slices in blocks:
            full = np.zeros((self.block, *slices.shape[1:]), np.float32)
            full[: len(slices)] = slices
            following = self._encode(self._weights, jax.device_put(full, self._split)), len(slices)
            if ahead is not None:
                yield _on_host(*ahead)
            ahead = following
        if ahead is not None:
            yield _on_host(*ahead)


def _on_host(features: SliceFeatures, count: int) -> SliceFeatures:
    return jax.tree.map(lambda x: x[:count], jax.device_get(features))
