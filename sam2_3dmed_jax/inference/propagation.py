"""How a volume is walked from its prompted slices, in blocks of slices.

`sequential` walks forward from an object's earliest prompt, then backward, where the first slices see the forward
memories (the reference's `propagate_in_video` and its reverse). `independent` walks both directions at once and
averages the logits between an object's first and last prompt; it is symmetric under flipping the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from flax import nnx

from sam2_3dmed_jax.config import Sam2Config
from sam2_3dmed_jax.inference.compiled_steps import SliceResult, Steps, walk_block
from sam2_3dmed_jax.inference.feature_store import BLOCK, FeatureStore, Progress
from sam2_3dmed_jax.inference.object_state import Track, load_bank, prompted_capacity
from sam2_3dmed_jax.sam2.memory_bank import MemoryBank
from sam2_3dmed_jax.sam2.model import NO_OBJECT_LOGIT
from sam2_3dmed_jax.sam2.parameters import Weights

Order = Literal["sequential", "independent"]


@dataclass(frozen=True)
class Walker:
    """What a walk needs: a model, and the features of a volume."""

    graphdef: nnx.GraphDef
    weights: Weights
    config: Sam2Config
    store: FeatureStore
    progress: Progress | None


def walk_sequential(walker: Walker, tracks: list[Track]) -> None:
    """Walk up from each object's earliest prompt, then down; results go into the tracks."""
    starts = np.array([track.start for track in tracks])
    for direction, path in ((1, range(starts.min(), walker.store.depth)), (-1, range(starts.max(), -1, -1))):
        # Re-walked slices find the memories of an earlier result beyond their start, as the reference does.
        bank = load_bank(tracks, prompted_capacity(tracks), [(t.start, direction) for t in tracks])
        wanted = np.array([[(i - s) * direction >= 0 for s in starts] for i in path])
        name = "walking up" if direction > 0 else "walking down"
        for steps, result in _walk(walker, bank, tracks, np.array(path)[:, None], wanted, (direction,), name):
            for step, index in enumerate(steps):
                for row, track in enumerate(tracks):
                    if wanted[_step_of(path, index), row]:
                        _keep(track, index, result, step, row, direction)
    _mark_prompted(tracks)


def walk_independent(walker: Walker, tracks: list[Track]) -> None:
    """Walk up and down at once, each from the prompted slices alone; results go into the tracks."""
    k, last = len(tracks), walker.store.depth - 1
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
    for steps, result in _walk(walker, bank, tracks, np.clip(path, 0, last), wanted, (1, -1), "walking"):
        for step in range(len(steps)):
            for row in range(2 * k):
                track, direction = tracks[row % k], 1 if row < k else -1
                index = int(path[done + step, row // k])
                if not wanted[done + step, row] or index in track.segmented:
                    continue
                if not track.start < index < track.last:
                    _keep(track, index, result, step, row, direction)
                    continue
                logits = np.asarray(result.mask_logits[step, row])
                score = float(result.object_score_logits[step, row])
                key = (row % k, index)
                if key not in waiting:
                    waiting[key] = logits, score
                    if direction > 0:
                        _keep(track, index, result, step, row, direction)
                    continue
                other, other_score = waiting.pop(key)
                if direction > 0:
                    _keep(track, index, result, step, row, direction)
                track.mask_logits[index] = (logits + other) / 2
                track.object_score_logits[index] = (score + other_score) / 2
        done += len(steps)
    _mark_prompted(tracks)


def _walk(
    walker: Walker,
    bank: MemoryBank,
    tracks: list[Track],
    path: np.ndarray,
    wanted: np.ndarray,
    directions: tuple[int, ...],
    name: str,
) -> Iterator[tuple[list[int], SliceResult]]:
    """Walk `path [steps, G]` in blocks; yields the first direction's slices and host results of each block."""
    k, groups = len(tracks), len(directions)
    direction = np.repeat(np.array(directions, np.int32), k)
    index = np.repeat(path, k, axis=1).astype(np.int32)
    prompted = np.array([[int(i) in tracks[r % k].segmented for r, i in enumerate(row)] for row in index])
    active = wanted & ~prompted
    for begin in range(0, len(path), BLOCK):
        end = min(begin + BLOCK, len(path))
        if not active[begin:end].any():
            yield [int(i) for i in path[begin:end, 0]], _nothing(end - begin, k * groups, walker.config)
            continue
        pad = [(0, BLOCK - (end - begin))]
        features, context = walker.store.gather(np.pad(path[begin:end], [*pad, (0, 0)], mode="edge").reshape(-1))
        steps = Steps(
            features=jax.tree.map(lambda x: x.reshape(BLOCK, groups, *x.shape[1:]), features),
            context=context.reshape(BLOCK, groups, -1),  # type: ignore[arg-type]
            on=np.pad(index[begin:end], [*pad, (0, 0)], mode="edge"),  # type: ignore[arg-type]
            active=np.pad(active[begin:end], [*pad, (0, 0)]),  # type: ignore[arg-type]
        )
        bank, result = walk_block(walker.graphdef, walker.weights, bank, steps, direction, np.int32(walker.store.depth))
        yield [int(i) for i in path[begin:end, 0]], jax.device_get(result)
        if walker.progress:
            walker.progress(name, end, len(path))


def _keep(track: Track, index: int, result: SliceResult, step: int, row: int, direction: int) -> None:
    if index in track.segmented:
        return
    track.store(index, SliceResult(*(x[step] for x in result)), row)
    track.direction[index] = direction


def _mark_prompted(tracks: list[Track]) -> None:
    """A prompt added later to a prompted slice corrects it, in the direction that the reference used."""
    for track in tracks:
        for index in track.segmented:
            track.direction[index] = 1 if index > track.start else -1 if track.start > 0 else 1


def _step_of(path: range, index: int) -> int:
    """Which step of a walk a slice is."""
    return abs(index - path.start)


def _nothing(steps: int, rows: int, config: Sam2Config) -> SliceResult:
    side = config.image_size // 4
    logits = np.broadcast_to(np.float32(NO_OBJECT_LOGIT), (steps, rows, side, side))
    none = np.zeros((steps, rows, 0), np.float32)
    return SliceResult(logits, np.zeros((steps, rows), np.float32), none, none)  # type: ignore[arg-type]


ORDERS: dict[Order, Callable[[Walker, list[Track]], None]] = {
    "sequential": walk_sequential,
    "independent": walk_independent,
}
