"""The programs of an exported model, as functions from named arrays to named arrays.

`encode`, `prompt` and `propagate` are the programs of `inference/` for one object that is prompted on one slice by
points or a box; `context` exists for a model with a slice context (SRPP), and `remember` for one with another memory
rule than `recent`, whose rings `run.py` fills itself. `run.py` combines them. Corrections, mask prompts and several
objects per call are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.inference.compiled_programs import (
    PropagationSteps,
    propagate_block,
    propagate_slice,
    remember_slice,
    segment_first_prompt,
)
from sam2_3dmed_jax.inference.feature_store import encode_block, slice_context, slice_position_of
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank, RecentMemories
from sam2_3dmed_jax.sam2.memory_selection import memory_confidence, memory_rule
from sam2_3dmed_jax.sam2.model import SAM2, SliceFeatures
from sam2_3dmed_jax.sam2.parameters import Weights, merge, split
from sam2_3dmed_jax.sam2.prompt_encoder import NOT_A_POINT, PromptTokens

POINTS = 8  # points of a prompt, of which a box takes two; label -1 marks an unused one

REMEMBERED = ("memory", "pointer", "predicted_iou", "object_score_logits")  # results of a slice that `remember` takes

Arrays = Mapping[str, jax.Array]
Length = Any  # of an axis: an int, or a symbolic dimension of `jax.export`


@dataclass(frozen=True)
class Program:
    """A function of weights and named arrays to named arrays, and the shapes and dtypes of its inputs."""

    function: Callable[[Weights, Arrays], dict[str, jax.Array]]
    inputs: dict[str, jax.ShapeDtypeStruct]


def programs_of(model: SAM2, depth: Length, steps: Length | None) -> dict[str, Program]:
    """Return the programs of a model by name.

    Args:
        model: SAM2 or SAM2With3DMed.
        depth: D, slices that `context` takes; the last ones may be padding.
        steps: T, slices that `propagate` takes in one `lax.scan`; slices with the index -1 are padding. None: one
            slice, without a loop.
    """
    graphdef, _ = split(model)
    config = model.config
    position = slice_position_of(model)

    def encode(weights: Weights, x: Arrays) -> dict[str, jax.Array]:
        features, embedded = encode_block(graphdef, weights, x["images"])
        return features._asdict() | ({"position": embedded} if position else {})

    def context(weights: Weights, x: Arrays) -> dict[str, jax.Array]:
        return {"context": slice_context(graphdef, weights, x["position"], x["depth"])}

    def prompt(weights: Weights, x: Arrays) -> dict[str, jax.Array]:
        features, slice_contexts = _features(config, x)
        prompts = _prompt_tokens(x["points"], x["labels"])
        return segment_first_prompt(merge(graphdef, weights), features, slice_contexts, prompts, True)._asdict()

    def remember(weights: Weights, x: Arrays) -> dict[str, jax.Array]:
        confidence = memory_confidence(x["predicted_iou"], x["object_score_logits"])
        written = jnp.ones(1, bool)
        return _bank_arrays(
            remember_slice(_bank(config, x), x["slice_index"], written, x["memory"], x["pointer"], confidence)
        )

    def propagate(weights: Weights, x: Arrays) -> dict[str, jax.Array]:
        bank = _bank(config, x)
        step = PropagationSteps(*_features(config, x), x["slice_index"], x["slice_index"] >= 0)
        if steps is None:
            return propagate_slice(merge(graphdef, weights), bank, step, x["direction"], x["depth"])._asdict()
        one_row = jax.tree.map(lambda array: array[:, None], step)
        _, results = propagate_block(graphdef, weights, bank, one_row, x["direction"], x["depth"])
        return {name: array[:, 0] for name, array in results._asdict().items()}

    def array(*shape: Length, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]

    def feature_shapes(slices: Length) -> dict[str, jax.ShapeDtypeStruct]:
        side, c, dtype = config.image_size // 16, config.d_model, config.compute_dtype
        shapes = {
            "embedding": array(slices, side, side, c, dtype=dtype),
            "stride8": array(slices, 2 * side, 2 * side, c // 4, dtype=dtype),
            "stride4": array(slices, 4 * side, 4 * side, c // 8, dtype=dtype),
        }
        return shapes | ({"context": array(slices, c)} if position else {})

    number = array(dtype=jnp.int32)
    length = 1 if steps is None else steps
    bank_shapes = jax.eval_shape(lambda: _bank_arrays(MemoryBank.empty(config, 1, 1, config.compute_dtype)))
    programs = {
        "encode": Program(encode, {"images": array(1, config.image_size, config.image_size, 3)}),
        "prompt": Program(
            prompt,
            {
                **feature_shapes(1),
                "points": array(1, POINTS, 2),
                "labels": array(1, POINTS, dtype=jnp.int32),
            },
        ),
        "propagate": Program(
            propagate,
            {
                **feature_shapes(length),
                **bank_shapes,
                "slice_index": array(length, dtype=jnp.int32),
                "direction": array(1, dtype=jnp.int32),
                "depth": number,
            },
        ),
    }
    if memory_rule(config.memory_selection).ranked:
        stored = jax.eval_shape(prompt, split(model)[1], programs["prompt"].inputs)
        result = {name: array(*stored[name].shape, dtype=stored[name].dtype) for name in REMEMBERED}
        programs["remember"] = Program(remember, {**bank_shapes, **result, "slice_index": array(1, dtype=jnp.int32)})
    if position:
        programs["context"] = Program(context, {"position": array(depth, position.config.dim), "depth": number})
    return programs


def _features(config: Sam2Config, x: Arrays) -> tuple[SliceFeatures, jax.Array]:
    """Return the features of named arrays, and their slice context, which is zero for a model without one."""
    features = SliceFeatures(x["embedding"], x["stride8"], x["stride4"])
    return features, x.get("context", jnp.zeros((x["embedding"].shape[0], config.d_model)))


def _prompt_tokens(points: jax.Array, labels: jax.Array) -> PromptTokens:
    """Return the tokens of `points [1, POINTS, 2]`, as `inference.prompt_tokens.prompt_tokens` does."""
    used = (labels >= 0).sum(axis=1)
    labels = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=NOT_A_POINT)
    valid = jnp.arange(POINTS + 1)[None] <= used[:, None]
    return PromptTokens(jnp.pad(points, ((0, 0), (0, 1), (0, 0))), labels, valid, multimask=used <= 1)


def _bank(config: Sam2Config, x: Arrays) -> MemoryBank:
    recent = RecentMemories(
        x["recent_memory"],
        x["recent_memory_slice"],
        x["recent_pointer"],
        x["recent_pointer_slice"],
        x.get("recent_memory_score"),
        config.memory_selection,
    )
    return MemoryBank(x["prompted_memory"], x["prompted_pointer"], x["prompted_slice"], recent)


def _bank_arrays(bank: MemoryBank) -> dict[str, jax.Array]:
    score = bank.recent.memory_score
    return {
        "prompted_memory": bank.prompted_memory,
        "prompted_pointer": bank.prompted_pointer,
        "prompted_slice": bank.prompted_slice,
        "recent_memory": bank.recent.memory,
        "recent_memory_slice": bank.recent.memory_slice,
        "recent_pointer": bank.recent.pointer,
        "recent_pointer_slice": bank.recent.pointer_slice,
        **({} if score is None else {"recent_memory_score": score}),
    }
