"""Prompted segmentation of volumes: `VolumePredictor`, and sessions that accept corrections.

A session keeps features, memories and results, so that an added prompt encodes no slice again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from sam2_3dmed_jax.config import MemorySelection
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.compiled_programs import (
    SliceResult,
    correct_from_points,
    segment_from_masks,
    segment_from_points,
)
from sam2_3dmed_jax.inference.device_slices import Slices
from sam2_3dmed_jax.inference.feature_store import BLOCK, FeatureStore
from sam2_3dmed_jax.inference.host_arrays import HostArrays
from sam2_3dmed_jax.inference.object_batches import ObjectBatches, object_batches
from sam2_3dmed_jax.inference.object_state import ObjectState, load_bank, prompted_capacity
from sam2_3dmed_jax.inference.padding import next_power_of_two, pad_rows
from sam2_3dmed_jax.inference.prompt_batches import batch_prompts
from sam2_3dmed_jax.inference.propagation import PROPAGATION_ORDERS, PropagationContext, PropagationOrder, check_order
from sam2_3dmed_jax.model.checkpoint import with_memory_selection
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.model import SAM2
from sam2_3dmed_jax.sam2.parameters import split
from sam2_3dmed_jax.volume.zoom import Logits, ObjectZoom, RegionLogits

PREVIOUS_LOGITS_LIMIT = 32.0  # Earlier logits are clamped before they become a dense prompt, as in the reference.

PromptedSlice = tuple[ObjectState, int]  # an object and one of its prompted slices
OnSlice = Callable[[int, int, np.ndarray], None]  # called with object id, slice and float32 logits [S/4, S/4]


@dataclass(frozen=True)
class Result:
    """Masks of K objects in the order of their ids."""

    object_ids: tuple[int, ...]
    mask_logits: np.ndarray  # float32 [K, D, S/4, S/4]; positive inside
    object_score_logits: np.ndarray  # float32 [K, D]; positive where the object is on the slice
    predicted_iou: np.ndarray  # float32 [K, D], in [0, 1]: the model's own estimate; 1 on slices with a mask prompt
    zooms: tuple[ObjectZoom, ...] = ()  # the regions that the logits cover, one per object; (): whole slices

    def logits_of(self, object_id: int) -> Logits | None:
        """Return the logits of one object, float32 `[D, S/4, S/4]`, or None for an id without a mask."""
        return self.logits_in_row(self.object_ids.index(object_id)) if object_id in self.object_ids else None

    def logits_in_row(self, row: int) -> Logits:
        """Return the logits of the object in a row of the arrays."""
        logits = self.mask_logits[row]
        return RegionLogits(logits, self.zooms[row].region) if self.zooms else logits


class VolumePredictor:
    """Segments volumes with one model; its sessions share the compiled programs."""

    def __init__(
        self,
        model: SAM2,
        order: PropagationOrder = "sequential",
        postprocessing: bool = True,
        memory_selection: MemorySelection | None = None,
    ):
        """Wrap a model.

        Args:
            model: SAM2 or SAM2With3DMed.
            order: order of the two directions of propagation, see `propagation`.
            postprocessing: the reference's `apply_postprocessing` without hole filling: multimask by stability, and
                binarised memories of prompted slices.
            memory_selection: which memories a slice sees, in place of the model's own rule.

        Raises:
            UserError: the order or the rule does not exist, or the model takes no prompts.
        """
        if not isinstance(model, SAM2):
            raise UserError(f"a {type(model).__name__} takes no prompts; give a checkpoint of SAM 2 or SAM2-3dMed")
        check_order(order)
        self.model = model if memory_selection is None else with_memory_selection(model, memory_selection)
        self.order = order
        self.postprocessing = postprocessing
        self.graphdef, self.weights = split(self.model)

    def predict(self, slices: Slices, prompts: Sequence[Prompt], progress: Progress | None = None) -> Result:
        """Segment `slices` (float32 `[D, S, S, 3]`, normalised) from prompts, in one session."""
        session = self.start(slices, progress)
        session.add(prompts)
        return session.result(forget=True)

    def start(self, slices: Slices, progress: Progress | None = None) -> Session:
        """Encode a volume once and open a session on it."""
        return Session(self, self.encode(slices, progress), progress)

    def encode(self, slices: Slices, progress: Progress | None = None) -> FeatureStore:
        """Return the features of a volume, for any number of sessions (`Session(predictor, store)`).

        Raises:
            UserError: the slices have another shape than the model takes.
        """
        store = self.open(slices, progress)
        store.encode()
        return store

    def open(self, slices: Slices, progress: Progress | None = None) -> FeatureStore:
        """Return a store as `encode` does, whose slices are encoded when a session first reads them.

        Raises:
            UserError: the slices have another shape than the model takes.
        """
        size = self.model.config.image_size
        if len(slices.shape) != 4 or slices.shape[1:] != (size, size, 3) or not len(slices):
            raise UserError(f"slices: their shape is {slices.shape}; this model takes [D, {size}, {size}, 3]")
        return FeatureStore(self.graphdef, self.weights, self.model, slices, HostArrays(), progress)


class Session:
    """Segmentation of one volume; keeps features, memories and results, so that corrections are cheap."""

    def __init__(
        self, predictor: VolumePredictor, store: FeatureStore, progress: Progress | None = None, block: int = BLOCK
    ):
        """Open a session.

        Args:
            predictor: the model.
            store: the features of the volume.
            progress: called after each block of propagated slices. If it raises, the session must be reset.
            block: slices per block, at most `BLOCK`. Smaller blocks report earlier and take longer; their results are
                the same.
        """
        self._predictor = predictor
        self._progress = progress
        self._block = block
        self._store = store
        self._objects: dict[int, ObjectState] = {}
        self._has_new_prompts = False

    @property
    def depth(self) -> int:
        """D, slices of the volume."""
        return self._store.depth

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Add prompts; points are added to earlier points on the same slice. `result` computes the masks.

        Raises:
            UserError: a prompt does not fit the volume; then no prompt of this call is added.
        """
        config = self._predictor.model.config
        for prompt in prompts:
            prompt.check(self.depth, config.image_size)
        for prompt in prompts:
            if prompt.object_id not in self._objects:
                self._objects[prompt.object_id] = ObjectState(config, self.depth, self._store.arrays)
            state = self._objects[prompt.object_id]
            earlier = state.prompts.get(prompt.slice)
            state.prompts[prompt.slice] = earlier.merge(prompt) if earlier else prompt
            if prompt.slice not in state.pending:
                state.pending.append(prompt.slice)
            self._has_new_prompts = True

    def reset(self) -> None:
        """Remove all prompts and their masks; the features are kept."""
        self._objects.clear()

    def preview(self) -> dict[tuple[int, int], np.ndarray]:
        """Segment the prompted slices only, for interactive tools that show them before the volume is propagated.

        Returns:
            float32 logits `[S/4, S/4]` by (object id, slice). `result` reuses them.
        """
        batches = object_batches(self._objects)
        for ids in batches.ids:
            self._segment_prompted([self._objects[object_id] for object_id in ids], batches.prompts)
        return {
            (object_id, index): np.array(state.logits(index))
            for object_id, state in self._objects.items()
            for index in sorted(state.segmented | state.new_results.keys())
        }

    def result(self, on_slice: OnSlice | None = None, forget: bool = False) -> Result:
        """Return the masks from all prompts so far.

        Args:
            on_slice: called once for each object and slice when its logits are final: prompted slices first, then
                the others in the order of propagation, away from the prompts, for one batch of objects after another;
                not called if nothing is computed.
            forget: remove the prompts and memories of each batch of objects when it is finished, so that the memory of
                one batch serves any number of objects.

        Raises:
            UserError: the session has no prompts.
        """
        if not self._objects:
            raise UserError("prompts: the session has none; add at least one point, box or mask")
        batches = object_batches(self._objects)
        object_ids = tuple(sorted(self._objects))
        side = self._predictor.model.config.image_size // 4
        shape = len(object_ids), self.depth, side, side
        # The logits of many objects may be larger than the memory; `zeros` then allocates a file.
        allocate = np.zeros if len(batches.ids) == 1 else self._store.arrays.zeros
        logits = allocate(shape, np.float32)
        scores, ious = np.zeros(shape[:2], np.float32), np.zeros(shape[:2], np.float32)
        row = 0
        for ids in batches.ids:
            if self._has_new_prompts:
                self._propagate(ids, batches, on_slice)
            for object_id in ids:
                logits[row], scores[row], ious[row] = self._objects[object_id].results()
                row += 1
                if forget:
                    del self._objects[object_id]
        self._has_new_prompts = False
        return Result(object_ids, logits, scores, ious)

    def _propagate(self, ids: tuple[int, ...], batches: ObjectBatches, on_slice: OnSlice | None) -> None:
        """Segment all slices of one batch of objects."""
        objects = [self._objects[object_id] for object_id in ids]
        self._segment_prompted(objects, batches.prompts)
        for state in objects:
            state.commit()

        def report(number: int, index: int) -> None:
            if on_slice:
                on_slice(ids[number], index, objects[number].mask_logits[index])

        for number, state in enumerate(objects):
            for index in sorted(state.segmented):
                report(number, index)
        predictor = self._predictor
        context = PropagationContext(
            predictor.graphdef,
            predictor.weights,
            self._store,
            self._progress,
            report,
            self._block,
            batches.rows,
            batches.prompted,
            batches.note(ids),
        )
        PROPAGATION_ORDERS[predictor.order](context, objects)

    def _segment_prompted(self, objects: list[ObjectState], least: int) -> None:
        """Segment the slices with new prompts, each from the memories of the last propagation.

        Masks and slices that have not been propagated are batched, in arrays of at least `least` rows; other slices are
        corrected one by one from memory.
        """
        masks: list[PromptedSlice] = []
        first_prompts: list[PromptedSlice] = []
        further_prompts: list[PromptedSlice] = []  # the object has not been propagated since the first prompt
        corrections: list[PromptedSlice] = []
        for state in objects:
            for index in state.pending:
                if state.prompts[index].mask is not None:
                    masks.append((state, index))
                elif state.direction[index]:
                    corrections.append((state, index))
                elif state.has_prompted_result(index):
                    further_prompts.append((state, index))
                else:
                    first_prompts.append((state, index))
        self._segment_masks(masks, least)
        self._segment_points(first_prompts, least)
        self._segment_points(further_prompts, least, with_earlier_logits=True)
        for state, index in corrections:
            self._correct(state, index)
        for state in objects:
            state.pending.clear()

    def _segment_masks(self, batch: list[PromptedSlice], least: int) -> None:
        """Store mask prompts as the results of their slices."""
        if not batch:
            return
        predictor = self._predictor
        rows = max(least, next_power_of_two(len(batch)))
        features, _ = self._store.gather(_padded_slices(batch, rows))
        masks = pad_rows(np.stack([np.asarray(state.prompts[index].mask, np.float32) for state, index in batch]), rows)
        result = segment_from_masks(predictor.graphdef, predictor.weights, features, masks, predictor.postprocessing)
        _store_prompted(batch, jax.device_get(result))

    def _segment_points(self, batch: list[PromptedSlice], least: int, with_earlier_logits: bool = False) -> None:
        """Segment slices by points and boxes without memory, optionally on top of their earlier logits."""
        if not batch:
            return
        predictor = self._predictor
        rows = max(least, next_power_of_two(len(batch)))
        features, context = self._store.gather(_padded_slices(batch, rows))
        previous = _earlier_logits(batch, rows) if with_earlier_logits else None
        prompts = batch_prompts([state.prompts[index] for state, index in batch], rows, previous)
        result = segment_from_points(
            predictor.graphdef, predictor.weights, features, context, prompts, predictor.postprocessing
        )
        _store_prompted(batch, jax.device_get(result))

    def _correct(self, state: ObjectState, index: int) -> None:
        """Segment a propagated slice again, from memory and on top of its earlier logits."""
        predictor = self._predictor
        direction = int(state.direction[index])
        bank = load_bank([state], prompted_capacity([state]), [(index, direction)])
        features, context = self._store.gather([index])
        result = correct_from_points(
            predictor.graphdef,
            predictor.weights,
            bank,
            features,
            context,
            np.array([index], np.int32),
            np.array([direction], np.int32),
            np.int32(self.depth),
            predictor.postprocessing,
            batch_prompts([state.prompts[index]], 1, _earlier_logits([(state, index)], 1)),
        )
        _store_prompted([(state, index)], jax.device_get(result))


def _padded_slices(batch: list[PromptedSlice], rows: int) -> list[int]:
    """Return the slices of a batch, and slice 0 for padding rows."""
    return [index for _, index in batch] + [0] * (rows - len(batch))


def _earlier_logits(batch: list[PromptedSlice], rows: int) -> np.ndarray:
    """Return the logits of these slices as dense prompts, float32 `[rows, S/4, S/4]`."""
    logits = np.stack([state.logits(index) for state, index in batch])
    return pad_rows(logits, rows).clip(-PREVIOUS_LOGITS_LIMIT, PREVIOUS_LOGITS_LIMIT)


def _store_prompted(batch: list[PromptedSlice], result: SliceResult) -> None:
    """Keep the rows of host results as the new results of prompted slices."""
    for row, (state, index) in enumerate(batch):
        state.new_results[index] = SliceResult(*(x[row] for x in result))
