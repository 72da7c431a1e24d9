"""Does training with corrections make corrections work? Runs, interactive scores and figures on phantoms.

    python -m experiments.clicks --out clicks

The objects are the spleen, the kidneys, and both together, so that the first click does not tell which object is meant:
users correct masks because a click is ambiguous. For each seed, a nano model is trained on them twice, with and without
simulated corrections, on the same cases and for the same number of steps. Both models are corrected by the
simulated user of `evaluate --protocol interactive` on the same held-out cases. The differences are paired by case;
their intervals are over cases and seeds. An interrupted command resumes. Phantoms show how the two trainings differ,
and say nothing about patients.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from sam2_3dmed_jax.commands.command_line import exit_code, start, terminated_as_interrupted
from sam2_3dmed_jax.commands.demo import demo_config
from sam2_3dmed_jax.config import CorrectionConfig, ExperimentConfig, ModelConfig
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.data.prepare.prepare import prepare_dataset
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.evaluate import ScoringOptions, score_checkpoint
from sam2_3dmed_jax.evaluation.result_files import INTERACTIONS
from sam2_3dmed_jax.metrics.statistics import Interval, estimate, interval
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.progress import ConsoleProgress, Progress
from sam2_3dmed_jax.training.loop import train

PLAIN, CORRECTED = "without corrections", "with corrections"
VARIANTS = (PLAIN, CORRECTED)
CORRECTIONS = CorrectionConfig(clicks=3, corrected_slices=1)
OBJECTS = ("spleen", "kidney", "spleen+kidney")
# Two evaluations, because one label map cannot hold objects that overlap.
EVALUATIONS = {"organs": "spleen,kidney", "both": "spleen+kidney=both"}  # folder: --classes
TABLE, ROWS, FIGURE, SETTINGS = "clicks.md", "clicks.csv", "dice.svg", "clicks.json"


@dataclass(frozen=True)
class Options:
    """The experiment's size; the defaults take some three hours on two CPU cores."""

    out: str  # folder of the dataset, the runs, their scores, and the table and figure
    cases: int = 80  # phantoms; a fifth is held out
    slices: int = 12  # of a phantom, over the abdomen: an object has about five, which one clip covers
    seeds: int = 3  # trainings of each variant
    steps: int = 2500  # of each training
    image_size: int = 96  # S, pixels
    interactions: int = 5  # corrective clicks per object in the evaluation
    debug: Annotated[bool, tyro.conf.arg(help="tracebacks")] = False


class Scores(NamedTuple):
    """Dice of both variants after each interaction, for all cases and seeds."""

    cases: tuple[str, ...]
    dice: dict[str, np.ndarray]  # by variant, [N + 1, cases, seeds]; the mean over the objects of a case
    seconds: dict[str, float]  # by variant, median of a training step


class Row(NamedTuple):
    """One line of the table: after some corrections."""

    corrections: int
    means: dict[str, float]  # by variant
    difference: float
    interval: Interval | None  # 95 %, over cases and seeds


def variant_config(options: Options, variant: str, seed: int) -> ExperimentConfig:
    """Return the training of a variant."""
    config = demo_config(str(Path(options.out) / "prepared"))
    assert isinstance(config.model, ModelConfig)
    prompts = replace(config.data.prompts, negative_point_probability=0.3)
    if variant == CORRECTED:
        prompts = replace(prompts, corrections=CORRECTIONS)
    # With one object per clip, or the demo's learning rate and weight decay, the model ignores where its prompts are:
    # its masks show all objects, and a click changes nothing.
    return config.replace(
        model=replace(config.model, image_size=options.image_size),
        data=replace(
            config.data,
            classes=OBJECTS,
            clips=replace(config.data.clips, objects=len(OBJECTS), max_stride=1),
            prompts=prompts,
        ),
        training=replace(
            config.training,
            steps=options.steps,
            seed=seed,
            learning_rate=5e-4,
            weight_decay=0.05,
            warmup_steps=min(100, options.steps),
        ),
    )


def compare(options: Options, progress: Progress) -> list[str]:
    """Train and score what is missing, and write the table and the figure.

    Returns:
        The lines of the table.

    Raises:
        UserError: the folder contains an experiment of another size.
    """
    out = Path(options.out)
    _claim(out, options)
    if not (out / "data" / "dataset.json").exists():
        write_phantom_dataset(out / "data", options.cases, 0, "organs", progress, slices=options.slices)
    prepare_dataset(read_dataset(out / "data"), out / "prepared", progress=progress)
    for seed in range(options.seeds):
        for variant in VARIANTS:
            folder = _folder(out, variant, seed)
            if all((folder / name / INTERACTIONS).exists() for name in EVALUATIONS):
                continue
            final = train(variant_config(options, variant, seed), folder / "run", progress)
            for name, classes in EVALUATIONS.items():
                scoring = ScoringOptions(
                    str(folder / name),
                    classes=classes,
                    metrics="overlap",
                    protocol="interactive",
                    initial="click",
                    interactions=options.interactions,
                    method=variant,
                    seed=str(seed),
                )
                score_checkpoint(str(final), str(out / "data"), "sequential", "float32", {}, scoring, progress=progress)
    scores = read_scores(options)
    lines = table(scores, options)
    write_text(out / TABLE, "\n".join(lines) + "\n")
    _write_rows(scores, out / ROWS)
    _draw(scores, out / FIGURE)
    return lines


