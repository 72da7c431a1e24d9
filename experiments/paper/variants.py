"""What is compared: each variant is a name, a sentence, and what it changes of its task's SAM2-3dMed.

The base that variants change has SRPP shared with the mask path, positions in slices, and BD. Of two variants that are
to differ in one thing, all else is the same: data, steps, batch, window, prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from sam2_3dmed_jax.config import ExperimentConfig


@dataclass(frozen=True)
class Scoring:
    """One way to score what a run made; its results stand in `scores/NAME` of the run's folder."""

    name: str
    protocol: str = ""  # of `evaluate`; "": the method is told nothing
    label: str = ""  # stands behind the variant's name in tables
    kind: Literal["evaluate", "nearest component", "prompted by it", "positions", "directions"] = "evaluate"
    without_bd: bool = False
    all_seeds: bool = False  # else of the first few


ONE_CLICK = Scoring("one-click", "one-click", all_seeds=True)
POSITIONS = Scoring("positions", kind="positions")
DIRECTIONS = Scoring("directions", kind="directions")
AUTOMATIC = Scoring("automatic", all_seeds=True)
PROTOCOLS = (
    ONE_CLICK,
    Scoring("one-click-without-bd", "one-click", ", BD left out at inference", without_bd=True),
    Scoring("box-mid", "box-mid", ", one box"),
    Scoring("one-click-per-component", "one-click-per-component", ", a click a component"),
    Scoring("oracle-clip", "oracle-clip", ", oracle clips"),
)


@dataclass(frozen=True)
class Task:
    """A dataset, and what is trained on it. Paths are relative to the programme's root."""

    name: str
    title: str
    raw: str  # scans and references in MSD or nnU-Net layout, which are scored
    full: ExperimentConfig  # the base
    unet: ExperimentConfig
    slice_mm: float  # typical distance of slices: what one slice is worth in mm
    classes: str | None = None  # to score, as `evaluate --classes`; None: all declared ones
    tolerance_mm: str | None = None  # of NSD, as `evaluate --tolerance-mm`; None: of the task


@dataclass(frozen=True)
class Variant:
    """A row of the tables."""

    name: str  # stands in folders
    label: str  # stands in tables
    sentence: str
    change: Callable[[Task], ExperimentConfig]
    kind: Literal["trained", "given", "region growing", "probe", "files"] = "trained"
    scorings: tuple[Scoring, ...] = (ONE_CLICK,)
    against: str = ""  # the variant that it is compared with
    seeds: Literal["all", "few", "one"] = "few"
    exploratory: bool = False  # a setting that was to be chosen, and must not be by these cases


def changed(config: ExperimentConfig, **fields: Any) -> ExperimentConfig:
    """A config with fields changed, named as flags are with `__` for the dots: `model__srpp=False`."""
    for name, value in fields.items():
        config = _with(config, name.split("__"), value)
    return config


