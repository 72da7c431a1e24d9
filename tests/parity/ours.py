"""Our model, from a converted checkpoint, asked the same as the references.

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
from sam2_3dmed_jax.sam2.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, Prompts
from tests.parity.scenarios import Ask, Scenario, Tracked
from tests.parity.stages import Stages, stage_inputs


def load(checkpoint: Path, size: int, compute_dtype: Literal["float32", "bfloat16"] = "float32") -> SAM2:
    """Load a native checkpoint with the reference's memory format."""
    info = read_info(checkpoint)
    config = replace(preset_config(info.model.preset, size), store_memory_bfloat16=True, compute_dtype=compute_dtype)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: SAM2(config)))
    return merge(graphdef, load_weights(checkpoint, info.model))


class Video:
    """Slices that are encoded once for all scenarios, as on the reference's side."""

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
    """Every stage on its own, named as the references name them."""
    # One stage on its own: rounding to bfloat16 would hide what the memory encoder computes.
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: SAM2(replace(model.config, store_memory_bfloat16=False))))
    weights = split(model)[1]
    given = stage_inputs(model.config.image_size, seed)
    return jax.device_get(_stages(graphdef, weights, given))


@partial(jax.jit, static_argnums=0)
def _stages(graphdef: nnx.GraphDef, weights: Weights, given: dict[str, jax.Array]) -> dict[str, jax.Array]:
    model: SAM2 = merge(graphdef, weights)
    side = model.config.image_size // 16
    trunk, neck = model.image_encoder.trunk, model.image_encoder.neck
    prompt = model.sam_prompt_encoder

    patches = trunk.patch_embed["proj"](given["images"])
    hiera = trunk(given["images"])
    out = {"patch embedding": patches, "position": trunk.position(*patches.shape[1:3])}
    out |= {f"Hiera stage {i + 1}": feature for i, feature in enumerate(hiera)}
    out |= {f"neck stride {stride}": x for stride, x in zip((4, 8, 16), neck(hiera), strict=True)}

    # A prompted object has one "not a point" after its points; a bare box has none.
    coords = jnp.pad(given["coords"], ((0, 0), (0, 1), (0, 0)))
    labels = jnp.pad(given["labels"], ((0, 0), (0, 1)), constant_values=NOT_A_POINT)
    corners = jnp.broadcast_to(jnp.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]), (len(coords), 2))
    out["prompt points"] = prompt.embed_points(coords, labels)
    out["prompt box"] = prompt.embed_points(given["box"].reshape(-1, 2, 2), corners)
    out["prompt mask"] = prompt.embed_masks(given["mask"])
    out["prompt image position"] = prompt.image_position(side, side)

    everything = jnp.ones(labels.shape, bool)
    some = jnp.ones(len(coords), bool)
    prompts = Prompts(coords, labels, everything, some, given["mask"], some)
    features = SliceFeatures(given["embedding"], given["stride8"], given["stride4"])
    decoded = model.candidates(given["embedding"], features, prompts)
    out |= {"decoder masks": decoded.logits, "decoder ious": decoded.ious, "decoder tokens": decoded.tokens}
    out |= {"decoder score": decoded.object_score_logits, "object pointer": model.obj_ptr_proj(decoded.tokens[:, 0])}

    for name, binarise in (("soft", False), ("binarised", True)):
        memory = model.encode_memory(given["embedding"], given["mask"], given["score"], binarise=binarise)
        out[f"memory encoder {name}"] = memory.reshape(len(memory), side, side, -1)
    out["memory position"] = jnp.asarray(sine_position(side, side, model.config.mem_dim))

    # An empty memory slot with loud contents stands between the memories and the pointers; it has to be ignored.
    spatial, pointers = given["memory"], given["pointers"]
    cells, empty = side * side, 100 * given["memory"][:, : side * side]
    tokens = jnp.concatenate([spatial, empty, pointers], axis=1)
    at = spatial.shape[1]
    position = jnp.concatenate([given["memory position"][:, :at], empty, given["memory position"][:, at:]], axis=1)
    valid = (jnp.arange(tokens.shape[1]) < at) | (jnp.arange(tokens.shape[1]) >= at + cells)
    memory_tokens = MemoryTokens(
        tokens, position, jnp.broadcast_to(valid, tokens.shape[:2]), pointers=pointers.shape[1]
    )
    out["memory attention"] = model.condition_on_memory(given["embedding"], memory_tokens)
    return out
