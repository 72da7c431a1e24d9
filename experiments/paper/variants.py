"""Variants of a programme: each has a name, a sentence, and its change of the task's SAM2-3dMed.

The base that variants change has SRPP shared with the mask path, positions in slices, and BD. Variants that differ in
one thing share everything else: data, steps, batch, window, prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from sam2_3dmed_jax.config import ExperimentConfig


@dataclass(frozen=True)
class Scoring:
    """One way to score the result of a run; its results are in `scores/NAME` of the run's folder."""

    name: str
    protocol: str = ""  # a protocol of `evaluate`; "": the method gets no prompts
    label: str = ""  # appended to the variant's name in tables
    kind: Literal["evaluate", "nearest component", "prompts from predictions", "positions", "directions"] = "evaluate"
    without_bd: bool = False
    all_seeds: bool = False  # otherwise, the first few seeds


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
    """A dataset and the experiments on it. Paths are relative to the programme's root."""

    name: str
    title: str
    raw: str  # scans and references to score, in MSD or nnU-Net layout
    full: ExperimentConfig  # the base
    unet: ExperimentConfig
    slice_mm: float  # typical distance between slices in mm
    classes: str | None = None  # classes to score, as `evaluate --classes`; None: all declared classes
    tolerance_mm: str | None = None  # of NSD, as `evaluate --tolerance-mm`; None: the task's default


@dataclass(frozen=True)
class Variant:
    """A row of the tables."""

    name: str  # in names of folders
    label: str  # in tables
    sentence: str
    change: Callable[[Task], ExperimentConfig]
    kind: Literal["trained", "given", "region growing", "probe", "files"] = "trained"
    scorings: tuple[Scoring, ...] = (ONE_CLICK,)
    against: str = ""  # name of the variant to compare with
    seeds: Literal["all", "few", "one"] = "few"
    exploratory: bool = False  # a setting that must not be selected by these cases


def changed(config: ExperimentConfig, **fields: Any) -> ExperimentConfig:
    """Return a config with changed fields; names are those of flags with `__` for dots: `model__srpp=False`."""
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
        f"Clips of {slices} slices in training, and windows of the same size for the slice context.",
        _full(data__slices=slices),
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
    """Return the variants of the paper's tables; a D equal to the base is the base itself."""
    return (
        Variant(
            "zero-shot",
            "SAM 2, zero-shot",
            "The initial checkpoint of training, unchanged.",
            _untrained,
            "given",
            (ONE_CLICK, DIRECTIONS),
            against="neither",
            seeds="one",
        ),
        Variant(
            "neither",
            "SAM 2, fine-tuned",
            "Neither SRPP nor BD: everything except the encoder is trained.",
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
            "SRPP as in the paper: a head for training only, without a path to the mask. With a frozen encoder, its "
            "loss changes no parameter that affects the mask.",
            _full(model__slice_position__to_mask=False),
            scorings=(ONE_CLICK, POSITIONS),
            against="full",
        ),
        Variant(
            "srpp-memory",
            "SAM2-3dMed, SRPP with memory",
            "SRPP to the letter, on features after memory attention, which its loss then trains (the paper's "
            "ablation, in which it was harmful).",
            _full(model__slice_position__to_mask=False, model__slice_position__memory=True),
            against="srpp-literal",
        ),
        Variant(
            "bd-unsupervised",
            "SAM2-3dMed, BD without its loss",
            "The BD branch and its fusion with a loss weight of 0: a control for their capacity.",
            _full(training__loss__bd=0.0),
            against="full",
        ),
        Variant(
            "context-unsupervised",
            "SAM2-3dMed, slice attention without the SRPP loss",
            "The slice context and its path to the mask with an SRPP loss weight of 0: attention across slices.",
            _full(training__loss__srpp=0.0),
            against="full",
        ),
        Variant(
            "learned-position",
            "SAM2-3dMed, learned slice position",
            "Slice attention without the SRPP loss, with a learned embedding of each slice's place in the clip.",
            _full(training__loss__srpp=0.0, model__slice_position__order_embedding=True),
            against="full",
        ),
        Variant(
            "mm",
            "SAM2-3dMed, in mm",
            "SRPP's targets are in millimetres, in units of the task's typical slice distance.",
            _in_mm,
            scorings=(ONE_CLICK, POSITIONS),
            against="full",
        ),
        Variant(
            "scratch",
            "SAM2-3dMed, no pre-training",
            "From random weights; everything including the encoder is trained, at the same rate.",
            _full(model__init="", data__features=""),
            against="full",
        ),
        *(_clip(slices) for slices in clips if slices != base_slices),
        *(_weight("srpp", value) for value in (0.001, 0.1)),
        *(_weight("bd", value) for value in (0.01, 1.0)),
        Variant(
            "unet",
            "U-Net (ours, of nnU-Net's kind)",
            "A residual 3D U-Net without prompts, and its two combinations with clicks.",
            lambda task: task.unet,
            scorings=(
                AUTOMATIC,
                Scoring("nearest-component", "one-click", ", component nearest the click", "nearest component"),
                Scoring("prompts", "one-click", "SAM2-3dMed, clicked by the U-Net", "prompts from predictions"),
            ),
        ),
        Variant(
            "region-growing",
            "Region growing",
            "From the same click, by densities only (control).",
            _untrained,
            "region growing",
            seeds="one",
        ),
        Variant(
            "position-probe",
            "Probe: body area and mean HU",
            "Positions from the body's area and mean HU only, by least squares (control of SRPP's task; no masks).",
            _untrained,
            "probe",
            (POSITIONS,),
            seeds="one",
        ),
    )


@dataclass(frozen=True)
class OtherMethod:
    """Label maps of another method, predicted on our folds."""

    label: str
    folders: str  # with {task} and {fold}; each contains CASE.nii.gz files
    trained_on_these_cases: Literal["yes", "no", "unknown"]  # declared for each method (docs/explanation/evaluation.md)
    protocol: str = ""  # protocol that prompted it from the references

    def variant(self) -> Variant:
        """Return its row of the tables."""
        sentence = f"Label maps in {self.folders}; trained on these cases: {self.trained_on_these_cases}."
        scoring = Scoring("files", self.protocol, all_seeds=True)
        name = "".join(letter if letter.isalnum() else "-" for letter in self.label.lower())
        return Variant(f"others-{name}", self.label, sentence, _untrained, "files", (scoring,), seeds="one")
