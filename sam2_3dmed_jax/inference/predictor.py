"""`VolumePredictor`: prompts on any slices of a volume in, masks of several objects out; sessions for corrections.

A session keeps features, memories and results: an added prompt encodes no slice again (`orders` walks the volume).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.compiled_steps import correct_slices, mask_slices, prompt_slices
from sam2_3dmed_jax.inference.feature_store import FeatureStore, Progress, Slices
from sam2_3dmed_jax.inference.host_arrays import HostArrays
from sam2_3dmed_jax.inference.object_state import Track, load_bank, prompted_capacity
from sam2_3dmed_jax.inference.propagation import ORDERS, Order, Walker
from sam2_3dmed_jax.prompts.prompt import Prompt, batch_prompts, power_of_two
from sam2_3dmed_jax.sam2.model import SAM2
from sam2_3dmed_jax.sam2.parameters import split

PREVIOUS_LOGITS_LIMIT = 32.0  # earlier logits are clamped before they become a dense prompt, as in the reference


@dataclass(frozen=True)
class Result:
    """Masks of K objects in the order of their ids."""

    object_ids: tuple[int, ...]
    mask_logits: np.ndarray  # float32 [K, D, S/4, S/4]; positive inside
    object_score_logits: np.ndarray  # float32 [K, D]; positive where the object is on the slice

    def logits_of(self, object_id: int) -> np.ndarray | None:
        """Return the logits of one object, float32 `[D, S/4, S/4]`, or None for an id without a mask."""
        return self.mask_logits[self.object_ids.index(object_id)] if object_id in self.object_ids else None


class VolumePredictor:
    """Segments volumes with one model; compiled functions are shared by all its sessions."""

    def __init__(self, model: SAM2, order: Order = "sequential", postprocessing: bool = True):
        """Wrap a model.

        Args:
            model: SAM2 or SAM2With3DMed.
            order: how slices are walked, see `orders`.
            postprocessing: the reference's `apply_postprocessing` without hole filling: multimask by stability, and
                binarised memories of prompted slices.

        Raises:
            UserError: no such order, or a model that takes no prompts.
        """
        if not isinstance(model, SAM2):
            raise UserError(f"a {type(model).__name__} takes no prompts; give a checkpoint of SAM 2 or SAM2-3dMed")
        if order not in ORDERS:
            raise UserError(f"order: there is no '{order}'; choose one of {', '.join(ORDERS)}")
        self.model = model
        self.order = order
        self.postprocessing = postprocessing
        self.graphdef, self.weights = split(model)

    def predict(self, slices: Slices, prompts: Sequence[Prompt], progress: Progress | None = None) -> Result:
        """Segment `slices` (float32 `[D, S, S, 3]`, normalised) from prompts, in one session."""
        session = self.start(slices, progress)
        session.add(prompts)
        return session.result()

    def start(self, slices: Slices, progress: Progress | None = None) -> Session:
        """Encode a volume once and open a session on it."""
        return Session(self, self.encode(slices, progress), progress)

    def encode(self, slices: Slices, progress: Progress | None = None) -> FeatureStore:
        """The features of a volume, on which any number of sessions may be opened (`Session(predictor, store)`)."""
        size = self.model.config.image_size
        if len(slices.shape) != 4 or slices.shape[1:] != (size, size, 3) or not len(slices):
            raise UserError(f"slices: their shape is {slices.shape}; this model takes [D, {size}, {size}, 3]")
        return FeatureStore(self.graphdef, self.weights, self.model, slices, HostArrays(), progress)


class Session:
    """One volume being segmented; keeps features, memories and results, so that corrections are cheap."""

    def __init__(self, predictor: VolumePredictor, store: FeatureStore, progress: Progress | None = None):
        self._predictor = predictor
        self._progress = progress
        self._store = store
        self._tracks: dict[int, Track] = {}
        self._dirty = False

    @property
    def depth(self) -> int:
        """D, slices of the volume."""
        return self._store.depth

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Add prompts; on a slice that has some, points add up. Nothing is computed until `result`.

        Raises:
            UserError: a prompt that does not fit the volume; none of the call's prompts are then added.
        """
        config = self._predictor.model.config
        for prompt in prompts:
            prompt.check(self.depth, config.image_size)
        for prompt in prompts:
            if prompt.object_id not in self._tracks:
                self._tracks[prompt.object_id] = Track(config, self.depth, self._store.arrays)
            track = self._tracks[prompt.object_id]
            earlier = track.prompts.get(prompt.slice)
            track.prompts[prompt.slice] = earlier.merge(prompt) if earlier else prompt
            if prompt.slice not in track.pending:
                track.pending.append(prompt.slice)
            self._dirty = True

    def reset(self) -> None:
        """Forget all prompts and their masks; the features stay."""
        self._tracks.clear()

    def preview(self) -> dict[tuple[int, int], np.ndarray]:
        """Masks of the prompted slices alone, at once: what an interactive tool shows before the volume follows.

        Returns:
            float32 logits `[S/4, S/4]` by (object id, slice). `result` goes on from there.
        """
        self._segment_prompted(list(self._tracks.values()))
        return {
            (object_id, index): np.array(track.mask_logits[index])
            for object_id, track in self._tracks.items()
            for index in sorted(track.segmented)
        }

    def result(self) -> Result:
        """Masks from all prompts so far.

        Raises:
            UserError: there are no prompts.
        """
        if not self._tracks:
            raise UserError("prompts: there are none; add at least one point, box or mask")
        ids = sorted(self._tracks)
        tracks = [self._tracks[i] for i in ids]
        if self._dirty:
            self._segment_prompted(tracks)
            p = self._predictor
            walker = Walker(p.graphdef, p.weights, p.model.config, self._store, self._progress)
            ORDERS[p.order](walker, tracks)
            self._dirty = False
        return Result(
            object_ids=tuple(ids),
            mask_logits=np.stack([track.mask_logits for track in tracks]),
            object_score_logits=np.stack([track.object_score_logits for track in tracks]),
        )

    def _segment_prompted(self, tracks: list[Track]) -> None:
        """Segment the slices with new prompts: in batches, but for corrections of slices that were walked."""
        p = self._predictor
        pending = [(track, index) for track in tracks for index in track.pending]
        masks = [(t, i) for t, i in pending if t.prompts[i].mask is not None]
        asked = [(t, i) for t, i in pending if t.prompts[i].mask is None]
        first = [(t, i) for t, i in asked if not t.direction[i] and i not in t.segmented]
        again = [(t, i) for t, i in asked if not t.direction[i] and i in t.segmented]  # no memory, as the first time
        for group in (masks, first, again):
            if not group:
                continue
            rows = power_of_two(len(group))
            features, context = self._store.gather([i for _, i in group] + [0] * (rows - len(group)))
            if group is masks:
                size = p.model.config.image_size
                stack = np.zeros((rows, size, size), np.float32)
                for row, (track, index) in enumerate(group):
                    stack[row] = track.prompts[index].mask
                result = mask_slices(p.graphdef, p.weights, features, stack, p.postprocessing)
            else:
                previous = _earlier_logits(group, rows) if group is again else None
                prompts = batch_prompts([t.prompts[i] for t, i in group], rows, previous)
                result = prompt_slices(p.graphdef, p.weights, features, context, prompts, p.postprocessing)
            result = jax.device_get(result)
            for row, (track, index) in enumerate(group):
                track.store(index, result, row)
                track.segmented.add(index)
        for track, index in asked:
            if track.direction[index]:
                self._correct(track, index)
        for track in tracks:
            track.pending.clear()

    def _correct(self, track: Track, index: int) -> None:
        p = self._predictor
        direction = int(track.direction[index])
        bank = load_bank([track], prompted_capacity([track]), [(index, direction)])
        features, context = self._store.gather([index])
        result = correct_slices(
            p.graphdef,
            p.weights,
            bank,
            features,
            context,
            np.array([index], np.int32),
            np.array([direction], np.int32),
            np.int32(self.depth),
            p.postprocessing,
            batch_prompts([track.prompts[index]], 1, _earlier_logits([(track, index)], 1)),
        )
        track.store(index, jax.device_get(result), 0)
        track.segmented.add(index)


def _earlier_logits(group: list[tuple[Track, int]], rows: int) -> np.ndarray:
    """Logits of these slices as dense prompts, float32 `[rows, S/4, S/4]`."""
    logits = np.stack([track.mask_logits[index] for track, index in group])
    padded = np.pad(logits, [(0, rows - len(group)), (0, 0), (0, 0)])
    return padded.clip(-PREVIOUS_LOGITS_LIMIT, PREVIOUS_LOGITS_LIMIT)
