"""Protocol 'interactive': a simulated user prompts, looks at the segmentation, and corrects it by clicks.

A model is corrected in one session per case, which encodes each slice once. The files of any other method are scored
from one folder per interaction.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sam2_3dmed_jax.evaluation.cost import CaseCost, Meter
from sam2_3dmed_jax.evaluation.interactions import CURVES, Interaction
from sam2_3dmed_jax.evaluation.prompted_segmentation import paint_nested_objects
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.inference.feature_store import FeatureStore
from sam2_3dmed_jax.inference.predictor import Result, Session, VolumePredictor
from sam2_3dmed_jax.inference.segment import label_result, to_slices
from sam2_3dmed_jax.metrics.mask_pair import MaskPair
from sam2_3dmed_jax.metrics.registry import compute_metrics
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, relevant_prompts
from sam2_3dmed_jax.prompts.simulated_user import (
    Correction,
    InteractionRules,
    Refinement,
    corrections,
    initial_prompts,
    with_prompts,
)
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.intensity import PreparedSlices
from sam2_3dmed_jax.volume.label_classes import LabelClass, Target
from sam2_3dmed_jax.volume.label_layers import LabelLayers

Segment = Callable[[ObjectPrompts], np.ndarray]  # from the prompts of one interaction to the label map [D, H, W]


class Step(NamedTuple):
    """The segmentation after one interaction."""

    labels: np.ndarray  # integers [D, H, W]
    corrections: Mapping[Target, Correction]  # the clicks of this interaction
    prompts: ObjectPrompts  # all prompts so far, the corrections of this step among them
    clicks: Mapping[int, int]  # corrective clicks so far, by object id
    cost: CaseCost | None  # None: nothing was segmented, because all masks are perfect or nothing is prompted
    result: Result | None = None  # of a model, that the label map is computed from


class CorrectedSession:
    """A session on an encoded volume whose label map follows each round of prompts."""

    def __init__(
        self,
        predictor: VolumePredictor,
        store: FeatureStore,
        shape: tuple[int, int],
        refinement: Refinement = "tracked",
    ):
        """Open a session.

        Args:
            predictor: the model.
            store: features of the volume.
            shape: (H, W), voxels of a slice.
            refinement: as in `InteractionRules`.
        """
        self._predictor = predictor
        self._store = store
        self._shape = shape
        self._refinement = refinement
        self._session = Session(predictor, store)
        self.prompts: ObjectPrompts = {}  # all so far
        self.result: Result | None = None  # of all prompts; None before the first one

    def add(self, prompts: ObjectPrompts) -> None:
        """Segment the volume with further prompts, if there are any."""
        if not prompts:
            return
        self.prompts = with_prompts(self.prompts, prompts)
        added = prompts
        if self._refinement == "anew":
            self._session, added = Session(self._predictor, self._store), self.prompts
        every_prompt = [prompt for of_object in added.values() for prompt in of_object]
        self._session.add(to_slices(every_prompt, self._shape, self._predictor.model.config.image_size))
        self.result = self._session.result()

    def labels(self, threshold: float = 0.0) -> np.ndarray:
        """Return the label map, uint16 `[D, H, W]`; nested objects are painted over those around them.

        Args:
            threshold: logits above it are inside.
        """
        if self.result is None:
            return np.zeros((self._store.depth, *self._shape), np.uint16)
        return paint_nested_objects(label_result(self.result, self._shape, threshold), self.prompts)


def interact(
    segment: Segment,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    objects: Sequence[Target],
    rules: InteractionRules,
) -> Iterator[Step]:
    """Yield the steps of a simulated user: the initial prompt, then N rounds of corrective clicks.

    Args:
        segment: called with the prompts of one interaction, if there are any; the segmentation before it is empty.
        reference: integers `[D, H, W]`.
        spacing: (dz, dy, dx) in mm.
        objects: label values of each object.
        rules: of the user.
    """
    added = initial_prompts(rules, reference, spacing, objects)
    clicked: Mapping[Target, Correction] = {}
    clicks: Counter[int] = Counter()
    prompts: ObjectPrompts = {}
    labels = np.zeros(reference.shape, np.uint16)
    for number in range(rules.interactions + 1):
        if number:
            clicked = corrections(labels, reference, spacing, objects, rules.click_rule)
            added = {target: [correction.prompt] for target, correction in clicked.items()}
            clicks.update(correction.prompt.object_id for correction in clicked.values())
        cost = None
        if added:
            prompts = with_prompts(prompts, added)
            with Meter() as meter:
                labels = segment(added)
            cost = meter.columns(0)
        yield Step(labels, clicked, prompts, dict(clicks), cost)


def correct_volume(
    predictor: VolumePredictor,
    volume: Volume,
    reference: np.ndarray,
    objects: Sequence[Target],
    rules: InteractionRules,
) -> Iterator[Step]:
    """Yield the steps of a simulated user with a model, which encodes the volume once.

    The cost of the first step includes the encoding.

    Args:
        predictor: the model.
        volume: the scan.
        reference: integers `[D, H, W]`, on the grid of the volume.
        objects: label values of each object.
        rules: of the user.
    """
    with Meter() as meter:
        slices = PreparedSlices(volume, predictor.model.info.preprocessing, predictor.model.config.image_size)
        store = predictor.encode(slices)
    encoding: CaseCost | None = meter.columns(0)
    _, height, width = volume.array.shape
    session = CorrectedSession(predictor, store, (height, width), rules.refinement)

    def segment(prompts: ObjectPrompts) -> np.ndarray:
        session.add(prompts)
        return session.labels()

    for step in interact(segment, reference, volume.spacing, objects, rules):
        # The user waits for the encoding together with the first mask.
        cost = total_cost([cost for cost in (encoding, step.cost) if cost])
        yield step._replace(cost=cost, result=session.result)
        encoding = None


def total_cost(costs: Sequence[CaseCost], flops: int = 0) -> CaseCost | None:
    """Return the cost of all parts together; None without parts."""
    if not costs:
        return None
    return CaseCost(
        seconds=sum(cost["seconds"] for cost in costs),
        tflops=flops / 1e12,
        peak_host_mib=max(cost["peak_host_mib"] for cost in costs),
        peak_device_mib=max(cost["peak_device_mib"] for cost in costs),
        compiled="yes" if any(cost["compiled"] == "yes" for cost in costs) else "no",
    )


def score_step(
    number: int,
    labels: np.ndarray | LabelLayers,
    reference: np.ndarray | LabelLayers,
    grid: Grid,
    settings: EvaluationSettings,
    step: Step | None = None,
) -> dict[str, Interaction]:
    """Return the scores of each class that a reference has, after one interaction, by name.

    Args:
        number: of the interaction.
        labels: integers `[D, H, W]`, or layers of them.
        reference: integers `[D, H, W]`, or layers of them.
        grid: of both.
        settings: of the evaluation.
        step: of a model; None: the prompts are not known, because the labels are files.
    """
    scores = {}
    for entry in settings.classes:
        pair = MaskPair(
            entry.mask(labels),
            entry.mask(reference),
            grid,
            tolerance_mm=entry.tolerance_mm,
            settings=settings.metrics,
        )
        if not pair.reference.any():
            continue
        metrics = compute_metrics(pair, CURVES)
        rules = settings.rule_columns
        scores[entry.name] = Interaction(
            interaction=number,
            dice=metrics["dice"],
            nsd=metrics["nsd"],
            hd95_mm=metrics["hd95_mm"],
            empty=pair.empty,
            clicks=_clicks(entry, step) if step else None,
            click=_click(entry, step) if step else "",
            seconds=step.cost["seconds"] if step and step.cost else math.nan,
            compiled=step.cost["compiled"] if step and step.cost else "",
            initial=rules["initial"],
            click_rule=rules["click_rule"],
            refinement=rules["refinement"],
        )
    return scores


def _clicks(entry: LabelClass, step: Step) -> int:
    """Return the number of corrective clicks so far on the objects that decide about a class."""
    ids = {prompt.object_id for prompt in relevant_prompts(entry.values, step.prompts)}
    return sum(number for object_id, number in step.clicks.items() if object_id in ids)


def _click(entry: LabelClass, step: Step) -> str:
    """Return the click of this step on the object that a class is; "" without one."""
    for target, correction in step.corrections.items():
        if set(target) == set(entry.values):
            return " ".join(map(str, correction.click.voxel)) + (" inside" if correction.click.inside else " outside")
    return ""
