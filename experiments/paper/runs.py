"""One run from its config to its scores. Finished parts are kept; training and evaluation resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from experiments.paper import directions, positions
from experiments.paper.programme import PROMPTED, Cell, Programme, run_of_variant, with_absolute_paths
from experiments.paper.variants import Scoring, changed
from sam2_3dmed_jax.config import ClipConfig, DataConfig, ExperimentConfig
from sam2_3dmed_jax.data.case_reader import MODALITY_FIELD, StoredSlices
from sam2_3dmed_jax.data.datasets import Dataset, LabelledCase, read_dataset, require_folder
from sam2_3dmed_jax.data.split_choice import choose_split, split_settings
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.class_rows import score_classes
from sam2_3dmed_jax.evaluation.evaluate import ScoringOptions, score_checkpoint
from sam2_3dmed_jax.evaluation.label_files import FilePair, by_name
from sam2_3dmed_jax.evaluation.region_growing import region_growing
from sam2_3dmed_jax.evaluation.report import report_page
from sam2_3dmed_jax.evaluation.result_files import REPORT, SUMMARY, write_results
from sam2_3dmed_jax.evaluation.score_files import evaluate_files
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.evaluation.summary import summarise
from sam2_3dmed_jax.hub.resolve import checkpoint_folder
from sam2_3dmed_jax.model.checkpoint import read_info
from sam2_3dmed_jax.prompts.protocols import object_prompts
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.training.compilation import compile_step
from sam2_3dmed_jax.training.dataset import check_data
from sam2_3dmed_jax.training.features.choice import trains_from_features
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.run_folder import record
from sam2_3dmed_jax.training.setup import Setup, set_up
from sam2_3dmed_jax.volume import label_classes
from sam2_3dmed_jax.volume.io import read_labels, read_volume
from sam2_3dmed_jax.volume.modality import ModalitySources, dicom_modality, parse_modality

MAPS = "predictions"  # label maps of automatic methods, which prompt SAM2-3dMed
STEPS: dict[str, Any] = {}  # compiled train steps of this process by `structure`
# Train steps kept at the same time. On CPU, a step and the propagation of its model use about 5,000 memory mappings of
# the 65,530 that Linux allows a process: after a dozen structures, LLVM cannot load more programs.
KEPT = 4


class WaitsError(Exception):
    """A scoring needs the result of another run that is not done yet."""


@dataclass(frozen=True)
class CellRunner:
    """Training and scoring of the runs of a programme in a folder."""

    programme: Programme
    out: Path

    def finish(self, cell: Cell, progress: Progress) -> None:
        """Train and score a cell.

        Raises:
            WaitsError: a scoring needs another cell, which is not done.
            UserError: settings or data do not fit.
        """
        checkpoint = self.checkpoint(cell)
        if cell.variant.kind == "trained" and not (checkpoint / "config.json").exists():
            config = with_absolute_paths(cell.config, self.programme.root)
            train(config, checkpoint.parent, progress, setup=self._set_up(config))
        waiting = []
        for scoring in cell.scorings:
            if not is_scored(cell, scoring, self.out):
                try:
                    self._score(cell, scoring, progress)
                except WaitsError as missing:  # other scorings may not need it
                    waiting.append(str(missing))
        if waiting:
            raise WaitsError(waiting[0])
        shutil.rmtree(checkpoint.parent / "checkpoints", ignore_errors=True)  # only final/ is kept

    def checkpoint(self, cell: Cell) -> Path:
        """Return the folder of the weights that a cell scores."""
        if cell.variant.kind == "given":
            return checkpoint_folder(with_absolute_paths(cell.config, self.programme.root).model.init)
        return cell.folder(self.out) / "run" / "final"

    def _set_up(self, config: ExperimentConfig) -> Setup:
        """Return the setup of a run; runs of equal structure share a compiled step."""
        setup, prepared = set_up(config), check_data(config)
        if prepared is None:  # the run prepares its data first
            return setup
        reader, _ = prepared
        key = structure(config, reader.stored_slices)
        if key not in STEPS:
            if len(STEPS) >= KEPT:
                STEPS.clear()
                jax.clear_caches()
            STEPS[key] = compile_step(setup, reader.stored_slices).step
        return replace(setup, step=STEPS[key])

    def _score(self, cell: Cell, scoring: Scoring, progress: Progress) -> None:
        folder = cell.scores(self.out, scoring)
        if scoring.kind == "positions":
            held_out, training = self._cases(cell)
            if cell.variant.kind == "probe":
                pairs = positions.probe_distances(training, held_out, cell.config.data, self._sources(cell))
            else:
                sources = self._sources(cell, trained=True)
                pairs = positions.srpp_distances(str(self.checkpoint(cell)), held_out, cell.config.data, sources)
            positions.write(pairs, folder)
        elif scoring.kind == "directions":
            held_out, _ = self._cases(cell)
            classes = self._plan(cell, scoring)
            sources = self._sources(cell, trained=True)
            directions.write(directions.agreement(str(self.checkpoint(cell)), held_out, classes, sources), folder)
        elif scoring.kind == "nearest component":
            self._score_maps(cell, scoring, str(cell.folder(self.out) / MAPS), progress)
        elif cell.variant.kind == "files":
            (other,) = (o for o in self.programme.others if o.variant().name == cell.variant.name)
            maps = other.folders.replace("{task}", cell.task.name).replace("{fold}", str(cell.fold))
            self._score_maps(cell, scoring, str(self.programme.root / maps), progress, other.trained_on_these_cases)
        elif cell.variant.kind == "region growing":
            self._score_region_growing(cell, scoring, progress)
        else:
            self._score_checkpoint(cell, scoring, progress)

    def _score_checkpoint(self, cell: Cell, scoring: Scoring, progress: Progress) -> None:
        checkpoint, maps = self.checkpoint(cell), cell.folder(self.out) / MAPS
        method, prompts_from = f"{cell.variant.label}{scoring.label}", None
        if scoring.kind == "prompts from predictions":
            other = run_of_variant(self.programme, cell, PROMPTED)
            if other is None or not (self.checkpoint(other) / "config.json").exists():
                raise WaitsError(f"{cell.name} waits for {PROMPTED} of the same task, fold and seed")
            checkpoint, method, prompts_from = self.checkpoint(other), scoring.label, str(maps)
        options = ScoringOptions(
            str(cell.scores(self.out, scoring)),
            classes=cell.task.classes,
            tolerance_mm=cell.task.tolerance_mm,
            protocol=scoring.protocol or None,
            method=method,
            seed=str(cell.seed),
            trained_on_these_cases="no",
            without_bd=scoring.without_bd,
            prompts_from=prompts_from,
            modality=cell.config.data.preprocessing.modality or None,
            save=str(maps) if cell.variant.kind == "trained" and not scoring.protocol else "",
        )
        data = with_absolute_paths(cell.config, self.programme.root).data
        defaults = split_settings(DataConfig())
        split = {name: value for name, value in split_settings(data).items() if value != defaults[name]}
        split["fold"] = cell.fold
        score_checkpoint(str(checkpoint), str(self._raw(cell)), "sequential", "float32", split, options, progress)

    def _score_maps(self, cell: Cell, scoring: Scoring, maps: str, progress: Progress, trained: str = "no") -> None:
        """Score existing label maps of the held-out cases."""
        held_out, _ = self._cases(cell)
        files = by_name(maps)
        pairs = [FilePair(case.id, Path(case.label), files.get(case.id), Path(case.image)) for case in held_out]
        if not any(pair.prediction for pair in pairs):
            raise UserError(f"{maps}: it contains no label map of fold {cell.fold}; name each file CASE.nii.gz")
        plan = replace(self._plan(cell, scoring), nearest_component=scoring.kind == "nearest component")
        columns = {**plan.method_columns, "trained_on_these_cases": trained}
        self._write(cell, scoring, evaluate_files(pairs, replace(plan, method_columns=columns), progress))

    def _score_region_growing(self, cell: Cell, scoring: Scoring, progress: Progress) -> None:
        """Score region growing from each object's click; nested objects overwrite those around them, as for a model."""
        plan, (held_out, _) = self._plan(cell, scoring), self._cases(cell)
        rows: list[ScoreRow] = []
        for done, case in enumerate(held_out, 1):
            volume = read_volume(case.image, modality=plan.modality)
            reference = read_labels(case.label, volume)
            prompts = object_prompts(scoring.protocol, reference, volume.spacing, plan.objects)
            labels = reference * 0
            for own in prompts.values():  # organs come before the tumours inside them
                ((x, y),) = own[0].points
                seed = (own[0].slice, round(y), round(x))
                labels[region_growing(volume.array, seed, spacing=volume.spacing)] = own[0].object_id
            rows += score_classes(case.id, labels, reference, volume.grid, prompts, plan)
            progress("growing regions", done, len(held_out))
        self._write(cell, scoring, rows)

    def _write(self, cell: Cell, scoring: Scoring, rows: list[ScoreRow]) -> None:
        summary = summarise(rows)
        write_results(rows, summary, cell.scores(self.out, scoring), {REPORT: report_page(rows, summary)})

    def _plan(self, cell: Cell, scoring: Scoring) -> EvaluationSettings:
        dataset = self._dataset(cell)
        columns = {
            "method": f"{cell.variant.label}{scoring.label}",
            "trained_on_these_cases": "no",
            "fold": cell.fold,
            "seed": str(cell.seed),
        }
        named = label_classes.parse_classes(cell.task.classes, dataset.labels) if cell.task.classes else None
        classes = named or label_classes.declared_classes(dataset.labels)
        tolerant = label_classes.with_tolerances(classes, cell.task.tolerance_mm, dataset.name)
        return EvaluationSettings(tolerant, scoring.protocol, method_columns=columns, modality=self._sources(cell))

    def _sources(self, cell: Cell, trained: bool = False) -> ModalitySources:
        """Return what is known about the modality of a cell's scans, from its dataset and checkpoint."""
        sources = ModalitySources(
            parse_modality(cell.config.data.preprocessing.modality, MODALITY_FIELD),
            dicom_modality(self._dataset(cell).modality),
        )
        if not trained:
            return sources
        checkpoint = str(self.checkpoint(cell))
        return replace(sources, preprocessing=read_info(checkpoint).preprocessing, checkpoint=checkpoint)

    def _raw(self, cell: Cell) -> Path:
        return self.programme.root / cell.task.raw

    def _dataset(self, cell: Cell) -> Dataset:
        return require_folder(read_dataset(self._raw(cell)))

    def _cases(self, cell: Cell) -> tuple[list[LabelledCase], list[LabelledCase]]:
        """Return the held-out cases and the training cases."""
        dataset = self._dataset(cell)
        split = choose_split([c.id for c in dataset.cases], with_absolute_paths(cell.config, self.programme.root).data)
        by_id = {case.id: case for case in dataset.cases}
        return [by_id[name] for name in split.test], [by_id[name] for name in split.train]


def is_scored(cell: Cell, scoring: Scoring, out: Path) -> bool:
    """Return whether a scoring is finished: its last file exists."""
    return (cell.scores(out, scoring) / SUMMARY).exists()


def is_done(cell: Cell, out: Path) -> bool:
    """Return whether all scorings of a cell are finished."""
    return all(is_scored(cell, scoring, out) for scoring in cell.scorings)


def structure(config: ExperimentConfig, stored: StoredSlices) -> str:
    """Return what the compiled step depends on: not the seed, and of the data only shapes and augmentation."""
    shapes = DataConfig(
        slices=config.data.slices,
        clips=ClipConfig(objects=config.data.clips.objects),
        classes=config.data.classes,
        augmentation=config.data.augmentation,
    )
    plain = changed(config, data=shapes, training__seed=0, model__init="there" if config.model.init else "")
    return json.dumps({**record(plain), "features": trains_from_features(config), "stored": stored}, sort_keys=True)
