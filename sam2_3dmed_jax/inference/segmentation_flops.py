"""FLOPs of segmenting a volume from prompts, counted in the jaxprs of the programs of a session.

Each slice is encoded once. Each object is decoded on its prompted slices, as from one click, and propagated once to the
other slices (twice between its prompts in the order 'independent'). Padding to blocks of slices and to powers of two of
prompts is not counted, so that the number describes the model and not a machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sam2_3dmed_jax.inference.abstract_arguments import abstract_array, block_arguments
from sam2_3dmed_jax.inference.automatic import AutomaticPredictor, patch_logits
from sam2_3dmed_jax.inference.compiled_programs import SliceResult, propagate_block, segment_first_prompt
from sam2_3dmed_jax.inference.feature_store import BLOCK, encode_block, slice_context, slice_position_of
from sam2_3dmed_jax.inference.padding import next_power_of_two
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.inference.sliding_window import window_starts
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.runtime.jaxpr_flops import flops
from sam2_3dmed_jax.sam2.model import SliceFeatures
from sam2_3dmed_jax.sam2.parameters import merge
from sam2_3dmed_jax.sam2.prompt_encoder import PromptTokens, no_prompts
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.resample import regrid


class SliceFlops(NamedTuple):
    """FLOPs of one slice."""

    encode: int
    segment: int  # of one object, from a prompt
    propagate: int  # of one object, from memory


class SegmentationFlops:
    """FLOPs of the sessions of one predictor; its programs are traced once, and nothing is compiled."""

    def __init__(self, predictor: VolumePredictor) -> None:
        """Take a predictor; a program is traced when its FLOPs are first needed."""
        self._predictor = predictor
        self._weights = jax.tree.map(_shape_of, predictor.weights)
        self._slice_flops = cache(self._trace)

    def __call__(self, sessions: Iterable[tuple[int, Sequence[VoxelPrompt]]]) -> int:
        """Return the FLOPs of all sessions; a multiply-add counts as two.

        Args:
            sessions: the number of slices, and the prompts of all objects, of each session.
        """
        return sum(self._session(depth, prompts) for depth, prompts in sessions if prompts)

    def corrected(self, depth: int, rounds: Sequence[Sequence[VoxelPrompt]]) -> int:
        """Return the FLOPs of a volume that is encoded once and propagated after each round of prompts.

        Args:
            depth: slices of the volume.
            rounds: after each round, all prompts so far. A slice that was prompted before counts as decoded again.
        """
        given = [prompts for prompts in rounds if prompts]
        return sum(self._session(depth, prompts, encoded=number > 0) for number, prompts in enumerate(given))

    def _session(self, depth: int, prompts: Sequence[VoxelPrompt], encoded: bool = False) -> int:
        prompted_slices: dict[int, set[int]] = {}
        for prompt in prompts:
            prompted_slices.setdefault(prompt.object_id, set()).add(prompt.slice)
        per_slice = self._slice_flops(next_power_of_two(max(map(len, prompted_slices.values()))))
        total = 0 if encoded else depth * per_slice.encode
        for prompted in prompted_slices.values():
            propagated = depth - len(prompted)
            if self._predictor.order == "independent":
                propagated += max(prompted) - min(prompted) + 1 - len(prompted)
            total += len(prompted) * per_slice.segment + propagated * per_slice.propagate
        return total

    def _trace(self, prompted: int) -> SliceFlops:
        """Count the FLOPs of one slice, with a memory bank with room for `prompted` prompted slices."""
        predictor, weights = self._predictor, self._weights
        graphdef, config = predictor.graphdef, predictor.model.config
        dtype = jnp.dtype(config.compute_dtype)
        images, propagation = block_arguments(graphdef, weights, config, 1, prompted, dtype)
        encode = flops(encode_block.trace(graphdef, weights, images).jaxpr) // images.shape[0]
        if position := slice_position_of(predictor.model):
            embedded = abstract_array((BLOCK, position.config.dim), jnp.float32)
            encode += flops(slice_context.trace(graphdef, weights, embedded, jnp.int32(BLOCK)).jaxpr) // BLOCK
        _, steps, _, _ = propagation
        features, context = jax.tree.map(
            lambda x: abstract_array(x.shape[1:], x.dtype), (steps.features, steps.context)
        )
        click = jax.eval_shape(lambda: no_prompts(1))

        def first_prompt(weights: Any, features: SliceFeatures, context: jax.Array, click: PromptTokens) -> SliceResult:
            return segment_first_prompt(merge(graphdef, weights), features, context, click, predictor.postprocessing)

        segment = jax.jit(first_prompt).trace(weights, features, context, click)
        propagate = propagate_block.trace(graphdef, weights, *propagation)
        return SliceFlops(encode, flops(segment.jaxpr), flops(propagate.jaxpr) // BLOCK)


def sliding_window_flops(predictor: AutomaticPredictor, volume: Volume) -> int:
    """Return the FLOPs of a U-Net applied by sliding windows to a volume at the spacing of the U-Net."""
    patch = predictor.model.config.patch
    spacing, name = predictor.model.config.spacing, volume.grid.source or "the volume"
    shape = regrid(volume.array.shape, volume.canonical_affine, spacing, name).shape
    windows = math.prod(len(window_starts(max(n, p), p)) for n, p in zip(shape, patch, strict=True))
    weights = jax.tree.map(_shape_of, predictor.weights)
    window = abstract_array((1, *patch), jnp.float32)
    return windows * flops(patch_logits.trace(predictor.graphdef, weights, window).jaxpr)


def _shape_of(array: Any) -> jax.ShapeDtypeStruct:
    return abstract_array(array.shape, array.dtype)
