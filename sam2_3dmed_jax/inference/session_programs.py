"""The compiled programs of a session, as a list: `warm_up` runs each once, so that no prompt waits for the compiler.

They do not depend on the numbers of prompts, objects and slices, up to the sizes of `shape_buckets.py`. Besides them,
each size of slices has a program that resizes them, which compiles in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.inference.block_lengths import lengths_of_blocks
from sam2_3dmed_jax.inference.compiled_programs import (
    PromptedStep,
    PropagationSteps,
    propagate_block,
    remember_slice,
    segment_from_masks,
    segment_from_points,
)
from sam2_3dmed_jax.inference.feature_store import (
    BLOCK,
    encode_block,
    slice_context,
    slice_position_of,
    slices_per_encoding,
)
from sam2_3dmed_jax.inference.host_arrays import HostArrays
from sam2_3dmed_jax.inference.object_state import ObjectState, load_bank
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.inference.prompt_tokens import prompt_tokens
from sam2_3dmed_jax.inference.propagation import DIRECTIONS
from sam2_3dmed_jax.inference.shape_buckets import PROMPTED, object_rows, position_room
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
from sam2_3dmed_jax.sam2.memory_selection import memory_rule
from sam2_3dmed_jax.sam2.model import SliceFeatures

_zeros: Any = np.zeros  # compiled programs take arrays of NumPy where their types say `jax.Array`


class SessionProgram(NamedTuple):
    """A compiled program with the shapes of a session."""

    name: str
    run: Callable[[], object]  # compiles it, if that is not done already, and runs it on empty arrays
    is_first: bool = False  # whether a first click needs it


def warm_up(
    predictor: VolumePredictor, progress: Progress | None = None, block: int = BLOCK, first_only: bool = False
) -> None:
    """Compile the programs of a session, or read them from the persistent cache.

    Programs that an earlier call has compiled for this predictor are left out.

    Args:
        predictor: the model.
        progress: called after each program; if it raises, the others are left out.
        block: slices per block of the sessions, see `predictor.Session`.
        first_only: only the programs that a first click needs.
    """
    programs = [program for program in session_programs(predictor, block) if program.is_first or not first_only]
    for done, program in enumerate(programs, start=1):
        if program.name not in predictor.warm:
            jax.block_until_ready(program.run())  # type: ignore[no-untyped-call]
            predictor.warm.add(program.name)
            if progress:
                progress("preparing the model", done, len(programs))


def session_programs(predictor: VolumePredictor, block: int = BLOCK) -> list[SessionProgram]:
    """Return the programs of a session.

    Args:
        predictor: the model.
        block: slices per block of the sessions.
    """
    shapes, rows = _Shapes(predictor), object_rows()
    programs = [SessionProgram("encode slices", shapes.encode, True)]
    if position := slice_position_of(predictor.model):
        programs.append(SessionProgram("slice context", partial(shapes.context, position.config.dim), True))
    for room in PROMPTED:
        is_first = room == PROMPTED[0]
        name = f"prompted slice, {room} memories"
        programs.append(SessionProgram(name, partial(shapes.segment, room), is_first))
        for count in rows if is_first else rows[:1]:
            for length in lengths_of_blocks(block):
                name = f"{length} slices of {count} objects, {room} memories"
                run = partial(shapes.propagate, count, room, length)
                programs.append(SessionProgram(name, run, is_first and count == rows[0]))
            if not memory_rule(predictor.model.config.memory_selection).bounded:
                name = f"memories of {count} objects, {room} memories"
                programs.append(SessionProgram(name, partial(shapes.remember, count, room)))
    programs.append(SessionProgram("mask as a prompt", shapes.use_mask))
    return programs


class _Shapes:
    """Runs the programs on empty arrays with the shapes of a session; inactive steps compute nothing."""

    def __init__(self, predictor: VolumePredictor):
        self._graphdef, self._weights = predictor.graphdef, predictor.weights
        self._config, self._postprocessing = predictor.model.config, predictor.postprocessing
        self._groups = DIRECTIONS[predictor.order]
        self._side = self._config.image_size // 16
        self._dtype = jnp.dtype(self._config.compute_dtype)

    def encode(self) -> object:
        size = self._config.image_size
        slices = _zeros((slices_per_encoding(size), size, size, 3), np.float32)
        return encode_block(self._graphdef, self._weights, slices)

    def context(self, width: int) -> object:
        embeddings = _zeros((position_room(1), width), np.float32)
        return slice_context(self._graphdef, self._weights, embeddings, np.int32(1))

    def segment(self, room: int) -> object:
        prompt = prompt_tokens(Prompt(1, 0, [(0.0, 0.0)], [1]), self._config.image_size)
        return segment_from_points(
            self._graphdef,
            self._weights,
            self._bank(1, room),
            *self._features(1),
            prompt,
            PromptedStep(_zeros(1, np.int32), _zeros(1, np.int32)),
            np.int32(1),
            np.array(False),
            self._postprocessing,
        )

    def use_mask(self) -> object:
        size = self._config.image_size
        features, _ = self._features(1)
        mask = _zeros((1, size, size), np.float32)
        return segment_from_masks(self._graphdef, self._weights, features, mask, self._postprocessing)

    def propagate(self, objects: int, room: int, length: int) -> object:
        rows = self._groups * objects
        features, context = self._features(length, self._groups)
        steps = PropagationSteps(features, context, _zeros((length, rows), np.int32), _zeros((length, rows), bool))
        bank, direction = self._bank(rows, room), _zeros(rows, np.int32)
        return propagate_block(self._graphdef, self._weights, bank, steps, direction, np.int32(1))

    def remember(self, objects: int, room: int) -> object:
        rows = self._groups * objects
        memory = _zeros((rows, self._side**2, self._config.mem_dim), self._dtype)
        pointer = _zeros((rows, self._config.d_model), self._dtype)
        index, write, confidence = _zeros(rows, np.int32), _zeros(rows, bool), _zeros(rows, np.float32)
        return remember_slice(self._bank(rows, room), index, write, memory, pointer, confidence)

    def _bank(self, rows: int, room: int) -> MemoryBank:
        return load_bank([ObjectState(self._config, 1, HostArrays())] * rows, room, None)

    def _features(self, *axes: int) -> tuple[SliceFeatures, Any]:
        c, side = self._config.d_model, self._side
        shapes = (side, side, c), (2 * side, 2 * side, c // 4), (4 * side, 4 * side, c // 8)
        features = SliceFeatures(*(_zeros((*axes, *shape), self._dtype) for shape in shapes))
        return features, _zeros((*axes, c), np.float32)
