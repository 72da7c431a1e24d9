"""Propagation of prompted slices through a volume, in blocks of slices.

`sequential` propagates from an object's lowest prompted slice up (superior) to the last slice, then down (inferior) to
the first. The pass down sees memories of the pass up, as in the reference's `propagate_in_video` and its reverse.
`independent` propagates in both directions at once from the prompted slices, and averages the logits of slices between
an object's lowest and highest prompted slice; it is symmetric under flipping the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.block_lengths import blocks_of_path
from sam2_3dmed_jax.inference.compiled_programs import PropagationSteps, SliceResult, propagate_block
from sam2_3dmed_jax.inference.feature_store import BLOCK, FeatureStore
from sam2_3dmed_jax.inference.launches import copy_to_host_async, launched_ahead
from sam2_3dmed_jax.inference.object_batches import filled_up, is_repeated
from sam2_3dmed_jax.inference.object_state import ObjectState, load_bank
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
from sam2_3dmed_jax.sam2.model import NO_OBJECT_LOGIT
from sam2_3dmed_jax.sam2.parameters import Weights

PropagationOrder = Literal["sequential", "independent"]
UP, DOWN = 1, -1  # from inferior to superior slices, and back


@dataclass(frozen=True)
class PropagationContext:
    """The model and the features of a volume, and the callbacks of a propagation.

    Attributes:
        graphdef: the structure of the model.
        weights: its weights.
        store: the features.
        progress: called after each block.
        on_slice: called with the position of an object in the list and a slice, once its result there is final.
        block: slices between two calls of `progress`, at most `BLOCK`; the results do not depend on it.
        rows: rows of the compiled program, at least; rows without an object stay inactive.
        prompted: prompted slices per object that the memory bank has room for.
        note: passed to `progress`.
    """

    graphdef: nnx.GraphDef[Any]
    weights: Weights
    store: FeatureStore
    progress: Progress | None = None
    on_slice: Callable[[int, int], None] = lambda number, index: None
    block: int = BLOCK
    rows: int = 1
    prompted: int = 1
    note: str = ""


@dataclass(frozen=True)
class PropagationPath:
    """The slices that G directions visit, step by step, for K objects.

    Attributes:
        directions: UP or DOWN, of each direction.
        slices: int `[steps, G]`; may leave the volume where no object is included.
        included: bool `[steps, G x K]`, whether a row (direction, object) includes its slice of the step.
        label: label of the progress bar.
    """

    directions: tuple[int, ...]
    slices: np.ndarray
    included: np.ndarray
    label: str


def propagate_sequential(context: PropagationContext, objects: list[ObjectState]) -> None:
    """Propagate up from the lowest prompted slice of each object, then down; store the results in the objects."""
    objects = filled_up(objects, context.rows)
    used = ~np.array(is_repeated(objects))
    starts = np.array([state.first_prompted for state in objects])
    paths = (
        _path_in_one_direction(UP, range(starts.min(), context.store.depth), starts, used, "propagating up (superior)"),
        _path_in_one_direction(DOWN, range(starts.max(), -1, -1), starts, used, "propagating down (inferior)"),
    )
    for path in paths:
        (direction,) = path.directions
        # A repeated pass also finds memories of the earlier result beyond the start, as in the reference.
        past = [(state.first_prompted, direction) for state in objects]
        bank = load_bank(objects, context.prompted, past)
        for step, result in _propagate_in_blocks(context, bank, objects, path):
            for row in np.flatnonzero(path.included[step]).tolist():
                index = int(path.slices[step, 0])
                if _store_result(objects[row], index, result, row, direction):
                    context.on_slice(row, index)
    _set_correction_directions(objects)


def propagate_independent(context: PropagationContext, objects: list[ObjectState]) -> None:
    """Propagate up and down at once, each from the prompted slices alone; store the results in the objects."""
    objects = filled_up(objects, context.rows)
    for state in objects:
        state.direction[:] = 0  # Results of earlier passes are not used.
    path = _path_in_both_directions(objects, context.store.depth)
    bank = load_bank([*objects, *objects], context.prompted, None)
    merger = _DirectionMerger(objects)
    for step, result in _propagate_in_blocks(context, bank, objects, path):
        for row in np.flatnonzero(path.included[step]).tolist():
            group, number = divmod(row, len(objects))
            index = int(path.slices[step, group])
            if merger.add(number, index, path.directions[group], result, row):
                context.on_slice(number, index)
    _set_correction_directions(objects)


PROPAGATION_ORDERS: dict[PropagationOrder, Callable[[PropagationContext, list[ObjectState]], None]] = {
    "sequential": propagate_sequential,
    "independent": propagate_independent,
}

# Directions that are propagated at once, each with a row per object.
DIRECTIONS: dict[PropagationOrder, int] = {"sequential": 1, "independent": 2}


def check_order(order: str) -> None:
    """Check the name of an order.

    Raises:
        UserError: it does not exist.
    """
    if order not in PROPAGATION_ORDERS:
        raise UserError(f"order: '{order}' does not exist; choose one of {', '.join(PROPAGATION_ORDERS)}")


@dataclass
class _DirectionMerger:
    """Merges the results of both directions: logits of slices that both visit are averaged.

    Memories of such slices come from the pass up.
    """

    objects: list[ObjectState]
    # Logits, score and predicted IoU of the first visit of a slice between prompts, by object number and slice.
    first_visits: dict[tuple[int, int], tuple[np.ndarray, float, float]] = field(default_factory=dict)

    def add(self, number: int, index: int, direction: int, result: SliceResult, row: int) -> bool:
        """Store the result of object `number` on slice `index`, which is in row `row`.

        Returns:
            Whether the result is new and final.
        """
        state = self.objects[number]
        if index in state.segmented:
            return False
        between_prompts = state.first_prompted < index < state.last_prompted
        if direction == UP or not between_prompts:
            _store_result(state, index, result, row, direction)
        if not between_prompts:
            return True
        logits, score = np.asarray(result.mask_logits[row]), float(result.object_score_logits[row])
        iou = float(result.predicted_iou[row])
        if (number, index) not in self.first_visits:
            self.first_visits[number, index] = logits, score, iou
            return False
        other_logits, other_score, other_iou = self.first_visits.pop((number, index))
        state.mask_logits[index], state.object_score_logits[index] = merge_directions(
            (logits, other_logits), (score, other_score)
        )
        state.predicted_iou[index] = (iou + other_iou) / 2
        return True


def merge_directions(logits: tuple[np.ndarray, np.ndarray], scores: tuple[float, float]) -> tuple[np.ndarray, float]:
    """Merge the results of both directions on a slice by one rule for its mask and its score.

    The score is the mean of both scores. If it is positive, the mask is the mean over the directions that contain the
    object: the mask of the other direction is gated, and would otherwise pull the mean far below zero. If it is not
    positive, the mask is gated too.

    Args:
        logits: float32 `[S/4, S/4]` of each direction, gated by its score.
        scores: object score logit of each direction.

    Returns:
        Logits float32 `[S/4, S/4]`, and the object score logit. Logits are `NO_OBJECT_LOGIT` where the score is not
        positive.
    """
    score = (scores[0] + scores[1]) / 2
    if score <= 0:
        return np.full_like(logits[0], NO_OBJECT_LOGIT), score
    present = [mask for mask, own in zip(logits, scores, strict=True) if own > 0]
    return sum(present[1:], present[0]) / np.float32(len(present)), score


def _path_in_one_direction(
    direction: int, slices: range, starts: np.ndarray, used: np.ndarray, label: str
) -> PropagationPath:
    """Return the path through `slices`; each object in a row that is `used` is included from its own start."""
    path = np.array(slices)
    included = ((path[:, None] - starts) * direction >= 0) & used
    return PropagationPath((direction,), path[:, None], included, label)


def _path_in_both_directions(objects: list[ObjectState], depth: int) -> PropagationPath:
    """Return the path up from the lowest prompted slice and, in the same steps, down from the highest one."""
    lowest = min(state.first_prompted for state in objects)
    highest = max(state.last_prompted for state in objects)
    steps = np.arange(max(depth - 1 - lowest, highest) + 1)
    up, down = lowest + steps, highest - steps
    slices = np.stack([up, down], axis=1)
    includes_up = [(up < depth) & (up >= state.first_prompted) for state in objects]
    includes_down = [(down >= 0) & (down <= state.last_prompted) for state in objects]
    included = np.stack([*includes_up, *includes_down], axis=1) & ~np.tile(is_repeated(objects), 2)
    return PropagationPath((UP, DOWN), slices, included, "propagating up and down")


def _propagate_in_blocks(
    context: PropagationContext, bank: MemoryBank, objects: list[ObjectState], path: PropagationPath
) -> Iterator[tuple[int, SliceResult]]:
    """Yield each step of a path with its host results `[G x K, ...]`.

    Blocks in which all included slices are prompted have no results and are left out.
    """
    for block in launched_ahead(_launch_blocks(context, bank, objects, path)):
        results = jax.device_get(block.results)
        for step in range(block.begin, block.end):
            yield step, SliceResult(*(x[step - block.begin] for x in results))
        for state in objects:
            state.release()
        if context.progress:
            context.progress(path.label, block.end, len(path.slices), context.note)


class _PropagatedBlock(NamedTuple):
    """A launched block: its steps, and its results `[T, G x K, ...]` on the device."""

    begin: int
    end: int
    results: SliceResult


def _launch_blocks(
    context: PropagationContext, bank: MemoryBank, objects: list[ObjectState], path: PropagationPath
) -> Iterator[_PropagatedBlock]:
    """Launch each block with active slices when it is taken; the bank stays on the device."""
    directions = np.repeat(np.array(path.directions, np.int32), len(objects))
    slices = np.clip(path.slices, 0, context.store.depth - 1)
    row_slices = np.repeat(slices, len(objects), axis=1).astype(np.int32)
    segmented = [state.segmented for _ in path.directions for state in objects]
    prompted = np.array([[int(i) in own for i, own in zip(step, segmented, strict=True)] for step in row_slices])
    active = path.included & ~prompted
    for begin, end, length in blocks_of_path(len(slices), context.block):
        if not active[begin:end].any():
            continue
        steps = _block_steps(context.store, slices[begin:end], row_slices[begin:end], active[begin:end], length)
        bank, results = propagate_block(
            context.graphdef, context.weights, bank, steps, directions, np.int32(context.store.depth)
        )
        copy_to_host_async(results)
        yield _PropagatedBlock(begin, end, results)


def _block_steps(
    store: FeatureStore, slices: np.ndarray, row_slices: np.ndarray, active: np.ndarray, length: int
) -> PropagationSteps:
    """Gather the inputs of `slices [steps, G]`, padded to `length` steps; the last slices are repeated, inactive."""
    missing = [(0, length - len(slices)), (0, 0)]
    features, context = store.gather(np.pad(slices, missing, mode="edge"))
    return PropagationSteps(
        features=features,
        context=context,  # type: ignore[arg-type]
        slice_index=np.pad(row_slices, missing, mode="edge"),  # type: ignore[arg-type]
        active=np.pad(active, missing),  # type: ignore[arg-type]
    )


def _store_result(state: ObjectState, index: int, result: SliceResult, row: int, direction: int) -> bool:
    """Store the result of a propagated slice, and return True; prompted slices keep their own."""
    if index in state.segmented:
        return False
    state.store(index, result, row)
    state.direction[index] = direction
    return True


def _set_correction_directions(objects: list[ObjectState]) -> None:
    """Set the direction of prompted slices, in which later prompts correct them, as in the reference."""
    for state in objects:
        for index in state.segmented:
            state.direction[index] = UP if index > state.first_prompted or state.first_prompted == 0 else DOWN
