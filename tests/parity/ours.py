"""Our model from a converted checkpoint, with the interface of the references.

Memories are stored in bfloat16, as the reference does even in float32 runs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sam2_3dmed_jax.inference.predictor import Session, VolumePredictor
from sam2_3dmed_jax.model.checkpoint import load_weights, read_info
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.sam2.memory_attention import MemoryTokens
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures
from sam2_3dmed_jax.sam2.parameters import Weights, merge, split
from sam2_3dmed_jax.sam2.position_encoding import sine_position
from sam2_3dmed_jax.sam2.presets import preset_config
from sam2_3dmed_jax.sam2.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, PromptTokens
from tests.parity.scenarios import Ask, Scenario, Tracked
from tests.parity.stages import Stages, stage_inputs


def load(checkpoint: Path, size: int, compute_dtype: Literal["float32", "bfloat16"] = "float32") -> SAM2:
    """Load a native checkpoint with the reference's memory format."""
    info = read_info(checkpoint)
    config = replace(preset_config(info.model.preset, size), store_memory_bfloat16=True, compute_dtype=compute_dtype)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: SAM2(config)))
    return merge(graphdef, load_weights(checkpoint, info.model))


class Video:
    """Slices that are encoded once for all scenarios, as in the reference."""

    def __init__(self, model: SAM2, slices: np.ndarray, postprocessing: bool = True):
        self._predictor = VolumePredictor(model, postprocessing=postprocessing)
        self._slices = slices
        self._encoded: Session | None = None
        self._size = model.config.image_size

    def track(self, scenario: Scenario) -> Tracked:
        """Run the rounds of a scenario in one session."""
        if self._encoded is None:
            self._encoded = self._predictor.start(self._slices)
        session = self._encoded
        session.reset()
        logits, scores = [], []
        for prompts in scenario:
            session.add([_prompt(ask, self._size) for ask in prompts])
            result = session.result()
            logits.append(result.mask_logits.copy())
            scores.append(result.object_score_logits.copy())
        return Tracked(np.stack(logits), np.stack(scores))


def _prompt(ask: Ask, size: int) -> Prompt:
    return Prompt(ask.object_id, ask.slice, ask.coords(size), ask.labels(), ask.corners(size), ask.pixels(size))


def stages(model: SAM2, seed: int) -> Stages:
    """Return every stage on its own, with the names of the references."""
    # Rounding to bfloat16 would hide the result of the memory encoder.
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: SAM2(replace(model.config, store_memory_bfloat16=False))))
    weights = split(model)[1]
    inputs = stage_inputs(model.config.image_size, seed)
    return jax.device_get(_stages(graphdef, weights, inputs))


@partial(jax.jit, static_argnums=0)
def _stages(graphdef: nnx.GraphDef, weights: Weights, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    model: SAM2 = merge(graphdef, weights)
    side = model.config.image_size // 16
    trunk, neck = model.image_encoder.trunk, model.image_encoder.neck
    prompt = model.sam_prompt_encoder

    patches = trunk.patch_embed["proj"](inputs["images"])
    hiera = trunk(inputs["images"])
    out = {"patch embedding": patches, "position": trunk.position_embedding(*patches.shape[1:3])}
    out |= {f"Hiera stage {i + 1}": feature for i, feature in enumerate(hiera)}
    out |= {f"neck stride {stride}": x for stride, x in zip((4, 8, 16), neck(hiera), strict=True)}

    # A prompted object has one "not a point" after its points; a box alone has none.
    coords = jnp.pad(inputs["coords"], ((0, 0), (0, 1), (0, 0)))
    labels = jnp.pad(inputs["labels"], ((0, 0), (0, 1)), constant_values=NOT_A_POINT)
    corners = jnp.broadcast_to(jnp.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]), (len(coords), 2))
    out["prompt points"] = prompt.embed_points(coords, labels)
    out["prompt box"] = prompt.embed_points(inputs["box"].reshape(-1, 2, 2), corners)
    out["prompt mask"] = prompt.embed_masks(inputs["mask"])
    out["prompt image position"] = prompt.image_position_encoding(side, side)

    all_tokens = jnp.ones(labels.shape, bool)
    all_objects = jnp.ones(len(coords), bool)
    prompts = PromptTokens(coords, labels, all_tokens, all_objects, inputs["mask"], all_objects)
    features = SliceFeatures(inputs["embedding"], inputs["stride8"], inputs["stride4"])
    decoded = model.candidates(inputs["embedding"], features, prompts)
    out |= {"decoder masks": decoded.logits, "decoder ious": decoded.ious, "decoder tokens": decoded.tokens}
    out |= {"decoder score": decoded.object_score_logits, "object pointer": model.obj_ptr_proj(decoded.tokens[:, 0])}

    for name, binarise in (("soft", False), ("binarised", True)):
        memory = model.encode_memory(inputs["embedding"], inputs["mask"], inputs["score"], binarise=binarise)
        out[f"memory encoder {name}"] = memory.reshape(len(memory), side, side, -1)
    out["memory position"] = jnp.asarray(sine_position(side, side, model.config.mem_dim))

    # An empty memory slot with large values is between the memories and the pointers; it must have no effect.
    spatial, pointers = inputs["memory"], inputs["pointers"]
    cells, empty = side * side, 100 * inputs["memory"][:, : side * side]
    tokens = jnp.concatenate([spatial, empty, pointers], axis=1)
    at = spatial.shape[1]
    position = jnp.concatenate([inputs["memory position"][:, :at], empty, inputs["memory position"][:, at:]], axis=1)
    valid = (jnp.arange(tokens.shape[1]) < at) | (jnp.arange(tokens.shape[1]) >= at + cells)
    memory_tokens = MemoryTokens(
        tokens, position, jnp.broadcast_to(valid, tokens.shape[:2]), pointers=pointers.shape[1]
    )
    out["memory attention"] = model.condition_on_memory(inputs["embedding"], memory_tokens)
    return out
