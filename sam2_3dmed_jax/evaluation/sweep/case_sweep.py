"""One case under all settings of its checkpoints: features once, thresholds laid on the same logits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sam2_3dmed_jax.data.datasets import Case
from sam2_3dmed_jax.evaluation.prompted_segmentation import painted
from sam2_3dmed_jax.evaluation.score_cases import rows_of
from sam2_3dmed_jax.evaluation.settings import Plan
from sam2_3dmed_jax.evaluation.summary import PROMPTED, Row
from sam2_3dmed_jax.evaluation.sweep.cells import Cells, Rows
from sam2_3dmed_jax.evaluation.sweep.entries import Entry
from sam2_3dmed_jax.evaluation.sweep.features import CaseFeatures, Models
from sam2_3dmed_jax.evaluation.sweep.settings import Setting, for_model
from sam2_3dmed_jax.inference.feature_store import FeatureStore
from sam2_3dmed_jax.inference.predictor import Session, VolumePredictor
from sam2_3dmed_jax.inference.segment import label_result, to_slices
from sam2_3dmed_jax.prompts.perturbation import Placed, place_prompts
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, deciding
from sam2_3dmed_jax.volume.io import read_labels, read_volume

Walks = dict[Setting, list[float]]  # the thresholds of each propagation


def walks_of(settings: Sequence[Setting], entry: Entry) -> Walks:
    """The walks that settings need of a checkpoint, and the thresholds that are laid on the logits of each."""
    walks: Walks = {}
    for setting in for_model(settings, entry.has_boundary):
        walks.setdefault(setting.propagation, []).append(setting.threshold)
    return walks


@dataclass(frozen=True, eq=False)
class CaseSweep:
    """Finishes the cells of cases."""

    settings: list[Setting]
    plan: Plan  # without a protocol: a setting says how prompts are made
    seed: int  # of prompts
    cells: Cells
    walked: Callable[[], None]  # told of each walk that is done, here or before
    stop: threading.Event = field(default_factory=threading.Event)  # ends the work after the walk under way

    def __call__(self, models: Models, case: Case, entries: Sequence[Entry]) -> None:
        """Finish the cells of a case; what is finished is not computed again, and nothing is read or encoded for it.

        Raises:
            UserError: files that cannot be read, do not fit, or cannot be written.
        """
        scan: _Scan | None = None
        for entry in entries:
            store: FeatureStore | None = None
            for walk, thresholds in walks_of(self.settings, entry).items():
                if self.stop.is_set():
                    return
                done = self.cells.get(entry, case.id, walk)
                if missing := [threshold for threshold in thresholds if threshold not in done]:
                    scan = scan or _Scan(case)
                    loaded = models.get(entry)
                    store = store or scan.features.of(loaded)
                    predictor = loaded.predictors[walk.order, entry.has_boundary and walk.bd == "on"]
                    found = self._rows(scan, entry, walk, missing, predictor, store)
                    self.cells.add(entry, case.id, walk, {**done, **found})
                self.walked()

    def _rows(
        self,
        scan: _Scan,
        entry: Entry,
        walk: Setting,
        thresholds: Sequence[float],
        predictor: VolumePredictor,
        store: FeatureStore,
    ) -> Rows:
        grid = scan.volume.grid
        prompts, placed = place_prompts(
            walk.prompting, scan.case.id, scan.reference, grid, self.plan.objects, self.seed
        )
        about = {"method": entry.model, "trained_on_these_cases": entry.trained, "fold": entry.fold, "seed": entry.seed}
        plan = replace(self.plan, about=about)
        rows: Rows = {}
        labels = _label_maps(predictor, store, prompts, scan.volume.array.shape, thresholds)
        for threshold, found in zip(thresholds, labels, strict=True):
            rows[threshold] = [
                {**row, "block": PROMPTED, "protocol": walk.protocol, **_became(entry_of.values, prompts, placed)}
                for row, entry_of in zip(
                    rows_of(scan.case.id, found, scan.reference, grid, prompts, plan), plan.classes, strict=True
                )
            ]
        return rows


class _Scan:
    """A case as it is read, with its features."""

    def __init__(self, case: Case):
        self.case = case
        self.volume = read_volume(case.image)
        self.reference = read_labels(case.label, self.volume)
        self.features = CaseFeatures(self.volume)


def _label_maps(
    predictor: VolumePredictor,
    store: FeatureStore,
    prompts: ObjectPrompts,
    shape: tuple[int, ...],
    thresholds: Sequence[float],
) -> Iterator[np.ndarray]:
    """A label map `[D, H, W]` a threshold, all objects in one session."""
    if not prompts:
        yield from (np.zeros(shape, np.uint16) for _ in thresholds)
        return
    _, height, width = shape
    session = Session(predictor, store)
    own = [prompt for given in prompts.values() for prompt in given]
    session.add(to_slices(own, (height, width), predictor.model.config.image_size))
    result = session.result()
    for threshold in thresholds:
        yield painted(label_result(result, (height, width), threshold), prompts)


def _became(values: Sequence[int], prompts: ObjectPrompts, placed: dict[Any, Placed]) -> Row:
    """What became of the prompts that decide where label values go."""
    told = {prompt.object_id for prompt in deciding(values, prompts)}
    own = [placed[target] for target, given in prompts.items() if given[0].object_id in told]
    if not own:
        return {"moved_mm": float("nan"), "prompted_onto": ""}
    onto = dict.fromkeys(part for one in own for part in one.onto.split("+"))
    return {"moved_mm": float(np.mean([one.moved_mm for one in own])), "prompted_onto": "+".join(onto)}
