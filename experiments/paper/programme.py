"""A programme is a list of runs: task x fold x seed x variant, each a cell with a folder of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.paper.variants import Others, Scoring, Task, Variant, changed
from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.progress import ConsoleProgress
from sam2_3dmed_jax.training.run_folder import MAY_CHANGE, record

RUNS = "runs"
PATHS = ("data__path", "data__features", "data__splits", "data__patients", "model__init")
PROMPTED = "full"  # the variant that an automatic method's label maps prompt
PRIMARY = ("full", "neither")  # METHOD.md: SAM2-3dMed against fine-tuned SAM 2


@dataclass(frozen=True)
class Programme:
    """What is run, and what the report says of it."""

    title: str
    root: Path  # where paths of tasks begin
    tasks: tuple[Task, ...]
    variants: tuple[Variant, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]  # of the variants with all seeds
    few: tuple[int, ...]  # of the others; the first one where training is not repeated
    others: tuple[Others, ...] = ()
    notes: tuple[str, ...] = ()  # what the numbers can tell, and what not
    before: Callable[[ConsoleProgress], None] = field(
        default=lambda progress: None
    )  # makes data and checkpoints that are lacking

    @property
    def rows(self) -> tuple[Variant, ...]:
        """Variants, and methods of others."""
        return (*self.variants, *(other.variant() for other in self.others))

    def seeds_of(self, variant: Variant) -> tuple[int, ...]:
        """Seeds of the variant's runs."""
        wanted = {"all": self.seeds, "few": self.few, "one": self.few[:1]}[variant.seeds]
        return tuple(seed for seed in self.seeds if seed in wanted)


@dataclass(frozen=True)
class Cell:
    """One run with all its scores."""

    task: Task
    variant: Variant
    fold: int
    seed: int
    config: ExperimentConfig  # paths as the task has them
    scorings: tuple[Scoring, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """Config and scoring, but for fold and seed, which the name tells, and for what decides no number."""
        plain = record(changed(self.config, data__fold=0, training__seed=0))
        for name in MAY_CHANGE:
            part, key = name.split(".")
            del plain[part][key]
        scored = {"classes": self.task.classes, "tolerance_mm": self.task.tolerance_mm}
        return {"kind": self.variant.kind, "config": plain, **scored}

    @property
    def digest(self) -> str:
        """Of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Of the folder."""
        return f"{self.task.name}-{self.variant.name}-fold{self.fold}-seed{self.seed}-{self.digest}"

    def folder(self, out: Path) -> Path:
        """Where all of it stands."""
        return out / RUNS / self.name

    def scores(self, out: Path, scoring: Scoring) -> Path:
        """Where a scoring's results stand."""
        return self.folder(out) / "scores" / scoring.name


def cells(programme: Programme) -> list[Cell]:
    """All runs, in the order in which they are begun: first seeds first, so that tables fill evenly."""
    found = []
    there = {variant.name for variant in programme.variants}
    for seed in programme.seeds:
        for fold in programme.folds:
            for task in programme.tasks:
                for variant in programme.rows:
                    if seed in programme.seeds_of(variant):
                        config = changed(variant.change(task), data__fold=fold, training__seed=seed)
                        scorings = tuple(s for s in variant.scorings if s.all_seeds or seed in programme.few)
                        if PROMPTED not in there:
                            scorings = tuple(s for s in scorings if s.kind != "prompted by it")
                        found.append(Cell(task, variant, fold, seed, config, scorings))
    if len({cell.name for cell in found}) < len(found):
        raise UserError("the programme names a run twice; give each task and variant a name of its own")
    return found


def sibling(programme: Programme, cell: Cell, variant: str) -> Cell | None:
    """The run of another variant on the same task, fold and seed, if the programme has it."""
    return next(
        (
            other
            for other in cells(programme)
            if (other.variant.name, other.task, other.fold, other.seed) == (variant, cell.task, cell.fold, cell.seed)
        ),
        None,
    )


def located(config: ExperimentConfig, root: Path) -> ExperimentConfig:
    """A config whose paths work from anywhere."""
    for name in PATHS:
        part, key = name.split("__")
        path = getattr(getattr(config, part), key)
        if path and "://" not in path:
            config = changed(config, **{name: str(root.resolve() / path)})
    return config


def chosen(
    programme: Programme,
    tasks: Sequence[str] = (),
    variants: Sequence[str] = (),
    folds: Sequence[int] = (),
    seeds: Sequence[int] = (),
) -> Programme:
    """A part of a programme; () leaves all.

    Raises:
        UserError: a name or number that it lacks.
    """

    def part(flag: str, all_: Sequence, names: Sequence, wanted: Sequence) -> tuple:
        if lacking := [name for name in wanted if name not in names]:
            raise UserError(f"--{flag}: there is no {lacking[0]}; choose from {', '.join(map(str, names))}")
        return tuple(item for item, name in zip(all_, names, strict=True) if not wanted or name in wanted)

    rows = part("variants", programme.rows, [variant.name for variant in programme.rows], variants)
    return replace(
        programme,
        tasks=part("tasks", programme.tasks, [task.name for task in programme.tasks], tasks),
        variants=tuple(variant for variant in programme.variants if variant in rows),
        others=tuple(other for other in programme.others if other.variant().name in {row.name for row in rows}),
        folds=part("folds", programme.folds, programme.folds, folds),
        seeds=part("seeds", programme.seeds, programme.seeds, seeds),
    )
