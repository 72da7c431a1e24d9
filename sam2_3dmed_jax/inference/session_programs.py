"""The compiled programs of a session, as a list: `warm_up` runs each once, so that no prompt waits for the compiler.

They do not depend on the numbers of prompts, objects and slices, up to the sizes of `shape_buckets.py`. Besides them,
each size of slices has a program that resizes them, which compiles in milliseconds.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.inference.block_lengths import lengths_of_blocks
from sam2_3dmed_jax.inference.compiled_programs import (
    PromptedStep,
    PropagationSteps,
    condition_slice,
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
from sam2_3dmed_jax.inference.object_batches import object_batches
from sam2_3dmed_jax.inference.object_state import ObjectState, load_bank
from sam2_3dmed_jax.inference.prompt_tokens import prompt_tokens
from sam2_3dmed_jax.inference.propagation import DIRECTIONS
from sam2_3dmed_jax.inference.shape_buckets import PROMPTED, corrected_room, object_rows, position_room
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
from sam2_3dmed_jax.sam2.memory_selection import memory_rule
from sam2_3dmed_jax.sam2.model import SliceFeatures

if TYPE_CHECKING:
    from sam2_3dmed_jax.inference.predictor import VolumePredictor

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
            _prepare(predictor, program)
            if progress:
                progress("preparing the model", done, len(programs))


@contextlib.contextmanager
def prepared_meanwhile(predictor: VolumePredictor, prompts: Sequence[Prompt], depth: int) -> Iterator[None]:
    """Compile the programs that follow encoding in another thread, while the block encodes a volume.

    Tracing and compiling take one core and seconds, even if the persistent cache has the programs. On other platforms
    nothing is done, because a device may have no room for the buffers of two programs at once.

    Args:
        predictor: the model.
        prompts: of one session.
        depth: slices of the volume.
    """
    programs = _programs_after_encoding(predictor, prompts, depth)
    missing = [program for program in programs if program.name not in predictor.warm]
    stopped = threading.Event()
    device = getattr(jax.config, "jax_default_device", None)  # of this thread alone

    def prepare() -> None:
        with jax.default_device(device):
            for program in missing:
                if not stopped.is_set():
                    _prepare(predictor, program)

    if not missing or jax.default_backend() != "cpu":
        yield
        return
    with ThreadPoolExecutor(1, "compilation") as pool:
        prepared = pool.submit(prepare)
        try:
            yield
        except BaseException:
            stopped.set()
            raise
        prepared.result()


def session_programs(predictor: VolumePredictor, block: int = BLOCK) -> list[SessionProgram]:
    """Return the programs of a session.

    Args:
        predictor: the model.
        block: slices per block of the sessions.
    """
    make, rows = _Programs(predictor), object_rows()
    programs = [make.encode()]
    if position := slice_position_of(predictor.model):
        programs.append(make.context(position.config.dim))
    programs.append(make.segment())
    is_bounded = memory_rule(predictor.model.config.memory_selection).bounded
    for room in PROMPTED:
        for count in rows if room == PROMPTED[0] else rows[:1]:
            programs += [make.propagate(count, room, length) for length in lengths_of_blocks(block)]
            programs += [] if is_bounded else [make.remember(count, room)]
    return [*programs, make.condition(), make.use_mask()]


def _programs_after_encoding(predictor: VolumePredictor, prompts: Sequence[Prompt], depth: int) -> list[SessionProgram]:
    """Return the programs for the first masks from prompts, in the order in which they are needed."""
    make = _Programs(predictor)
    programs = []
    if any(prompt.mask is None for prompt in prompts):
        programs.append(make.segment())
    if any(prompt.mask is not None for prompt in prompts):
        programs.append(make.use_mask())
    batches = object_batches(Counter(prompt.object_id for prompt in prompts))
    for rows, room in dict.fromkeys((batch.rows, batch.prompted) for batch in batches):
        programs += [make.propagate(rows, room, length) for length in lengths_of_blocks(min(BLOCK, depth))]
    return programs


def _prepare(predictor: VolumePredictor, program: SessionProgram) -> None:
    jax.block_until_ready(program.run())  # type: ignore[no-untyped-call]
    predictor.warm.add(program.name)


class _Programs:
    """Makes the programs, which run on empty arrays with the shapes of a session; inactive steps compute nothing."""

    def __init__(self, predictor: VolumePredictor):
        self._graphdef, self._weights = predictor.graphdef, predictor.weights
        self._config, self._postprocessing = predictor.model.config, predictor.postprocessing
        self._groups = DIRECTIONS[predictor.order]
        self._side = self._config.image_size // 16
        self._dtype = jnp.dtype(self._config.compute_dtype)

    def encode(self) -> SessionProgram:
        return SessionProgram("encode slices", self._encode, True)

    def context(self, width: int) -> SessionProgram:
        return SessionProgram("slice context", partial(self._slice_context, width), True)

    def segment(self) -> SessionProgram:
        return SessionProgram("prompted slice", self._segment, True)

    def condition(self) -> SessionProgram:
        return SessionProgram("memories of a corrected slice", self._condition)

    def use_mask(self) -> SessionProgram:
        return SessionProgram("mask as a prompt", self._use_mask)

    def propagate(self, objects: int, room: int, length: int) -> SessionProgram:
        name = f"{length} slices of {objects} objects, {room} memories"
        is_first = room == PROMPTED[0] and objects == object_rows()[0]
        return SessionProgram(name, partial(self._propagate, objects, room, length), is_first)

    def remember(self, objects: int, room: int) -> SessionProgram:
        name = f"memories of {objects} objects, {room} memories"
        return SessionProgram(name, partial(self._remember, objects, room))

    def _encode(self) -> object:
        size = self._config.image_size
        slices = _zeros((slices_per_encoding(size), size, size, 3), np.float32)
        return encode_block(self._graphdef, self._weights, slices)

    def _slice_context(self, width: int) -> object:
        embeddings = _zeros((position_room(1), width), np.float32)
        return slice_context(self._graphdef, self._weights, embeddings, np.int32(1))

    def _segment(self) -> object:
        prompt = prompt_tokens(Prompt(1, 0, [(0.0, 0.0)], [1]), self._config.image_size)
        features, context = self._features(1)
        return segment_from_points(
            self._graphdef,
            self._weights,
            features,
            context,
            features.embedding,
            np.array(False),
            prompt,
            self._postprocessing,
        )

    def _condition(self) -> object:
        features, context = self._features(1)
        step = PromptedStep(_zeros(1, np.int32), _zeros(1, np.int32))
        bank = self._bank(1, corrected_room(1))
        return condition_slice(self._graphdef, self._weights, bank, features.embedding, context, step, np.int32(1))

    def _use_mask(self) -> object:
        size = self._config.image_size
        features, _ = self._features(1)
        mask = _zeros((1, size, size), np.float32)
        return segment_from_masks(self._graphdef, self._weights, features, mask, self._postprocessing)

    def _propagate(self, objects: int, room: int, length: int) -> object:
        rows = self._groups * objects
        features, context = self._features(length, self._groups)
        steps = PropagationSteps(features, context, _zeros((length, rows), np.int32), _zeros((length, rows), bool))
        bank, direction = self._bank(rows, room), _zeros(rows, np.int32)
        return propagate_block(self._graphdef, self._weights, bank, steps, direction, np.int32(1))

    def _remember(self, objects: int, room: int) -> object:
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
