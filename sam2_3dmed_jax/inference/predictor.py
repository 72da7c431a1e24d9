"""`VolumePredictor`: prompts on any slices of a volume in, masks of several objects out; sessions for corrections.

Orders: `sequential` walks forward from an object's earliest prompt, then backward, where the first slices see the
forward memories (the reference's `propagate_in_video` and its reverse). `independent` walks both directions at once
and averages the logits between an object's first and last prompt; it is symmetric under flipping the volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.feature_store import BLOCK, FeatureStore, Progress
from sam2_3dmed_jax.inference.prompt import Prompt, batch_prompts, power_of_two
from sam2_3dmed_jax.inference.propagate import (
    SliceResult,
    Steps,
    correct_slices,
    mask_slices,
    prompt_slices,
    walk_block,
)
from sam2_3dmed_jax.inference.tracks import Track, load_bank, prompted_capacity
from sam2_3dmed_jax.sam2.model import NO_OBJECT_LOGIT, SAM2
from sam2_3dmed_jax.sam2.parameters import split

Order = Literal["sequential", "independent"]
PREVIOUS_LOGITS_LIMIT = 32.0  # earlier logits are clamped before they become a dense prompt, as in the reference


@dataclass(frozen=True)
class Result:
    """Masks of K objects in the order of their ids."""

    object_ids: tuple[int, ...]
    mask_logits: np.ndarray  # float32 [K, D, S/4, S/4]; positive inside
    object_score_logits: np.ndarray  # float32 [K, D]; positive where the object is on the slice


class VolumePredictor:
    """Segments volumes with one model; compiled functions are shared by all its sessions."""

    def __init__(self, model: SAM2, order: Order = "sequential", postprocessing: bool = True):
        """Wrap a model.

        Args:
            model: SAM2 or SAM2With3DMed.
            order: how slices are walked, see the module's docstring.
            postprocessing: the reference's `apply_postprocessing` without hole filling: multimask by stability, and
                binarised memories of prompted slices.

        Raises:
            UserError: no such order.
        """
        if order not in ("sequential", "independent"):
            raise UserError(f"order: there is no '{order}'; choose 'sequential' or 'independent'")
        self.model = model
        self.order = order
        self.postprocessing = postprocessing
        self.graphdef, self.weights = split(model)

    def predict(self, slices: np.ndarray, prompts: Sequence[Prompt], progress: Progress | None = None) -> Result:
        """Segment `slices` (float32 `[D, S, S, 3]`, normalised) from prompts, in one session."""
        session = self.start(slices, progress)
        session.add(prompts)
        return session.result()

    def start(self, slices: np.ndarray, progress: Progress | None = None) -> Session:
        """Encode a volume once and open a session on it."""
        size = self.model.config.image_size
        if slices.ndim != 4 or slices.shape[1:] != (size, size, 3) or not len(slices):
            raise UserError(f"slices: their shape is {slices.shape}; this model takes [D, {size}, {size}, 3]")
        return Session(self, slices, progress)


class Session:
    """One volume being segmented; keeps features, memories and results, so that corrections are cheap."""

    def __init__(self, predictor: VolumePredictor, slices: np.ndarray, progress: Progress | None = None):
        self._predictor = predictor
        self._progress = progress
        self._store = FeatureStore(predictor.graphdef, predictor.weights, predictor.model, slices, progress)
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
            track = self._tracks.setdefault(prompt.object_id, Track(config, self.depth))
            earlier = track.prompts.get(prompt.slice)
            track.prompts[prompt.slice] = earlier.merge(prompt) if earlier else prompt
            if prompt.slice not in track.pending:
                track.pending.append(prompt.slice)
            self._dirty = True

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
            if self._predictor.order == "sequential":
                self._walk_sequential(tracks)
            else:
                self._walk_independent(tracks)
            self._dirty = False
        return Result(
            object_ids=tuple(ids),
            mask_logits=np.stack([track.mask_logits for track in tracks]),
            object_score_logits=np.stack([track.object_score_logits for track in tracks]),
        )

    def _segment_prompted(self, tracks: list[Track]) -> None:
        """Segment the slices with new prompts: first ones in one batch, corrections one by one on their memory."""
        p = self._predictor
        pending = [(track, index) for track in tracks for index in track.pending]
        masks = [(t, i) for t, i in pending if t.prompts[i].mask is not None]
        first = [(t, i) for t, i in pending if t.prompts[i].mask is None and not t.direction[i]]
        for group in (masks, first):
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
                prompts = batch_prompts([t.prompts[i] for t, i in group], rows)
                result = prompt_slices(p.graphdef, p.weights, features, context, prompts, p.postprocessing)
            result = jax.device_get(result)
            for row, (track, index) in enumerate(group):
                track.store(index, result, row)
                track.segmented.add(index)
        for track, index in pending:
            if track.prompts[index].mask is None and track.direction[index]:
                self._correct(track, index)
        for track in tracks:
            track.pending.clear()

    def _correct(self, track: Track, index: int) -> None:
        p = self._predictor
        direction = int(track.direction[index])
        bank = load_bank([track], prompted_capacity([track]), [(index, direction)])
        features, context = self._store.gather([index])
        previous = np.clip(track.mask_logits[index][None], -PREVIOUS_LOGITS_LIMIT, PREVIOUS_LOGITS_LIMIT)
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
            batch_prompts([track.prompts[index]], 1, previous),
        )
        track.store(index, jax.device_get(result), 0)
        track.segmented.add(index)

    def _walk_sequential(self, tracks: list[Track]) -> None:
        starts = np.array([track.start for track in tracks])
        for direction, path in ((1, range(starts.min(), self.depth)), (-1, range(starts.max(), -1, -1))):
            # Re-walked slices find the memories of an earlier result beyond their start, as the reference does.
            bank = load_bank(tracks, prompted_capacity(tracks), [(t.start, direction) for t in tracks])
            wanted = np.array([[(i - s) * direction >= 0 for s in starts] for i in path])
            name = "walking up" if direction > 0 else "walking down"
            for steps, result in self._walk(bank, tracks, np.array(path)[:, None], wanted, (direction,), name):
                for step, index in enumerate(steps):
                    for row, track in enumerate(tracks):
                        if wanted[step_of(path, index), row]:
                            self._keep(track, index, result, step, row, direction)
        self._mark_prompted(tracks)

    def _walk_independent(self, tracks: list[Track]) -> None:
        k, last = len(tracks), self.depth - 1
        first, final = min(t.start for t in tracks), max(t.last for t in tracks)
        length = max(last - first, final) + 1
        path = np.stack([first + np.arange(length), final - np.arange(length)], axis=1)  # [steps, 2]
        inside = (path >= 0) & (path <= last)
        up = np.stack([inside[:, 0] & (path[:, 0] >= t.start) for t in tracks], axis=1)
        down = np.stack([inside[:, 1] & (path[:, 1] <= t.last) for t in tracks], axis=1)
        for track in tracks:
            track.direction[:] = 0  # walks start from the prompted slices alone
        bank = load_bank([*tracks, *tracks], prompted_capacity(tracks), None)
        wanted = np.concatenate([up, down], axis=1)
        # Slices between prompts are met twice; the first visit waits here for the second.
        waiting: dict[tuple[int, int], tuple[np.ndarray, float]] = {}
        done = 0
        for steps, result in self._walk(bank, tracks, np.clip(path, 0, last), wanted, (1, -1), "walking"):
            for step in range(len(steps)):
                for row in range(2 * k):
                    track, direction = tracks[row % k], 1 if row < k else -1
                    index = int(path[done + step, row // k])
                    if not wanted[done + step, row] or index in track.segmented:
                        continue
                    if not track.start < index < track.last:
                        self._keep(track, index, result, step, row, direction)
                        continue
                    logits = np.asarray(result.mask_logits[step, row])
                    score = float(result.object_score_logits[step, row])
                    key = (row % k, index)
                    if key not in waiting:
                        waiting[key] = logits, score
                        if direction > 0:
                            self._keep(track, index, result, step, row, direction)
                        continue
                    other, other_score = waiting.pop(key)
                    if direction > 0:
                        self._keep(track, index, result, step, row, direction)
                    track.mask_logits[index] = (logits + other) / 2
                    track.object_score_logits[index] = (score + other_score) / 2
            done += len(steps)
        self._mark_prompted(tracks)

    def _walk(
        self,
        bank: object,
        tracks: list[Track],
        path: np.ndarray,
        wanted: np.ndarray,
        directions: tuple[int, ...],
        name: str,
    ) -> Iterator[tuple[list[int], SliceResult]]:
        """Walk `path [steps, G]` in blocks; yields the first direction's slices and host results of each block."""
        p, k, groups = self._predictor, len(tracks), len(directions)
        direction = np.repeat(np.array(directions, np.int32), k)
        index = np.repeat(path, k, axis=1).astype(np.int32)
        prompted = np.array([[int(i) in tracks[r % k].segmented for r, i in enumerate(row)] for row in index])
        active = wanted & ~prompted
        for begin in range(0, len(path), BLOCK):
            end = min(begin + BLOCK, len(path))
            if not active[begin:end].any():
                yield [int(i) for i in path[begin:end, 0]], _nothing(end - begin, k * groups, p.model)
                continue
            pad = [(0, BLOCK - (end - begin))]
            features, context = self._store.gather(np.pad(path[begin:end], [*pad, (0, 0)], mode="edge").reshape(-1))
            steps = Steps(
                features=jax.tree.map(lambda x: x.reshape(BLOCK, groups, *x.shape[1:]), features),
                context=context.reshape(BLOCK, groups, -1),  # type: ignore[arg-type]
                on=np.pad(index[begin:end], [*pad, (0, 0)], mode="edge"),  # type: ignore[arg-type]
                active=np.pad(active[begin:end], [*pad, (0, 0)]),  # type: ignore[arg-type]
            )
            bank, result = walk_block(p.graphdef, p.weights, bank, steps, direction, np.int32(self.depth))
            yield [int(i) for i in path[begin:end, 0]], jax.device_get(result)
            if self._progress:
                self._progress(name, end, len(path))

    @staticmethod
    def _keep(track: Track, index: int, result: SliceResult, step: int, row: int, direction: int) -> None:
        if index in track.segmented:
            return
        track.store(index, SliceResult(*(x[step] for x in result)), row)
        track.direction[index] = direction

    @staticmethod
    def _mark_prompted(tracks: list[Track]) -> None:
        """A prompt added later to a prompted slice corrects it, in the direction that the reference used."""
        for track in tracks:
            for index in track.segmented:
                track.direction[index] = 1 if index > track.start else -1 if track.start > 0 else 1


def step_of(path: range, index: int) -> int:
    """Which step of a walk a slice is."""
    return abs(index - path.start)


def _nothing(steps: int, rows: int, model: SAM2) -> SliceResult:
    side = model.config.image_size // 4
    logits = np.broadcast_to(np.float32(NO_OBJECT_LOGIT), (steps, rows, side, side))
    none = np.zeros((steps, rows, 0), np.float32)
    return SliceResult(logits, np.zeros((steps, rows), np.float32), none, none)  # type: ignore[arg-type]