def _with(node: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    return replace(node, **{head: _with(getattr(node, head), rest, value) if rest else value})


def _full(**fields: Any) -> Callable[[Task], ExperimentConfig]:
    return lambda task: changed(task.full, **fields)


def _in_mm(task: Task) -> ExperimentConfig:
    scale = task.full.model.slice_position.scale * task.slice_mm
    return changed(task.full, model__slice_position__unit="mm", model__slice_position__scale=scale)


def _untrained(task: Task) -> ExperimentConfig:
    return changed(task.full, model__srpp=False, model__bd=False, training__steps=0)


def _clip(slices: int) -> Variant:
    return Variant(
        f"d{slices}",
        f"SAM2-3dMed, D = {slices}",
        f"Clips of {slices} slices in training, and windows of as many for the slice context.",
        _full(data__slices=slices, model__slice_position__window=slices),
        against="full",
    )


def _weight(name: str, value: float) -> Variant:
    return Variant(
        f"lambda-{name}-{value:g}",
        f"SAM2-3dMed, lambda_{name} = {value:g}",
        f"The weight of the {name.upper()} loss is {value:g}.",
        _full(**{f"training__loss__{name}": value}),
        against="full",
        exploratory=True,
    )


def paper_variants(clips: tuple[int, ...] = (3, 6, 12), base_slices: int = 12) -> tuple[Variant, ...]:
    """What issue 9 asks for. The D that the base has is the base itself."""
    return (
        Variant(
            "zero-shot",
            "SAM 2, zero-shot",
            "The checkpoint that training starts from, as it is.",
            _untrained,
            "given",
            (ONE_CLICK, DIRECTIONS),
            against="neither",
            seeds="one",
        ),
        Variant(
            "neither",
            "SAM 2, fine-tuned",
            "Neither SRPP nor BD: all that is not the encoder is trained.",
            _full(model__srpp=False, model__bd=False),
            scorings=(ONE_CLICK, DIRECTIONS),
            seeds="all",
        ),
        Variant(
            "srpp",
            "SAM 2 + SRPP",
            "SRPP, its slice context shared with the mask path; no BD.",
            _full(model__bd=False),
            scorings=(ONE_CLICK, POSITIONS, DIRECTIONS),
            against="neither",
            seeds="all",
        ),
        Variant(
            "bd",
            "SAM 2 + BD",
            "BD, its features fused into the mask; no SRPP.",
            _full(model__srpp=False),
            scorings=(ONE_CLICK, DIRECTIONS),
            against="neither",
            seeds="all",
        ),
        Variant(
            "full",
            "SAM2-3dMed",
            "SRPP and BD, positions in slices.",
            _full(),
            scorings=(*PROTOCOLS, POSITIONS, DIRECTIONS),
            against="neither",
            seeds="all",
        ),
        Variant(
            "srpp-literal",
            "SAM2-3dMed, SRPP to the letter",
            "SRPP as the paper has it: a head for training alone, with no path to the mask. With a frozen encoder it "
            "can teach nothing that segments.",
            _full(model__slice_position__to_mask=False),
            scorings=(ONE_CLICK, POSITIONS),
            against="full",
        ),
        Variant(
            "srpp-memory",
            "SAM2-3dMed, SRPP with memory",
            "SRPP to the letter, but it reads order from features that have seen the memory, which it so trains (the "
            "paper's ablation, where it did harm).",
            _full(model__slice_position__to_mask=False, model__slice_position__memory=True),
            against="srpp-literal",
        ),
        Variant(
            "bd-unsupervised",
            "SAM2-3dMed, BD without its loss",
            "The BD branch and its fusion are there, its loss weighs 0: a control for their capacity.",
            _full(training__loss__bd=0.0),
            against="full",
        ),
        Variant(
            "context-unsupervised",
            "SAM2-3dMed, slice attention without the SRPP loss",
            "The slice context and its path to the mask are there, the SRPP loss weighs 0: attention across slices.",
            _full(training__loss__srpp=0.0),
            against="full",
        ),
        Variant(
            "learned-position",
            "SAM2-3dMed, learned slice position",
            "As slice attention without the SRPP loss, but a learned embedding tells each slice its place in the clip.",
            _full(training__loss__srpp=0.0, model__slice_position__told_order=True),
            against="full",
        ),
        Variant(
            "mm",
            "SAM2-3dMed, in mm",
            "SRPP's targets are millimetres, in units of the task's typical slice.",
            _in_mm,
            scorings=(ONE_CLICK, POSITIONS),
            against="full",
        ),
        Variant(
            "scratch",
            "SAM2-3dMed, no pre-training",
            "From random weights; all is trained, the encoder too, at the same rate.",
            _full(model__init="", data__features=""),
            against="full",
        ),
        *(_clip(slices) for slices in clips if slices != base_slices),
        *(_weight("srpp", value) for value in (0.001, 0.1)),
        *(_weight("bd", value) for value in (0.01, 1.0)),
        Variant(
            "unet",
            "U-Net (ours, of nnU-Net's kind)",
            "A residual 3D U-Net, told nothing; and the two bridges between the blocks.",
            lambda task: task.unet,
            scorings=(
                AUTOMATIC,
                Scoring("nearest-component", "one-click", ", component nearest the click", "nearest component"),
                Scoring("prompts", "one-click", "SAM2-3dMed, clicked by the U-Net", "prompted by it"),
            ),
        ),
        Variant(
            "region-growing",
            "Region growing",
            "From the same click (control): densities alone.",
            _untrained,
            "region growing",
            seeds="one",
        ),
        Variant(
            "position-probe",
            "Probe: body area and mean HU",
            "Positions from the body's area and mean HU alone, by least squares (control of SRPP's task; no masks).",
            _untrained,
            "probe",
            (POSITIONS,),
            seeds="one",
        ),
    )


@dataclass(frozen=True)
class Others:
    """Label maps of another method, as it predicted them on the folds of ours."""

    label: str
    folders: str  # {task} and {fold} are filled in; CASE.nii.gz each
    trained_on_these_cases: Literal["yes", "no", "unknown"]  # METHOD.md: each method declares it
    protocol: str = ""  # how it was prompted from the references

    def variant(self) -> Variant:
        """Its row."""
        told = f"Label maps in {self.folders}; trained on these cases: {self.trained_on_these_cases}."
        scoring = Scoring("files", self.protocol, all_seeds=True)
        name = "".join(letter if letter.isalnum() else "-" for letter in self.label.lower())
        return Variant(f"others-{name}", self.label, told, _untrained, "files", (scoring,), seeds="one")
