"""Does fine-tuning with corrections keep corrections working? Runs, interactive scores and figures on phantoms.

    python -m experiments.clicks --out clicks

The objects are the spleen, the kidneys, and both together, so that the first click does not tell which object is meant:
users correct masks because a click is ambiguous. One nano model is trained on them from random weights with simulated
corrections, as Meta trained SAM 2. For each seed, it is then fine-tuned twice, as users fine-tune SAM 2, with and
without simulated corrections, on the same cases and for the same number of steps. All models are corrected by the
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
PRETRAINED, PRETRAINED_FOLDER = "before fine-tuning", "pretrained"
CORRECTIONS = CorrectionConfig(clicks=3, corrected_slices=1)
OBJECTS = ("spleen", "kidney", "spleen+kidney")
# Two evaluations, because one label map cannot hold objects that overlap.
EVALUATIONS = {"organs": "spleen,kidney", "both": "spleen+kidney=both"}  # folder: --classes
TABLE, ROWS, FIGURE, SETTINGS = "clicks.md", "clicks.csv", "dice.svg", "clicks.json"


@dataclass(frozen=True)
class Options:
    """The experiment's size; the defaults take about an hour and a half on two CPU cores."""

    out: str  # folder of the dataset, the runs, their scores, and the table and figure
    cases: int = 80  # phantoms; a fifth is held out
    slices: int = 12  # of a phantom, over the abdomen
    pretraining_steps: int = 2500  # of the model that is fine-tuned
    seeds: int = 3  # fine-tunings of each variant
    steps: int = 400  # of each fine-tuning
    image_size: int = 96  # S, pixels
    interactions: int = 5  # corrective clicks per object in the evaluation
    debug: Annotated[bool, tyro.conf.arg(help="tracebacks")] = False


class Scores(NamedTuple):
    """Dice of all models after each interaction."""

    cases: tuple[str, ...]
    dice: dict[str, np.ndarray]  # by variant, [N + 1, cases, seeds]; the mean over the objects of a case
    pretrained: np.ndarray  # [N + 1, cases], of the model that was fine-tuned
    seconds: dict[str, float]  # by variant, median of a training step


class Row(NamedTuple):
    """One line of the table: after some corrections."""

    corrections: int
    pretrained: float
    means: dict[str, float]  # by variant
    difference: float
    interval: Interval | None  # 95 %, over cases and seeds


def pretraining_config(options: Options) -> ExperimentConfig:
    """Return the training of the model that is fine-tuned: from random weights, with corrections."""
    config = demo_config(str(Path(options.out) / "prepared"))
    assert isinstance(config.model, ModelConfig)
    prompts = replace(config.data.prompts, negative_point_probability=0.3, corrections=CORRECTIONS)
    steps = options.pretraining_steps
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
            config.training, steps=steps, learning_rate=5e-4, weight_decay=0.05, warmup_steps=min(100, steps)
        ),
    )


def variant_config(options: Options, variant: str, seed: int, init: str) -> ExperimentConfig:
    """Return the fine-tuning of a variant from the checkpoint `init`; its encoder is frozen.

    Without corrections, each object has one positive click or a box, as in most fine-tuning code.
    """
    config = pretraining_config(options)
    assert isinstance(config.model, ModelConfig)
    corrections = CORRECTIONS if variant == CORRECTED else CorrectionConfig()
    prompts = replace(config.data.prompts, negative_point_probability=0.0, corrections=corrections)
    steps = options.steps
    return config.replace(
        model=replace(config.model, init=init),
        data=replace(config.data, prompts=prompts),
        training=replace(config.training, steps=steps, seed=seed, warmup_steps=min(30, steps)),
    )