def read_scores(options: Options) -> Scores:
    """Return the scores of all finished runs.

    Raises:
        UserError: the runs do not have the same cases.
    """
    out, dice, seconds = Path(options.out), {}, {}
    cases: tuple[str, ...] = ()
    for variant in VARIANTS:
        of_seeds = []
        for seed in range(options.seeds):
            values = _dice_by_step(_folder(out, variant, seed), options.interactions)
            if cases and cases != tuple(values):
                raise UserError(
                    f"{_folder(out, variant, seed)}: its cases differ from the other runs'; choose another --out"
                )
            cases = tuple(values)
            of_seeds.append(np.array(list(values.values())).T)
        dice[variant] = np.stack(of_seeds, axis=-1)
        with (_folder(out, variant, 0) / "run" / "log.csv").open(newline="", encoding="utf-8") as file:
            seconds[variant] = float(np.median([float(row["seconds"]) for row in csv.DictReader(file)]))
    return Scores(cases, dice, seconds)


def _dice_by_step(folder: Path, interactions: int) -> dict[str, list[float]]:
    """Return the mean Dice over a case's objects after each interaction, `[N + 1]`, by case."""
    found: dict[str, dict[int, list[float]]] = {}
    for name in EVALUATIONS:
        with (folder / name / INTERACTIONS).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["case"], {}).setdefault(int(row["interaction"]), []).append(float(row["dice"]))
    return {
        case: [float(np.mean(steps[step])) for step in range(interactions + 1)] for case, steps in sorted(found.items())
    }


def paired_rows(scores: Scores) -> list[Row]:
    """Return means, paired differences and their intervals after each number of corrections."""
    rows = []
    for step in range(len(scores.dice[PLAIN])):
        before, after = scores.dice[PLAIN][step], scores.dice[CORRECTED][step]
        difference = estimate([[(1.0, after - before)]])
        means = {variant: float(scores.dice[variant][step].mean()) for variant in VARIANTS}
        rows.append(Row(step, means, float((after - before).mean()), interval(difference, (-1.0, 1.0))))
    return rows


def table(scores: Scores, options: Options) -> list[str]:
    """Return the lines of the table, in Markdown."""
    slower = scores.seconds[CORRECTED] / scores.seconds[PLAIN]
    lines = [
        f"| corrections | Dice {PLAIN} | Dice {CORRECTED} | difference | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for row in paired_rows(scores):
        limits = "not known" if row.interval is None else f"{row.interval[0]:+.3f} to {row.interval[1]:+.3f}"
        means = f"{row.means[PLAIN]:.3f} | {row.means[CORRECTED]:.3f}"
        lines.append(f"| {row.corrections} | {means} | {row.difference:+.3f} | {limits} |")
    return [
        *lines,
        "",
        f"{len(scores.cases)} held-out cases x {options.seeds} seeds, {options.steps} steps at {options.image_size} "
        f"px; each step with corrections took {slower:.2f} times as long "
        f"({scores.seconds[PLAIN]:.2f} and {scores.seconds[CORRECTED]:.2f} s).",
    ]


def _claim(out: Path, options: Options) -> None:
    # Further seeds may be added.
    settings = {key: value for key, value in asdict(options).items() if key not in ("out", "seeds", "debug")}
    marker = out / SETTINGS
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) != settings:
        raise UserError(f"{out} contains this experiment with other settings; choose another --out, or the same ones")
    if out.exists() and not marker.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and not of this experiment; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text(marker, json.dumps(settings) + "\n")


def _folder(out: Path, variant: str, seed: int) -> Path:
    return out / f"{variant.replace(' ', '_')}_{seed}"


def _write_rows(scores: Scores, path: Path) -> None:
    """Write one row per variant, seed, case and number of corrections."""
    lines = ["variant,seed,case,corrections,dice"]
    for variant in VARIANTS:
        for step, of_cases in enumerate(scores.dice[variant]):
            for case, of_seeds in zip(scores.cases, of_cases, strict=True):
                lines += [f"{variant},{seed},{case},{step},{value:.6f}" for seed, value in enumerate(of_seeds)]
    write_text(path, "\n".join(lines) + "\n")


def _draw(scores: Scores, path: Path) -> None:
    """Draw the curves with intervals over cases and seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    axis = figure.subplots()
    for variant, colour, marker in ((PLAIN, "#7a7a7a", "o"), (CORRECTED, "#0b6bcb", "s")):
        dice = scores.dice[variant]
        steps = np.arange(len(dice))
        mean = dice.mean((1, 2))
        limits = [
            interval(estimate([[(1.0, values)]]), (0.0, 1.0)) or [value, value]
            for values, value in zip(dice, mean, strict=True)
        ]
        low, high = np.transpose(limits)
        axis.errorbar(
            steps, mean, [mean - low, high - mean], label=f"trained {variant}", color=colour, marker=marker, capsize=3
        )
    axis.set(xlabel="corrective clicks after the first click", ylabel="Dice", xticks=steps)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return the exit code."""
    options = tyro.cli(Options, prog="python -m experiments.clicks", args=arguments, description=__doc__)

    def work() -> None:
        start()
        with terminated_as_interrupted(), ConsoleProgress() as progress:
            lines = compare(options, progress)
        print("\n".join(lines))

    return exit_code(work, options.debug, "finished runs are kept; run the same command again to resume")


if __name__ == "__main__":
    sys.exit(main())
