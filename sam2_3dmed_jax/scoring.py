"""What `evaluate` does: a checkpoint, any method's files, or finished results become tables and a summary."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from etils import epath

from sam2_3dmed_jax.data.msd import fingerprint, on_disk, read_dataset
from sam2_3dmed_jax.data.split_choice import absolute, run_of, split_to_score
from sam2_3dmed_jax.data.split_files import listed
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation import label_classes
from sam2_3dmed_jax.evaluation.comparison import compare, comparison_texts
from sam2_3dmed_jax.evaluation.evaluator import Plan, Progress, evaluate_files, evaluate_model
from sam2_3dmed_jax.evaluation.finished import FinishedCases
from sam2_3dmed_jax.evaluation.label_classes import LabelClass
from sam2_3dmed_jax.evaluation.label_files import find_pairs, label_values
from sam2_3dmed_jax.evaluation.protocol import PROTOCOLS
from sam2_3dmed_jax.evaluation.report import report_page
from sam2_3dmed_jax.evaluation.report.pictures import WORST
from sam2_3dmed_jax.evaluation.results import CASES, LESIONS, REPORT, SUMMARY, read_results, write_results
from sam2_3dmed_jax.evaluation.scores import Measure
from sam2_3dmed_jax.evaluation.summary import AUTOMATIC, Row, summarise
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.model.checkpoint import load_model

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
    others: Sequence[Row] = field(default_factory=tuple)  # results to compare with

    @property
    def measure(self) -> Measure:
        """How masks are measured."""
        return Measure(self.definition, self.empty, self.metrics == "all", self.resample)

    def chosen(self, classes: Sequence[LabelClass], task: str = "") -> list[LabelClass]:
        """Classes with the tolerances and tumours that the user names."""
        tolerant = label_classes.with_tolerances(classes, self.tolerance_mm, task)
        return label_classes.with_tumours(tolerant, self.tumours)

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
    targets = label_classes.parse_targets(wanted.targets) if wanted.targets else None
    known = fingerprint(dataset)
    chosen = split_to_score([case.id for case in dataset.cases], known, checkpoint, split)
    cases = [case for case in dataset.cases if case.id in set(chosen.test)]
    run = run_of(checkpoint, known)
    how = {"split": "kfold", "fold": 0, **run, **split}
    fold = how["fold"] if how["split"] == "kfold" else ""
    # That none of these cases was trained on, the split has checked, if the run trained on this dataset.
    about = wanted.about(os.path.basename(os.path.normpath(checkpoint)), "no" if run else "unknown", fold)
    about["seed"] = about["seed"] or run.get("seed", "")
    plan = Plan(classes, wanted.protocol or "one-click", targets, measure=wanted.measure, about=about, pictures=WORST)
    predictor = VolumePredictor(load_model(checkpoint), order)
    plan = replace(plan, clip_slices=predictor.model.info.model.slice_position.window)
    finished = FinishedCases(wanted.out, {"plan": repr(plan), "order": order, "files": [known, _stamp(checkpoint)]})
    rows = evaluate_model(predictor, cases, plan, progress, finished)
    lines = _write(rows, wanted)
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
    targets = label_classes.parse_targets(wanted.targets) if wanted.targets else None
    about = wanted.about(os.path.basename(os.path.normpath(predictions)), "unknown", fold)
    plan = Plan(
        wanted.chosen(classes), wanted.protocol or "", targets, measure=wanted.measure, about=about, pictures=WORST
    )
    rows = evaluate_files(pairs, plan, progress, values, wanted.resample)
    notes = []
    if missing := [pair.case for pair in pairs if pair.prediction is None]:
        notes.append(
            f"note: {len(missing)} of {len(pairs)} predictions are missing and count as empty: {listed(missing)}"
        )
    if unused:
        notes.append(f"note: {len(unused)} predictions have no reference and are left out: {listed(unused)}")
    if rows[0]["block"] == AUTOMATIC:
        notes.append("note: taken for an automatic method's; if it was prompted from the references, give --protocol")
    return [*notes, *_write(rows, wanted)]


def score_results(folders: Sequence[str], wanted: Wanted) -> list[str]:
    """Summarise finished evaluations together: folds, or seeds, of one method.

    Returns:
        Lines to print.

    Raises:
        UserError: results that cannot be read or do not belong together.
    """
    return _write(read_all(folders), wanted)


def read_all(folders: Sequence[str]) -> list[Row]:
    """The rows of finished evaluations.

    Raises:
        UserError: results that cannot be read.
    """
    return [row for folder in folders for row in read_results(folder)]


def _write(rows: list[Row], wanted: Wanted) -> list[str]:
    """Summarise, compare, write, and tell."""
    summary = summarise(rows)
    comparison = compare(rows, wanted.others) if wanted.others else None
    beside = comparison_texts(comparison) if comparison else {}
    write_results(rows, summary, wanted.out, {**beside, REPORT: report_page(rows, summary, comparison)})
    told = [f"protocol {name}: {PROTOCOLS[name]}" for name in summary["protocol"] if name in PROTOCOLS]
    lines = [*told, *(_line(name, entry) for name, entry in summary["classes"].items())]
    files = [CASES, *([LESIONS] if any("lesions" in row for row in rows) else []), SUMMARY, REPORT]
    if comparison:
        files.insert(-2, "comparison.json")
        lines += [_difference(entry, comparison["other"]) for entry in comparison["results"] if entry["primary"]]
    return [*lines, f"{', '.join(files[:-1])} and {files[-1]} in {wanted.out} (for research use only)"]


def _line(name: str, entry: dict[str, Any]) -> str:
    """A class in one line, with what must never be left unsaid: tolerance, unit, counts."""

    def told(metric: str, digits: int) -> str:
        mean = entry[metric]["mean"]
        return "none" if mean is None else f"{mean:.{digits}f}"

    words = f"{name}: mean Dice {told('dice', 3)} over {entry['dice']['n']} cases"
    if "nsd" in entry:
        words += f", NSD {told('nsd', 3)} at {entry['tolerance_mm']:g} mm, HD95 {told('hd95_mm', 1)} mm"
    empty = entry["empty"]
    counts = [f"{number} with an empty {kind}" for kind, number in empty.items() if number and kind != "both"]
    counts += [f"{empty['both']} with both empty"] if empty["both"] else []
    if "lesions" in entry:
        found = entry["lesions"]
        counts.append(f"{found['found']} of {found['lesions']} lesions found, {found['false_positives']} false")
    return f"{words} ({'; '.join(counts)})" if counts else words


def _difference(entry: dict[str, Any], other: str) -> str:
    if entry["difference"] is None:
        return f"{entry['class']}: no {entry['metric']} to compare with {other}"
    low, high = entry["ci95"] or (entry["difference"],) * 2
    p = "" if entry["p_holm"] is None else f", p = {entry['p_holm']:.3g} (Wilcoxon, Holm)"
    return (
        f"{entry['class']}: {entry['metric']} {entry['difference']:+.3f} [{low:+.3f}, {high:+.3f}] against {other} "
        f"over {entry['cases']} cases{p}"
    )


def _stamp(checkpoint: str) -> list[Any]:
    """What changes when a checkpoint is replaced: its `config.json` is written last."""
    written = (epath.Path(checkpoint) / "config.json").stat()
    return [absolute(checkpoint), written.length, written.mtime]
