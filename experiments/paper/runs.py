"""A cell from nothing to its scores. What is there is not made again: training and evaluation go on where they were."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from experiments.paper import directions, positions
from experiments.paper.programme import PROMPTED, Cell, Programme, located, sibling
from experiments.paper.variants import Scoring, changed
from sam2_3dmed_jax.config import DataConfig, ExperimentConfig
from sam2_3dmed_jax.data.datasets import Case, Dataset, on_disk, read_dataset
from sam2_3dmed_jax.data.split_choice import FIELDS, choose_split
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.evaluate import Wanted, score_checkpoint
from sam2_3dmed_jax.evaluation.label_files import Pair, by_name
from sam2_3dmed_jax.evaluation.region_growing import region_growing
from sam2_3dmed_jax.evaluation.report import report_page
from sam2_3dmed_jax.evaluation.results import REPORT, SUMMARY, write_results
from sam2_3dmed_jax.evaluation.score_cases import evaluate_files, rows_of
from sam2_3dmed_jax.evaluation.settings import Plan
from sam2_3dmed_jax.evaluation.summary import Row, summarise
from sam2_3dmed_jax.prompts.protocols import prompts_of_objects
from sam2_3dmed_jax.runtime.progress import ConsoleProgress
from sam2_3dmed_jax.training.compilation import compile_step
from sam2_3dmed_jax.training.features.choice import trains_from_features
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.run_folder import record
from sam2_3dmed_jax.training.setup import Setup, set_up
from sam2_3dmed_jax.volume import label_classes
from sam2_3dmed_jax.volume.io import read_labels, read_volume

MAPS = "predictions"  # of automatic methods, for the bridges
STEPS: dict[str, Any] = {}  # compiled in this process, by all of a config that a step depends on
# At once. On CPU a step and the walks of its model take some 5,000 mappings of memory, of which Linux gives a process
# 65,530: after a dozen structures LLVM could load no more.
KEPT = 4


class WaitsError(Exception):
    """What a scoring needs is not there yet: another run has to be done first."""


@dataclass(frozen=True)
class Workshop:
    """Where the runs of a programme are made."""

    programme: Programme
    out: Path

    def finish(self, cell: Cell, progress: ConsoleProgress) -> None:
        """Train and score a cell.

        Raises:
            WaitsError: a scoring needs another cell, which is not done.
            UserError: whatever does not fit.
        """
        checkpoint = self.checkpoint(cell)
        if cell.variant.kind == "trained" and not (checkpoint / "config.json").exists():
            config = located(cell.config, self.programme.root)
            train(config, checkpoint.parent, progress.training, progress, setup=self._set_up(config))
        waits = []
        for scoring in cell.scorings:
            if not is_scored(cell, scoring, self.out):
                try:
                    self._score(cell, scoring, progress)
                except WaitsError as lacking:  # the others need not
                    waits.append(str(lacking))
        if waits:
            raise WaitsError(waits[0])
        shutil.rmtree(checkpoint.parent / "checkpoints", ignore_errors=True)  # final/ is what is kept

    def checkpoint(self, cell: Cell) -> Path:
        """Folder of the weights that a cell scores."""
        if cell.variant.kind == "given":
            return Path(located(cell.config, self.programme.root).model.init)
        return cell.folder(self.out) / "run" / "final"

    def _set_up(self, config: ExperimentConfig) -> Setup:
        """Runs of equal structure compile once in a process."""
        setup, key = set_up(config), structure(config)
        if key not in STEPS:
            if len(STEPS) >= KEPT:
                STEPS.clear()
                jax.clear_caches()
            STEPS[key] = compile_step(setup).step
        return replace(setup, step=STEPS[key])

    def _score(self, cell: Cell, scoring: Scoring, progress: ConsoleProgress) -> None:
        where = cell.scores(self.out, scoring)
        if scoring.kind == "positions":
            held_out, training = self._cases(cell)
            if cell.variant.kind == "probe":
                found = positions.of_probe(training, held_out, cell.config.data)
            else:
                found = positions.of_checkpoint(str(self.checkpoint(cell)), held_out, cell.config.data)
            positions.write(found, where)
        elif scoring.kind == "directions":
            held_out, _ = self._cases(cell)
            classes = self._plan(cell, scoring)
            directions.write(directions.agreement(str(self.checkpoint(cell)), held_out, classes), where)
        elif scoring.kind == "nearest component":
            self._score_maps(cell, scoring, str(cell.folder(self.out) / MAPS), progress)
        elif cell.variant.kind == "files":
            (other,) = (o for o in self.programme.others if o.variant().name == cell.variant.name)
            maps = other.folders.replace("{task}", cell.task.name).replace("{fold}", str(cell.fold))
            self._score_maps(cell, scoring, str(self.programme.root / maps), progress, other.trained_on_these_cases)
        elif cell.variant.kind == "region growing":
            self._grow(cell, scoring, progress)
        else:
            self._score_checkpoint(cell, scoring, progress)

    def _score_checkpoint(self, cell: Cell, scoring: Scoring, progress: ConsoleProgress) -> None:
        checkpoint, maps = self.checkpoint(cell), cell.folder(self.out) / MAPS
        method, prompting = f"{cell.variant.label}{scoring.label}", None
        if scoring.kind == "prompted by it":
            other = sibling(self.programme, cell, PROMPTED)
            if other is None or not (self.checkpoint(other) / "config.json").exists():
                raise WaitsError(f"{cell.name} waits for {PROMPTED} of the same task, fold and seed")
            checkpoint, method, prompting = self.checkpoint(other), scoring.label, str(maps)
        wanted = Wanted(
            str(cell.scores(self.out, scoring)),
            classes=cell.task.classes,
            tolerance_mm=cell.task.tolerance_mm,
            protocol=scoring.protocol or None,
            method=method,
            seed=str(cell.seed),
            trained_on_these_cases="no",
            without_bd=scoring.without_bd,
            prompts_from=prompting,
            save=str(maps) if cell.variant.kind == "trained" and not scoring.protocol else "",
        )
        data = located(cell.config, self.programme.root).data
        split = {name: getattr(data, name) for name in FIELDS if getattr(data, name) != getattr(DataConfig(), name)}
        split["fold"] = cell.fold
        score_checkpoint(str(checkpoint), str(self._raw(cell)), "sequential", split, wanted, progress)

    def _score_maps(
        self, cell: Cell, scoring: Scoring, maps: str, progress: ConsoleProgress, trained: str = "no"
    ) -> None:
        """Label maps that are there, of the held-out cases alone."""
        held_out, _ = self._cases(cell)
        files = by_name(maps)
        pairs = [Pair(case.id, Path(case.label), files.get(case.id), Path(case.image)) for case in held_out]
        if not any(pair.prediction for pair in pairs):
            raise UserError(f"{maps}: it has no label map of fold {cell.fold}; name each like its case, CASE.nii.gz")
        plan = replace(self._plan(cell, scoring), nearest_component=scoring.kind == "nearest component")
        about = {**plan.about, "trained_on_these_cases": trained}
        self._write(cell, scoring, evaluate_files(pairs, replace(plan, about=about), progress))

    def _grow(self, cell: Cell, scoring: Scoring, progress: ConsoleProgress) -> None:
        """Each object grown from its click; nested ones are written over those around them, as a model's are."""
        plan, (held_out, _) = self._plan(cell, scoring), self._cases(cell)
        rows: list[Row] = []
        for done, case in enumerate(held_out, 1):
            volume = read_volume(case.image)
            reference = read_labels(case.label, volume)
            prompts = prompts_of_objects(scoring.protocol, reference, volume.spacing, plan.objects)
            labels = reference * 0
            for own in prompts.values():  # organs before the tumours in them
                ((x, y),) = own[0].points
                seed = (own[0].slice, round(y), round(x))
                labels[region_growing(volume.array, seed, spacing=volume.spacing)] = own[0].object_id
            rows += rows_of(case.id, labels, reference, volume.grid, prompts, plan)
            progress("growing regions", done, len(held_out))
        self._write(cell, scoring, rows)

    def _write(self, cell: Cell, scoring: Scoring, rows: list[Row]) -> None:
        summary = summarise(rows)
        write_results(rows, summary, cell.scores(self.out, scoring), {REPORT: report_page(rows, summary)})

    def _plan(self, cell: Cell, scoring: Scoring) -> Plan:
        dataset = self._dataset(cell)
        about = {
            "method": f"{cell.variant.label}{scoring.label}",
            "trained_on_these_cases": "no",
            "fold": cell.fold,
            "seed": str(cell.seed),
        }
        named = label_classes.parse_classes(cell.task.classes, dataset.labels) if cell.task.classes else None
        classes = named or label_classes.declared_classes(dataset.labels)
        tolerant = label_classes.with_tolerances(classes, cell.task.tolerance_mm, dataset.name)
        return Plan(tolerant, scoring.protocol, about=about)

    def _raw(self, cell: Cell) -> Path:
        return self.programme.root / cell.task.raw

    def _dataset(self, cell: Cell) -> Dataset:
        return on_disk(read_dataset(self._raw(cell)))

    def _cases(self, cell: Cell) -> tuple[list[Case], list[Case]]:
        """Held-out cases, and those that are trained on."""
        dataset = self._dataset(cell)
        split = choose_split([c.id for c in dataset.cases], located(cell.config, self.programme.root).data)
        there = {case.id: case for case in dataset.cases}
        return [there[name] for name in split.test], [there[name] for name in split.train]


def is_scored(cell: Cell, scoring: Scoring, out: Path) -> bool:
    """Whether a scoring's results are there; its last file is."""
    return (cell.scores(out, scoring) / SUMMARY).exists()


def is_done(cell: Cell, out: Path) -> bool:
    """Whether all results of a cell are there."""
    return all(is_scored(cell, scoring, out) for scoring in cell.scorings)


def structure(config: ExperimentConfig) -> str:
    """All of a config that the train step depends on: not the seed, and of the data only a batch's shapes."""
    shapes = DataConfig(slices=config.data.slices, objects=config.data.objects, classes=config.data.classes)
    plain = changed(config, data=shapes, training__seed=0, model__init="there" if config.model.init else "")
    return json.dumps({**record(plain), "features": trains_from_features(config)}, sort_keys=True)
