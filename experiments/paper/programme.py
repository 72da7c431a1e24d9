"""List of runs of a programme: task x fold x seed x variant, each a cell with its own folder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.paper.variants import OtherMethod, Scoring, Task, Variant, changed
from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import CHOICES, UserError, listed
from sam2_3dmed_jax.hub.catalog import find_weights
from sam2_3dmed_jax.runtime.hashing import sha256_of_json
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.training.run_folder import MAY_CHANGE, record

RUNS = "runs"
PATHS = ("data__path", "data__features", "data__split__file", "data__split__patients", "model__init")
PROMPTED = "full"  # the variant that is prompted by label maps of an automatic method
PRIMARY = ("full", "neither")  # SAM2-3dMed against fine-tuned SAM 2 (docs/explanation/evaluation.md)


@dataclass(frozen=True)
class Programme:
    """The runs of a report, and its texts."""

    title: str
    root: Path  # paths of tasks are relative to it
    tasks: tuple[Task, ...]
    variants: tuple[Variant, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]  # seeds of the variants with all seeds
    few: tuple[int, ...]  # seeds of the other variants; only the first one where nothing is trained
    others: tuple[OtherMethod, ...] = ()
    notes: tuple[str, ...] = ()  # what the results show, and what they do not
    before: Callable[[Progress], None] = field(default=lambda progress: None)  # writes missing data and checkpoints

    @property
    def rows(self) -> tuple[Variant, ...]:
        """Return the variants and the methods of others."""
        return (*self.variants, *(other.variant() for other in self.others))

    def seeds_of(self, variant: Variant) -> tuple[int, ...]:
        """Return the seeds of a variant's runs."""
        numbers = {"all": self.seeds, "few": self.few, "one": self.few[:1]}[variant.seeds]
        return tuple(seed for seed in self.seeds if seed in numbers)


@dataclass(frozen=True)
class Cell:
    """One run with all its scores."""

    task: Task
    variant: Variant
    fold: int
    seed: int
    config: ExperimentConfig  # paths relative to the programme's root
    scorings: tuple[Scoring, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """Return config and scoring without fold and seed, which are in the name, and without fields of no effect."""
        plain = record(changed(self.config, data__fold=0, training__seed=0))
        for name in MAY_CHANGE:
            part, key = name.split(".")
            del plain[part][key]
        scored = {"classes": self.task.classes, "tolerance_mm": self.task.tolerance_mm}
        return {"kind": self.variant.kind, "config": plain, **scored}

    @property
    def config_hash(self) -> str:
        """Return the first ten digits of the SHA-256 of the identity."""
        return sha256_of_json(self.identity)[:10]

    @property
    def name(self) -> str:
        """Return the name of the run's folder."""
        return f"{self.task.name}-{self.variant.name}-fold{self.fold}-seed{self.seed}-{self.config_hash}"

    def folder(self, out: Path) -> Path:
        """Return the run's folder."""
        return out / RUNS / self.name

    def scores(self, out: Path, scoring: Scoring) -> Path:
        """Return the folder of a scoring's results."""
        return self.folder(out) / "scores" / scoring.name


def cells(programme: Programme) -> list[Cell]:
    """Return all runs in the order of their start: first seeds first, so that the tables fill evenly."""
    runs = []
    names = {variant.name for variant in programme.variants}
    for seed in programme.seeds:
        for fold in programme.folds:
            for task in programme.tasks:
                for variant in programme.rows:
                    if seed in programme.seeds_of(variant):
                        config = changed(variant.change(task), data__fold=fold, training__seed=seed)
                        scorings = tuple(s for s in variant.scorings if s.all_seeds or seed in programme.few)
                        if PROMPTED not in names:
                            scorings = tuple(s for s in scorings if s.kind != "prompts from predictions")
                        runs.append(Cell(task, variant, fold, seed, config, scorings))
    if len({cell.name for cell in runs}) < len(runs):
        raise UserError("the programme names a run twice; give each task and variant its own name")
    return runs


def run_of_variant(programme: Programme, cell: Cell, variant: str) -> Cell | None:
    """Return the run of another variant on the same task, fold and seed, or None."""
    return next(
        (
            other
            for other in cells(programme)
            if (other.variant.name, other.task, other.fold, other.seed) == (variant, cell.task, cell.fold, cell.seed)
        ),
        None,
    )


def with_absolute_paths(config: ExperimentConfig, root: Path) -> ExperimentConfig:
    """Return a config with absolute paths; the name of published weights stays a name."""
    for name in PATHS:
        path = functools.reduce(getattr, name.split("__"), config)
        if path and "://" not in path and not (name == "model__init" and find_weights(path)):
            config = changed(config, **{name: str(root.resolve() / path)})
    return config


def select_part(
    programme: Programme,
    tasks: Sequence[str] = (),
    variants: Sequence[str] = (),
    folds: Sequence[int] = (),
    seeds: Sequence[int] = (),
) -> Programme:
    """Return a part of a programme; () selects everything.

    Raises:
        UserError: the programme does not have a name or number.
    """

    def part(flag: str, all_: Sequence, names: Sequence, selected: Sequence) -> tuple:
        if unknown := [name for name in selected if name not in names]:
            raise UserError(f"--{flag}: {unknown[0]} does not exist; choose from {listed(names, CHOICES)}")
        return tuple(item for item, name in zip(all_, names, strict=True) if not selected or name in selected)

    rows = part("variants", programme.rows, [variant.name for variant in programme.rows], variants)
    return replace(
        programme,
        tasks=part("tasks", programme.tasks, [task.name for task in programme.tasks], tasks),
        variants=tuple(variant for variant in programme.variants if variant in rows),
        others=tuple(other for other in programme.others if other.variant().name in {row.name for row in rows}),
        folds=part("folds", programme.folds, programme.folds, folds),
        seeds=part("seeds", programme.seeds, programme.seeds, seeds),
    )
