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
    PromptedStep,
    SliceResult,
    condition_slice,
    segment_from_masks,
    segment_from_points,
)
from sam2_3dmed_jax.inference.device_slices import Slices
from sam2_3dmed_jax.inference.feature_store import BLOCK, FeatureStore
from sam2_3dmed_jax.inference.host_arrays import HostArrays, release
from sam2_3dmed_jax.inference.launches import launched_ahead
from sam2_3dmed_jax.inference.object_batches import ObjectBatch, object_batches
from sam2_3dmed_jax.inference.object_state import ObjectState, load_bank
from sam2_3dmed_jax.inference.prompt_tokens import prompt_tokens
from sam2_3dmed_jax.inference.propagation import (
    PROPAGATION_ORDERS,
    PropagationContext,
    PropagationOrder,
    check_order,
)
from sam2_3dmed_jax.inference.session_programs import prepared_meanwhile
from sam2_3dmed_jax.inference.shape_buckets import corrected_room
from sam2_3dmed_jax.model.checkpoint import with_memory_selection
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.model import SAM2
from sam2_3dmed_jax.sam2.rounded_weights import split_rounded
from sam2_3dmed_jax.volume.zoom import Logits, ObjectZoom, RegionLogits

PREVIOUS_LOGITS_LIMIT = 32.0  # Earlier logits are clamped before they become a dense prompt, as in the reference.

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

    def of_object(self, object_id: int) -> Result:
        """Return the result of one object alone."""
        at = slice(row := self.object_ids.index(object_id), row + 1)
        return Result(
            (object_id,), self.mask_logits[at], self.object_score_logits[at], self.predicted_iou[at], self.zooms[at]
        )


def joined_results(results: Sequence[Result]) -> Result:
    """Return the results of several sets of objects of one volume as one, in the order of their ids."""
    if len(results) == 1:
        return results[0]
    rows = sorted(
        (object_id, number, row)
        for number, result in enumerate(results)
        for row, object_id in enumerate(result.object_ids)
    )
    places = [(results[number], row) for _, number, row in rows]
    return Result(
        tuple(object_id for object_id, _, _ in rows),
        np.stack([result.mask_logits[row] for result, row in places]),
        np.stack([result.object_score_logits[row] for result, row in places]),
        np.stack([result.predicted_iou[row] for result, row in places]),
        tuple(result.zooms[row] for result, row in places if result.zooms),
    )


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
        self.graphdef, self.weights = split_rounded(self.model)
        self.warm: set[str] = set()  # names of the programs that `session_programs.warm_up` has compiled

    def predict(self, slices: Slices, prompts: Sequence[Prompt], progress: Progress | None = None) -> Result:
        """Segment `slices` (float32 `[D, S, S, 3]`, normalised) from prompts, in one session."""
        with prepared_meanwhile(self, prompts, len(slices)):
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
        self._segment_prompted(list(self._objects.values()))
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
        batches = object_batches({object_id: len(state.prompts) for object_id, state in self._objects.items()})
        object_ids = tuple(sorted(self._objects))
        side = self._predictor.model.config.image_size // 4
        shape = len(object_ids), self.depth, side, side
        logits = self._store.arrays.zeros(shape, np.float32)
        scores, ious = np.zeros(shape[:2], np.float32), np.zeros(shape[:2], np.float32)
        for batch in batches:
            if self._has_new_prompts:
                self._propagate(batch, on_slice)
            for object_id in batch.ids:
                row = object_ids.index(object_id)
                logits[row], scores[row], ious[row] = self._objects[object_id].results()
                release(logits)
                self._objects[object_id].release()
                if forget:
                    del self._objects[object_id]
        self._has_new_prompts = False
        return Result(object_ids, logits, scores, ious)

    def _propagate(self, batch: ObjectBatch, on_slice: OnSlice | None) -> None:
        """Segment all slices of one batch of objects."""
        objects = [self._objects[object_id] for object_id in batch.ids]
        self._segment_prompted(objects)
        for state in objects:
            state.commit()

        def report(number: int, index: int) -> None:
            if on_slice:
                on_slice(batch.ids[number], index, objects[number].mask_logits[index])

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
            batch.rows,
            batch.prompted,
            batch.note,
        )
        PROPAGATION_ORDERS[predictor.order](context, objects)

    def _segment_prompted(self, objects: list[ObjectState]) -> None:
        """Segment the slices with new prompts, each from the memories of the last propagation."""
        work = [(state, index) for state in objects for index in state.pending]
        launched = launched_ahead((number, self._launch_prompted(*work[number])) for number in range(len(work)))
        results = {number: jax.device_get(result) for number, result in launched}
        for state in objects:
            state.pending.clear()
        for number, (state, index) in enumerate(work):
            state.new_results[index] = SliceResult(*(x[0] for x in results[number]))

    def _launch_prompted(self, state: ObjectState, index: int) -> SliceResult:
        """Launch the segmentation of a slice from its prompt.

        A slice that was propagated is corrected from memory. Its earlier result, or the result of its earlier
        prompts, becomes a dense prompt.
        """
        predictor, prompt = self._predictor, state.prompts[index]
        graphdef, weights, postprocessing = predictor.graphdef, predictor.weights, predictor.postprocessing
        features, context = self._store.gather([index])
        depth = np.int32(self.depth)
        result: SliceResult
        if prompt.mask is not None:
            mask = np.asarray(prompt.mask, np.float32)[None]
            result = segment_from_masks(graphdef, weights, features, mask, postprocessing)
            return result
        direction = int(state.direction[index])
        previous = None
        if direction or state.has_prompted_result(index):
            previous = state.logits(index).clip(-PREVIOUS_LOGITS_LIMIT, PREVIOUS_LOGITS_LIMIT)
        conditioned = features.embedding  # ignored by a first prompt
        if direction:
            bank = load_bank([state], corrected_room(len(state.segmented)), [(index, direction)])
            step = PromptedStep(*np.array([[index], [direction]], np.int32))
            conditioned = condition_slice(graphdef, weights, bank, features.embedding, context, step, depth)
        tokens = prompt_tokens(prompt, predictor.model.config.image_size, previous)
        is_conditioned = np.array(direction != 0)
        result = segment_from_points(
            graphdef, weights, features, context, conditioned, is_conditioned, tokens, postprocessing
        )
        return result