def compare(options: Options, progress: Progress | None) -> list[str]:
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
    pretrained = str(train(pretraining_config(options), out / PRETRAINED_FOLDER / "run", progress))
    _score(options, out / PRETRAINED_FOLDER, pretrained, PRETRAINED, 0, progress)
    for seed in range(options.seeds):
        for variant in VARIANTS:
            folder = _folder(out, variant, seed)
            final = train(variant_config(options, variant, seed, pretrained), folder / "run", progress)
            _score(options, folder, str(final), variant, seed, progress)
    scores = read_scores(options)
    lines = table(scores, options)
    write_text(out / TABLE, "\n".join(lines) + "\n")
    _write_rows(scores, out / ROWS)
    _draw(scores, out / FIGURE)
    return lines


def _score(options: Options, folder: Path, checkpoint: str, method: str, seed: int, progress: Progress | None) -> None:
    """Let the simulated user correct a model on the held-out cases, if that is not done already."""
    for name, classes in EVALUATIONS.items():
        if (folder / name / INTERACTIONS).exists():
            continue
        scoring = ScoringOptions(
            str(folder / name),
            classes=classes,
            metrics="overlap",
            protocol="interactive",
            initial="click",
            interactions=options.interactions,
            method=method,
            seed=str(seed),
        )
        data = str(Path(options.out) / "data")
        score_checkpoint(checkpoint, data, "sequential", "float32", {}, scoring, progress=progress)


def read_scores(options: Options) -> Scores:
    """Return the scores of all finished runs.

    Raises:
        UserError: the runs do not have the same cases.
    """
    out, dice, seconds = Path(options.out), {}, {}
    pretrained = _dice_by_step(out / PRETRAINED_FOLDER, options.interactions)
    cases = tuple(pretrained)
    for variant in VARIANTS:
        of_seeds = []
        for seed in range(options.seeds):
            values = _dice_by_step(_folder(out, variant, seed), options.interactions)
            if cases != tuple(values):
                raise UserError(
                    f"{_folder(out, variant, seed)}: its cases differ from the other runs'; choose another --out"
                )
            of_seeds.append(np.array(list(values.values())).T)
        dice[variant] = np.stack(of_seeds, axis=-1)
        with (_folder(out, variant, 0) / "run" / "log.csv").open(newline="", encoding="utf-8") as file:
            seconds[variant] = float(np.median([float(row["seconds"]) for row in csv.DictReader(file)]))
    return Scores(cases, dice, np.array(list(pretrained.values())).T, seconds)


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
        pretrained = float(scores.pretrained[step].mean())
        rows.append(Row(step, pretrained, means, float((after - before).mean()), interval(difference, (-1.0, 1.0))))
    return rows


def table(scores: Scores, options: Options) -> list[str]:
    """Return the lines of the table, in Markdown."""
    slower = scores.seconds[CORRECTED] / scores.seconds[PLAIN]
    lines = [
        f"| corrections | Dice {PRETRAINED} | fine-tuned {PLAIN} | fine-tuned {CORRECTED} | difference | "
        "95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for row in paired_rows(scores):
        limits = "not known" if row.interval is None else f"{row.interval[0]:+.3f} to {row.interval[1]:+.3f}"
        means = f"{row.pretrained:.3f} | {row.means[PLAIN]:.3f} | {row.means[CORRECTED]:.3f}"
        lines.append(f"| {row.corrections} | {means} | {row.difference:+.3f} | {limits} |")
    return [
        *lines,
        "",
        f"{len(scores.cases)} held-out cases x {options.seeds} seeds, {options.steps} steps at {options.image_size} "
        f"px; each step with corrections took {slower:.2f} times as long "
        f"({scores.seconds[PLAIN]:.2f} and {scores.seconds[CORRECTED]:.2f} s).",
    ]


def _claim(out: Path, options: Options) -> None:
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
            steps,
            mean,
            [mean - low, high - mean],
            label=f"fine-tuned {variant}",
            color=colour,
            marker=marker,
            capsize=3,
        )
    axis.plot(scores.pretrained.mean(1), label=PRETRAINED, color="#7a7a7a", linestyle=":")
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
