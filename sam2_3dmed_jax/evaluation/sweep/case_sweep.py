"""One case under all settings of its checkpoints: it is encoded once, and all thresholds use the same logits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sam2_3dmed_jax.data.datasets import LabelledCase
from sam2_3dmed_jax.evaluation.interactive import CorrectedSession
from sam2_3dmed_jax.evaluation.score_cases import score_classes
from sam2_3dmed_jax.evaluation.score_row import PROMPTED, ScoreRow
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.evaluation.sweep.cells import Cells, RowsByThreshold
from sam2_3dmed_jax.evaluation.sweep.entries import Entry
from sam2_3dmed_jax.evaluation.sweep.factors import Setting, for_model
from sam2_3dmed_jax.evaluation.sweep.features import CaseFeatures, Models
from sam2_3dmed_jax.inference.feature_store import FeatureStore
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.prompts.perturbation import OTHER, Displacement, place_prompts
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, relevant_prompts
from sam2_3dmed_jax.prompts.simulated_user import corrections
from sam2_3dmed_jax.volume.io import read_labels, read_volume, stored_modality
from sam2_3dmed_jax.volume.label_classes import LabelClass, Target
from sam2_3dmed_jax.volume.modality import ModalitySources

Propagations = dict[Setting, list[float]]  # the settings that need a propagation of their own, and their thresholds


def propagations_of(settings: Sequence[Setting], entry: Entry) -> Propagations:
    """Return the propagations that settings need of a checkpoint, and the thresholds applied to the logits of each."""
    propagations: Propagations = {}
    for setting in for_model(settings, entry.has_boundary):
        propagations.setdefault(setting.propagation, []).append(setting.threshold)
    return propagations


@dataclass(frozen=True, eq=False)
class CaseSweep:
    """Computes the missing cells of cases."""

    settings: list[Setting]
    evaluation: EvaluationSettings  # without a protocol: prompts are made as a setting specifies
    seed: int  # of prompts
    cells: Cells
    on_propagation: Callable[[], None]  # called after each propagation, computed now or earlier
    stop: threading.Event = field(default_factory=threading.Event)  # ends the work after the current propagation

    def __call__(self, models: Models, case: LabelledCase, entries: Sequence[Entry]) -> None:
        """Compute the missing cells of a case; if none is missing, nothing is read or encoded.

        Args:
            models: of the device.
            case: to score.
            entries: the checkpoints that are scored on it.

        Raises:
            UserError: files that cannot be read or written, or do not fit each other.
        """
        scans: dict[str, _Scan] = {}  # by modality: checkpoints without one may read a scan in another way
        for entry in entries:
            sources = replace(self.evaluation.modality, preprocessing=entry.info.preprocessing)
            store: FeatureStore | None = None
            for propagation, thresholds in propagations_of(self.settings, entry).items():
                if self.stop.is_set():
                    return
                finished = self.cells.get(entry, case.id, propagation)
                if missing := [threshold for threshold in thresholds if threshold not in finished]:
                    modality = sources.modality(stored_modality(case.image), case.image)
                    if modality not in scans:
                        scans[modality] = _Scan(case, modality)
                    scan = scans[modality]
                    loaded = models.get(entry)
                    store = store or scan.features.of(loaded)
                    predictor = loaded.predictor(propagation, entry.has_boundary and propagation.bd == "on")
                    rows = self._rows(scan, entry, propagation, missing, predictor, store)
                    self.cells.add(entry, case.id, propagation, {**finished, **rows})
                self.on_propagation()

    def _rows(
        self,
        scan: _Scan,
        entry: Entry,
        propagation: Setting,
        thresholds: Sequence[float],
        predictor: VolumePredictor,
        store: FeatureStore,
    ) -> RowsByThreshold:
        grid = scan.volume.grid
        prompts, placed = place_prompts(
            propagation.prompting, scan.case.id, scan.reference, grid, self.evaluation.objects, self.seed
        )
        scored_classes = list(self.evaluation.classes)
        if propagation.prompt_of == OTHER:
            present = [t for t in self.evaluation.objects if np.isin(scan.reference, t).any()]
            scored_classes = [class_ for class_ in scored_classes if is_swapped(class_, present, placed)]
            if not scored_classes:
                return {threshold: [] for threshold in thresholds}
        method_columns = {
            "method": entry.model,
            "trained_on_these_cases": entry.trained,
            "fold": entry.fold,
            "seed": entry.seed,
        }
        evaluation = replace(
            self.evaluation, classes=scored_classes, targets=self.evaluation.objects, method_columns=method_columns
        )
        _, height, width = scan.volume.array.shape
        session = CorrectedSession(predictor, store, (height, width))
        session.add(prompts)
        for _ in range(propagation.corrections):
            clicks = corrections(session.labels(), scan.reference, grid.spacing, self.evaluation.objects)
            session.add({target: [correction.prompt] for target, correction in clicks.items()})
        rows: RowsByThreshold = {}
        for threshold in thresholds:
            labels = session.labels(threshold)
            scored = score_classes(scan.case.id, labels, scan.reference, grid, session.prompts, evaluation)
            rows[threshold] = [
                {
                    **row,
                    "block": PROMPTED,
                    "protocol": propagation.protocol,
                    **_placement_columns(class_.values, prompts, placed),
                }
                for row, class_ in zip(scored, evaluation.classes, strict=True)
            ]
        return rows


def is_swapped(class_: LabelClass, present: Sequence[Target], placed: Mapping[Target, Displacement]) -> bool:
    """Return whether prompts of other objects test a class: all of its objects in the case have one from outside of it.

    Args:
        class_: to score.
        present: the objects of the case.
        placed: of the objects that have the prompts of another one.
    """
    own = [target for target in present if not set(target).isdisjoint(class_.values)]
    return bool(own) and all(
        target in placed and set(placed[target].prompt_of).isdisjoint(class_.values) for target in own
    )


class _Scan:
    """A case with its volume, reference and features."""

    def __init__(self, case: LabelledCase, modality: str):
        self.case = case
        self.volume = read_volume(case.image, modality=ModalitySources(given=modality))
        self.reference = read_labels(case.label, self.volume)
        self.features = CaseFeatures(self.volume)


def _placement_columns(values: Sequence[int], prompts: ObjectPrompts, placed: dict[Any, Displacement]) -> ScoreRow:
    """Return the columns that describe where the prompts that decide about label values were placed."""
    relevant_ids = {prompt.object_id for prompt in relevant_prompts(values, prompts)}
    placements = [placed[target] for target, drawn in prompts.items() if drawn[0].object_id in relevant_ids]
    if not placements:
        return {"moved_mm": float("nan"), "prompted_onto": ""}
    onto = dict.fromkeys(part for placement in placements for part in placement.prompted_onto.split("+"))
    moved_mm = float(np.mean([placement.moved_mm for placement in placements]))
    return {"moved_mm": moved_mm, "prompted_onto": "+".join(onto)}
