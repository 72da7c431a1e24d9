"""Evaluation runs: a checkpoint, the files of any method, or finished results are scored, summarised and written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.config import MemorySelection
from sam2_3dmed_jax.data.datasets import Dataset, dataset_files, read_dataset, require_folder
from sam2_3dmed_jax.data.held_out import DatasetCases, held_out_cases
from sam2_3dmed_jax.data.split_choice import absolute_path
from sam2_3dmed_jax.data.split_files import first_ids
from sam2_3dmed_jax.errors import UserError, naming, number_of
from sam2_3dmed_jax.evaluation.comparison import compare_methods, comparison_cases, comparison_texts
from sam2_3dmed_jax.evaluation.console_lines import class_line, curve_line, difference_line
from sam2_3dmed_jax.evaluation.cost import fixed_cost
from sam2_3dmed_jax.evaluation.journal import Journal
from sam2_3dmed_jax.evaluation.label_files import by_name, find_pairs, find_steps, label_values
from sam2_3dmed_jax.evaluation.report import report_page
from sam2_3dmed_jax.evaluation.report.worst_cases import WORST
from sam2_3dmed_jax.evaluation.result_files import (
    CASES,
    COMPARISON,
    COMPARISON_CASES,
    DISTANCE,
    INTERACTIONS,
    LESIONS,
    RELIABILITY,
    REPORT,
    RESULT_FILES,
    SUMMARY,
    read_fixed_cost,
    read_results,
    write_results,
)
from sam2_3dmed_jax.evaluation.score_cases import evaluate_model
from sam2_3dmed_jax.evaluation.score_files import FileReading, default_workers, evaluate_steps
from sam2_3dmed_jax.evaluation.score_row import AUTOMATIC, ScoreRow
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.evaluation.summary import summarise
from sam2_3dmed_jax.inference.automatic import AutomaticPredictor
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.metrics.mask_pair import MetricSettings
from sam2_3dmed_jax.metrics.reliability import WIDTH_MM
from sam2_3dmed_jax.model.checkpoint import load_model, read_info, without_boundary
from sam2_3dmed_jax.prompts.protocols import INTERACTIVE, PROTOCOL_DESCRIPTIONS
from sam2_3dmed_jax.prompts.simulated_user import InteractionRules
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice
from sam2_3dmed_jax.runtime.folder_lock import one_writer
from sam2_3dmed_jax.runtime.output_plan import Input, OutputFile, check_outputs
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.runtime.worker_processes import number_of_workers
from sam2_3dmed_jax.unet.network import UNet
from sam2_3dmed_jax.volume import label_classes
from sam2_3dmed_jax.volume.formats import all_suffixes, suffix_of
from sam2_3dmed_jax.volume.io import stored_modality
from sam2_3dmed_jax.volume.label_classes import LabelClass
from sam2_3dmed_jax.volume.modality import ModalitySources, assumption_note, dicom_modality, parse_modality
from sam2_3dmed_jax.volume.zoom import OFF, parse_zoom, zoom_text

ANOTHER_OUT = "give another --out"


@dataclass(frozen=True)
class ScoringOptions:
    """What to score and how, with the values of the flags of `sam2-3dmed evaluate` that have the same names."""

    out: str  # folder of the tables and the report
    classes: str | None = None  # "1=spleen,1+2=both"; None: all labels
    targets: str | None = None  # "1+2,2", the objects to prompt; None: derived from the classes
    tumours: str | None = None  # names of the classes that are counted by lesions; None: recognised by name
    tolerance_mm: str | None = None  # of the NSD, "2" or "cancer=2,3"; None: the default of the task
    definition: str = "surface-distance"  # of the surface metrics
    empty: str = "diagonal"  # distances where one mask is empty: "diagonal" or "nan"
    metrics: str = "all"  # "all", or "overlap" without surface metrics
    resample: bool = False  # put files on other grids, and slanted grids, on the reference's regular grid
    protocol: str | None = None  # how objects are prompted; None: the default of the model
    # Rules of the protocol 'interactive', see `InteractionRules`. None: its default, or not known of files.
    interactions: int | None = None
    initial: Any = None
    click_rule: Any = None
    refinement: Any = None
    method: str | None = None  # name in each row; None: the name of the folder
    trained_on_these_cases: str | None = None  # "yes", "no" or "unknown"; None: derived from the run
    seed: str | None = None  # of the training run, for each row
    without_bd: bool = False  # leave out the boundary branch of the checkpoint
    prompts_from: str | None = None  # folder of an automatic method's predictions that prompts are drawn from
    nearest_component: bool = False  # reduce predictions to the component nearest to one click per object
    band_mm: float = WIDTH_MM  # half width of the band in which probabilities are judged
    modality: str | None = None  # "ct", "mr" or "pet"; None: as the dataset declares, and as the checkpoint was trained
    save: str = ""  # folder for the label maps that the checkpoint predicts; "": they are not kept
    zoom: str = "off"  # of the checkpoint on each object: "off", "auto" or the side of its first region in mm
    others: Sequence[ScoreRow] = field(default_factory=tuple)  # rows of finished results to compare with

    @property
    def metric_settings(self) -> MetricSettings:
        """The metrics and their definitions."""
        return MetricSettings(self.definition, self.empty, self.metrics == "all", self.resample)

    def scored_classes(self, classes: Sequence[LabelClass], task: str = "") -> list[LabelClass]:
        """Return the classes with the requested tolerances, and with the requested ones marked as tumours."""
        tolerant = label_classes.with_tolerances(classes, self.tolerance_mm, task)
        return label_classes.with_tumours(tolerant, self.tumours)

    @property
    def given_rules(self) -> dict[str, Any]:
        """The rules of the protocol 'interactive' that the user gives, by the field of `InteractionRules`.

        Raises:
            UserError: a rule has an invalid value, or is given with another protocol.
        """
        names = [rule.name for rule in fields(InteractionRules)]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if given and self.protocol != INTERACTIVE:
            flag = f"--{next(iter(given)).replace('_', '-')}"
            raise UserError(f"{flag} is for --protocol interactive; give that protocol too, or leave {flag} out")
        InteractionRules(**given)
        return given

    def settings(
        self, classes: Sequence[LabelClass], names: Mapping[int, str], protocol: str, method_columns: dict[str, Any]
    ) -> EvaluationSettings:
        """Return the settings that score these classes; `names` are the declared names of the labels."""
        targets = label_classes.parse_targets(self.targets, names) if self.targets else None
        return EvaluationSettings(
            classes,
            protocol,
            targets=targets,
            metrics=self.metric_settings,
            method_columns=method_columns,
            pictures=WORST,
        )

    def modality_sources(self, dataset: Dataset | None = None, checkpoint: str = "") -> ModalitySources:
        """Return what is known about the modality of the scans.

        Raises:
            UserError: the requested modality is not known, or the checkpoint cannot be read.
        """
        given = parse_modality(self.modality, "--modality")
        declared = dicom_modality(dataset.modality) if dataset else ""
        if not checkpoint:
            return ModalitySources(given, declared)
        return ModalitySources(given, declared, read_info(checkpoint).preprocessing, checkpoint)

    def method_columns(self, method: str, trained: str, fold: Any = "") -> dict[str, Any]:
        """Return the columns that identify the method and its training run."""
        return {
            "method": self.method or method,
            "trained_on_these_cases": self.trained_on_these_cases or trained,
            "fold": fold,
            "seed": self.seed or "",
        }


def score_checkpoint(
    checkpoint: str,
    data: str,
    order: Any,
    compute_dtype: ComputeDtypeChoice,
    split: Mapping[str, Any],
    options: ScoringOptions,
    progress: Progress,
    memory_selection: MemorySelection | None = None,
) -> list[str]:
    """Segment and score the held-out cases of a dataset; an interrupted evaluation resumes.

    Args:
        checkpoint: folder of a native checkpoint.
        data: folder of a dataset.
        order: of the two directions of propagation.
        compute_dtype: as in `load_model`.
        split: fields of `split_choice.SPLIT_FIELDS` that the user sets.
        options: all other options of the command.
        progress: called after each case.
        memory_selection: as in `load_model`.

    Returns:
        Lines to print.

    Raises:
        UserError: an invalid option, files that cannot be read or do not fit each other, or another process that writes
            the same results.
    """
    rules = InteractionRules(**options.given_rules) if options.protocol == INTERACTIVE else None
    dataset = require_folder(read_dataset(data))
    if not dataset.labels and not options.classes:
        raise UserError(
            f"--classes: {data} has no dataset.json that declares labels; give those to score, such as "
            "--classes 1=spleen"
        )
    named = label_classes.parse_classes(options.classes, dataset.labels) if options.classes else None
    classes = options.scored_classes(named or label_classes.declared_classes(dataset.labels), dataset.name)
    held_out = held_out_cases(DatasetCases(dataset, progress), checkpoint, split)
    scored, run = set(held_out.split.test), held_out.run
    cases = [case for case in dataset.cases if case.id in scored]
    chosen = {"split": "kfold", "fold": 0, **run, **split}
    method_columns = options.method_columns(
        os.path.basename(os.path.normpath(checkpoint)),
        held_out.trained,
        chosen["fold"] if chosen["split"] == "kfold" else "",
    )
    method_columns["seed"] = method_columns["seed"] or run.get("seed", "")
    sources = options.modality_sources(dataset, checkpoint)
    stored = {case.id: stored_modality(case.image) for case in cases}
    for case in cases:
        sources.modality(stored[case.id], case.image)
    assumed = [case_id for case_id, modality in stored.items() if sources.is_assumed(modality)]
    with naming("--memory-selection") if memory_selection else contextlib.nullcontext():
        model = load_model(checkpoint, compute_dtype=compute_dtype, memory_selection=memory_selection)
    automatic = isinstance(model, UNet)
    if options.without_bd:
        with naming("--without-bd"):
            model = without_boundary(model)
        name = options.method or f"{method_columns['method']} without BD"
        method_columns |= {"bd": "left out", "method": name}
    zoom = parse_zoom(options.zoom)
    if zoom != OFF:
        if automatic:
            raise UserError(f"--zoom: {checkpoint} is a U-Net, which takes no prompts to zoom on; leave it out")
        method_columns["method"] = options.method or f"{method_columns['method']} zoom {zoom_text(zoom)}"
    protocol = options.protocol or ("" if automatic else "one-click")
    settings = options.settings(classes, dataset.labels, protocol, method_columns)
    if options.prompts_from:
        if automatic:
            raise UserError(f"--prompts-from: {checkpoint} is a U-Net, which takes no prompts; leave it out")
        settings = replace(settings, prompt_files=_prompt_files(options.prompts_from, [case.id for case in cases]))
    save = absolute_path(options.save)
    inputs = [Input("DATA", data, lambda: dataset_files(dataset, data))]
    inputs += [scans_input("--prompts-from", folder)] if (folder := options.prompts_from) else []
    check_outputs([OutputFile("--save", Path(save, f"{case.id}.nii.gz")) for case in cases if save], inputs)
    settings = replace(settings, modality=sources, band_mm=options.band_mm, save=save, interaction=rules, zoom=zoom)
    if automatic:
        predictor: AutomaticPredictor | VolumePredictor = AutomaticPredictor(model)
    else:
        predictor = VolumePredictor(model, order)
        settings = replace(settings, clip_slices=model.info.sam2.slice_position.context_slices)
    read = [*(settings.prompt_files or {}).values(), *(file for case in cases for file in (case.image, case.label))]
    files = [_checkpoint_stamp(checkpoint), *map(_file_stamp, read)]
    dtype = model.info.model.compute_dtype
    identity = {"settings": repr(settings), "order": order, "compute_dtype": dtype, "files": files}
    if memory_selection:  # journals of earlier versions do not name it
        identity["memory_selection"] = memory_selection
    with one_writer(options.out, ANOTHER_OUT):
        journal = Journal(options.out, identity)
        rows = evaluate_model(predictor, cases, settings, progress, journal)
        lines = _write(rows, options, [fixed_cost(predictor)])
        journal.remove()
    notes = [assumption_note(first_ids(assumed))] if assumed else []
    return [*(f"note: {note}" for note in (*dataset.warnings, *held_out.notes)), *notes, *lines]


def score_files(
    predictions: str,
    references: str,
    images: str | None,
    remap: str | None,
    fold: Any,
    options: ScoringOptions,
    progress: Progress,
    workers: int | None = None,
) -> list[str]:
    """Score the files of any method; an interrupted evaluation resumes.

    Args:
        predictions: folder of NIfTI files.
        references: folder of NIfTI files of the same names.
        images: folder of their scans, for the pictures of the report, or None.
        remap: label values of predictions that are replaced, `2+3=1`.
        fold: of these cases.
        options: all other options of the command.
        progress: called after each case.
        workers: number of processes; None: see `score_files.default_workers`.

    Returns:
        Lines to print.

    Raises:
        UserError: an invalid option, files that cannot be read or do not fit each other, or another process that writes
            the same results.
    """
    declared = options.given_rules
    if options.protocol == INTERACTIVE:
        steps, unused = find_steps(predictions, references, images)
        _check_number(declared.pop("interactions", len(steps) - 1), len(steps) - 1, predictions)
    else:
        pairs, unused = find_pairs(predictions, references, images)
        steps = [pairs]
    pairs = steps[-1]
    values = label_classes.parse_remap(remap)
    if options.classes:
        classes = label_classes.parse_classes(options.classes, {})
    else:
        classes = [LabelClass(str(value), (value,)) for value in label_values(pairs)]
    method_columns = options.method_columns(os.path.basename(os.path.normpath(predictions)), "unknown", fold)
    settings = options.settings(options.scored_classes(classes), {}, options.protocol or "", method_columns)
    settings = replace(settings, modality=options.modality_sources(), declared_rules=declared)
    if options.nearest_component:
        settings = replace(settings, protocol="one-click", nearest_component=True)
    read = [pair for step in steps for pair in step]
    files = [[_file_stamp(path) for path in (pair.prediction, pair.reference, pair.image)] for pair in read]
    identity = {"settings": repr(settings), "remap": sorted(values.items()), "files": files}
    with one_writer(options.out, ANOTHER_OUT):
        journal = Journal(options.out, identity)
        processes = default_workers(len(pairs)) if workers is None else number_of_workers(workers)
        rows = evaluate_steps(steps, settings, progress, FileReading(values, options.resample), journal, processes)
        lines = _write(rows, options)
        journal.remove()
    notes = []
    if missing := [pair.case for pair in read if pair.prediction is None]:
        notes.append(
            f"note: {len(missing)} of {len(read)} predictions are missing and count as empty: {first_ids(missing)}"
        )
    if unused:
        notes.append(f"note: {len(unused)} predictions have no reference and are left out: {first_ids(unused)}")
    if rows[0]["block"] == AUTOMATIC:
        notes.append("note: scored as an automatic method; if it was prompted from the references, give --protocol")
    return [*notes, *lines]


def _check_number(given: int, interactions: int, folder: str) -> None:
    """Check that a folder has the number of interactions that the user gives.

    Raises:
        UserError: it has another number.
    """
    if given != interactions:
        raise UserError(
            f"--interactions: {folder} has the folders of {number_of(interactions, 'interaction')} after the initial "
            "prompt; leave the flag out"
        )


def score_results(folders: Sequence[str], options: ScoringOptions) -> list[str]:
    """Summarise finished evaluations of one method together: its folds, or its seeds.

    Args:
        folders: of the evaluations.
        options: all other options of the command.

    Returns:
        Lines to print.

    Raises:
        UserError: results that cannot be read or do not belong together, or another process that writes to `out`.
    """
    with one_writer(options.out, ANOTHER_OUT):
        return _write(read_all(folders), options, [read_fixed_cost(folder) for folder in folders])


def scans_input(flag: str, folder: str) -> Input:
    """Return a folder of label maps or scans as an input of the command."""

    def files() -> list[Path]:
        return [file for file in Path(folder).rglob("*") if suffix_of(file.name, all_suffixes())]

    return Input(flag, folder, files)


def results_input(flag: str, folder: str) -> Input:
    """Return a folder of finished results as an input of the command."""
    return Input(flag, folder, lambda: [Path(folder, name) for name in RESULT_FILES])


def read_all(folders: Sequence[str]) -> list[ScoreRow]:
    """Read the rows of finished evaluations.

    Raises:
        UserError: results that cannot be read.
    """
    return [row for folder in folders for row in read_results(folder)]


def _prompt_files(folder: str, cases: Sequence[str]) -> dict[str, str]:
    """Return the label maps that prompts are made from, by case."""
    files = by_name(folder)
    if not any(case in files for case in cases):
        raise UserError(
            f"--prompts-from: {folder} has no prediction of the {number_of(len(cases), 'case')} to score, first "
            f"{cases[0]}.nii.gz; name each like its case"
        )
    return {case: str(files[case]) for case in cases if case in files}


def _write(rows: list[ScoreRow], options: ScoringOptions, fixed: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Write summary, comparison, tables and report, and return the lines to print."""
    summary = summarise(rows, fixed)
    comparison = compare_methods(rows, options.others) if options.others else None
    texts: dict[str, str | bytes] = {}
    if comparison:
        texts = {**comparison_texts(comparison), **comparison_cases(comparison, rows, options.others)}
    write_results(rows, summary, options.out, {**texts, REPORT: report_page(rows, summary, comparison, options.others)})
    lines = [
        f"protocol {name}: {PROTOCOL_DESCRIPTIONS[name]}"
        for name in summary["protocol"]
        if name in PROTOCOL_DESCRIPTIONS
    ]
    for name, entry in summary["classes"].items():
        lines += [class_line(name, entry), *([curve_line(name, entry)] if "interactive" in entry else [])]
    files = [CASES, *([LESIONS] if any("lesions" in row for row in rows) else [])]
    files += [DISTANCE] if any(row.get("by_distance") for row in rows) else []
    files += [RELIABILITY] if any(row.get("reliability") for row in rows) else []
    files += [*([INTERACTIONS] if any(row.get("interactions") for row in rows) else []), SUMMARY, REPORT]
    if comparison:
        files[-2:-2] = [COMPARISON, COMPARISON_CASES]
        lines += [difference_line(entry, comparison["other"]) for entry in comparison["results"] if entry["primary"]]
    return [*lines, f"{', '.join(files[:-1])} and {files[-1]} in {options.out} (for research use only)"]


def _file_stamp(path: str | os.PathLike[str] | None) -> list[Any]:
    """Return values that change when a file is replaced."""
    if path is None:
        return []
    status = os.stat(path)
    return [os.path.realpath(path), status.st_size, status.st_mtime_ns]


def _checkpoint_stamp(checkpoint: str) -> list[Any]:
    """Return values that change when a checkpoint is replaced: its `config.json` is written last."""
    status = (Path(checkpoint) / "config.json").stat()
    return [absolute_path(checkpoint), status.st_size, status.st_mtime]
