"""What `evaluate` does: a checkpoint, any method's files, or finished results become tables and a summary."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from etils import epath

from sam2_3dmed_jax.data.datasets import fingerprint, on_disk, read_dataset
from sam2_3dmed_jax.data.split_choice import absolute, run_of, split_to_score
from sam2_3dmed_jax.data.split_files import listed
from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.evaluation.comparison import compare, comparison_texts
from sam2_3dmed_jax.evaluation.console_lines import class_line, difference_line
from sam2_3dmed_jax.evaluation.cost import fixed_cost
from sam2_3dmed_jax.evaluation.journal import FinishedCases
from sam2_3dmed_jax.evaluation.label_files import by_name, find_pairs, label_values
from sam2_3dmed_jax.evaluation.report import report_page
from sam2_3dmed_jax.evaluation.report.worst_cases import WORST
from sam2_3dmed_jax.evaluation.results import (
    CASES,
    LESIONS,
    RELIABILITY,
    REPORT,
    SUMMARY,
    read_fixed_cost,
    read_results,
    write_results,
)
from sam2_3dmed_jax.evaluation.score_cases import Progress, evaluate_files, evaluate_model
from sam2_3dmed_jax.evaluation.scores import Measure
from sam2_3dmed_jax.evaluation.settings import Plan
from sam2_3dmed_jax.evaluation.summary import AUTOMATIC, Row, summarise
from sam2_3dmed_jax.inference.automatic import AutomaticPredictor
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.metrics.reliability import WIDTH_MM
from sam2_3dmed_jax.model.checkpoint import load_model, without_boundary
from sam2_3dmed_jax.prompts.protocols import EXPLAINED
from sam2_3dmed_jax.unet.network import UNet
from sam2_3dmed_jax.volume import label_classes
from sam2_3dmed_jax.volume.label_classes import LabelClass

TRAINED = ("yes", "no", "unknown")


@dataclass(frozen=True)
class Wanted:
    """The words of the command that say what is scored and how, as the user gives them."""

    out: str
    classes: str | None = None
    targets: str | None = None
    tumours: str | None = None
    tolerance_mm: str | None = None
    definition: str = "surface-distance"
    empty: str = "diagonal"
    metrics: str = "all"
    resample: bool = False
    protocol: str | None = None
    method: str | None = None
    trained_on_these_cases: str | None = None
    seed: str | None = None
    without_bd: bool = False
    prompts_from: str | None = None
    nearest_component: bool = False
    band_mm: float = WIDTH_MM
    save: str = ""  # folder for the label maps of a checkpoint
    others: Sequence[Row] = field(default_factory=tuple)  # results to compare with

    @property
    def measure(self) -> Measure:
        """How masks are measured."""
        return Measure(self.definition, self.empty, self.metrics == "all", self.resample)

    def chosen(self, classes: Sequence[LabelClass], task: str = "") -> list[LabelClass]:
        """Classes with the tolerances and tumours that the user names."""
        tolerant = label_classes.with_tolerances(classes, self.tolerance_mm, task)
        return label_classes.with_tumours(tolerant, self.tumours)

    def plan(self, classes: Sequence[LabelClass], protocol: str, about: dict[str, Any]) -> Plan:
        """The plan of these classes."""
        targets = label_classes.parse_targets(self.targets) if self.targets else None
        return Plan(classes, protocol, targets=targets, measure=self.measure, about=about, pictures=WORST)

    def about(self, method: str, trained: str, fold: Any = "") -> dict[str, Any]:
        """The columns that say whose results these are."""
        return {
            "method": self.method or method,
            "trained_on_these_cases": self.trained_on_these_cases or trained,
            "fold": fold,
            "seed": self.seed or "",
        }


def score_checkpoint(
    checkpoint: str, data: str, order: Any, split: Mapping[str, Any], wanted: Wanted, progress: Progress
) -> list[str]:
    """Segment and score the held-out cases of a dataset; goes on where it was interrupted.

    Args:
        checkpoint: folder of a native checkpoint.
        data: folder of a dataset.
        order: of the two directions.
        split: fields of `split_choice.FIELDS` that the user gives.
        wanted: the rest.
        progress: told of each case.

    Returns:
        Lines to print.

    Raises:
        UserError: whatever does not fit.
    """
    dataset = on_disk(read_dataset(data))
    declared = dataset.labels
    if not declared and not wanted.classes:
        raise UserError(
            f"--classes: {data} has no dataset.json that declares labels; give those to score, such as "
            "--classes 1=spleen"
        )
    named = label_classes.parse_classes(wanted.classes, declared) if wanted.classes else None
    classes = wanted.chosen(named or label_classes.declared_classes(declared), dataset.name)
    known = fingerprint(dataset)
    chosen = split_to_score([case.id for case in dataset.cases], known, checkpoint, split)
    cases = [case for case in dataset.cases if case.id in set(chosen.test)]
    run = run_of(checkpoint, known)
    how = {"split": "kfold", "fold": 0, **run, **split}
    fold = how["fold"] if how["split"] == "kfold" else ""
    # That none of these cases was trained on, the split has checked, if the run trained on this dataset.
    about = wanted.about(os.path.basename(os.path.normpath(checkpoint)), "no" if run else "unknown", fold)
    about["seed"] = about["seed"] or run.get("seed", "")
    model = load_model(checkpoint)
    automatic = isinstance(model, UNet)
    plan = wanted.plan(classes, wanted.protocol or ("" if automatic else "one-click"), about)
    if wanted.without_bd:
        with naming("--without-bd"):
            model = without_boundary(model)
        about |= {"bd": "left out", "method": wanted.method or f"{about['method']} without BD"}
    if wanted.prompts_from:
        if automatic:
            raise UserError(f"--prompts-from: {checkpoint} is a U-Net, which takes no prompts; leave it out")
        files = by_name(wanted.prompts_from)
        if not any(case.id in files for case in cases):
            raise UserError(
                f"--prompts-from: {wanted.prompts_from} has no prediction of the {len(cases)} cases to score, first "
                f"{cases[0].id}.nii.gz; name each like its case"
            )
        plan = replace(plan, prompt_files={case.id: str(files[case.id]) for case in cases if case.id in files})
    predictor = AutomaticPredictor(model) if automatic else VolumePredictor(model, order)
    plan = replace(plan, band_mm=wanted.band_mm, clip_slices=predictor.model.info.model.slice_position.window)
    plan = replace(plan, save=absolute(wanted.save))
    prompting = [_written(file) for file in (plan.prompt_files or {}).values()]
    finished = FinishedCases(
        wanted.out, {"plan": repr(plan), "order": order, "files": [known, _stamp(checkpoint), *prompting]}
    )
    rows = evaluate_model(predictor, cases, plan, progress, finished)
    lines = _write(rows, wanted, [fixed_cost(predictor)])
    finished.remove()
    return [*(f"note: {warning}" for warning in dataset.warnings), *lines]


def score_files(
    predictions: str,
    references: str,
    images: str | None,
    remap: str | None,
    fold: Any,
    wanted: Wanted,
    progress: Progress,
) -> list[str]:
    """Score the files of any method.

    Args:
        predictions: folder of NIfTI files.
        references: folder of NIfTI files of the same names.
        images: folder of their scans, for the pictures of the report, or None.
        remap: label values of predictions that become others, `2=1,3=1`.
        fold: of these cases.
        wanted: the rest.
        progress: told of each case.

    Returns:
        Lines to print.

    Raises:
        UserError: whatever does not fit.
    """
    pairs, unused = find_pairs(predictions, references, images)
    values = label_classes.parse_remap(remap)
    if wanted.classes:
        classes = label_classes.parse_classes(wanted.classes, {})
    else:
        classes = [LabelClass(str(value), (value,)) for value in label_values(pairs)]
    about = wanted.about(os.path.basename(os.path.normpath(predictions)), "unknown", fold)
    plan = wanted.plan(wanted.chosen(classes), wanted.protocol or "", about)
    if wanted.nearest_component:
        plan = replace(plan, protocol="one-click", nearest_component=True)
    # A run of the same words goes on behind the cases that are done.
    files = [[_written(path) for path in (pair.prediction, pair.reference, pair.image)] for pair in pairs]
    finished = FinishedCases(wanted.out, {"plan": repr(plan), "remap": sorted(values.items()), "files": files})
    rows = evaluate_files(pairs, plan, progress, values, wanted.resample, finished)
    notes = []
    if missing := [pair.case for pair in pairs if pair.prediction is None]:
        notes.append(
            f"note: {len(missing)} of {len(pairs)} predictions are missing and count as empty: {listed(missing)}"
        )
    if unused:
        notes.append(f"note: {len(unused)} predictions have no reference and are left out: {listed(unused)}")
    if rows[0]["block"] == AUTOMATIC:
        notes.append("note: taken for an automatic method's; if it was prompted from the references, give --protocol")
    lines = _write(rows, wanted)
    finished.remove()
    return [*notes, *lines]


def score_results(folders: Sequence[str], wanted: Wanted) -> list[str]:
    """Summarise finished evaluations together: folds, or seeds, of one method.

    Returns:
        Lines to print.

    Raises:
        UserError: results that cannot be read or do not belong together.
    """
    return _write(read_all(folders), wanted, [read_fixed_cost(folder) for folder in folders])


def read_all(folders: Sequence[str]) -> list[Row]:
    """The rows of finished evaluations.

    Raises:
        UserError: results that cannot be read.
    """
    return [row for folder in folders for row in read_results(folder)]


def _write(rows: list[Row], wanted: Wanted, fixed: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Summarise, compare, write, and tell."""
    summary = summarise(rows, fixed)
    comparison = compare(rows, wanted.others) if wanted.others else None
    beside = comparison_texts(comparison) if comparison else {}
    write_results(rows, summary, wanted.out, {**beside, REPORT: report_page(rows, summary, comparison)})
    told = [f"protocol {name}: {EXPLAINED[name]}" for name in summary["protocol"] if name in EXPLAINED]
    lines = [*told, *(class_line(name, entry) for name, entry in summary["classes"].items())]
    files = [CASES, *([LESIONS] if any("lesions" in row for row in rows) else [])]
    files += [*([RELIABILITY] if any(row.get("reliability") for row in rows) else []), SUMMARY, REPORT]
    if comparison:
        files.insert(-2, "comparison.json")
        lines += [difference_line(entry, comparison["other"]) for entry in comparison["results"] if entry["primary"]]
    return [*lines, f"{', '.join(files[:-1])} and {files[-1]} in {wanted.out} (for research use only)"]


def _written(path: str | os.PathLike[str] | None) -> list[Any]:
    """What changes when a file is replaced."""
    if path is None:
        return []
    found = os.stat(path)
    return [os.path.realpath(path), found.st_size, found.st_mtime_ns]


def _stamp(checkpoint: str) -> list[Any]:
    """What changes when a checkpoint is replaced: its `config.json` is written last."""
    written = (epath.Path(checkpoint) / "config.json").stat()
    return [absolute(checkpoint), written.length, written.mtime]
