"""`sam2-3dmed demo`: phantoms, a nano SAM2-3dMed trained on most of them, scores on the others and one segmentation.

The untrained model and region growing from the same click are scored for comparison. Scores on phantoms show that the
whole pipeline works, and say nothing about patients.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2_3dmed_jax.commands.command_line import Parser, start
from sam2_3dmed_jax.config import (
    AugmentationConfig,
    ClipConfig,
    DataConfig,
    ExperimentConfig,
    LossConfig,
    ModelConfig,
    PreprocessingConfig,
    PromptConfig,
    SrppConfig,
    TrainingConfig,
)
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.user_files import read_json, read_table

if TYPE_CHECKING:
    import numpy as np

    from sam2_3dmed_jax.data.datasets import Dataset, LabelledCase
    from sam2_3dmed_jax.evaluation.score_row import ScoreRow
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.inference.segment import Segmentation
    from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
    from sam2_3dmed_jax.runtime.progress import Progress
    from sam2_3dmed_jax.training.setup import Setup
    from sam2_3dmed_jax.volume.geometry import Volume
    from sam2_3dmed_jax.volume.label_classes import LabelClass

HELP = "make phantoms, train a nano SAM2-3dMed on them, score it and segment one; minutes on the CPU, no downloads"

CASES = 28
MATRIX = 128  # voxels per row and column of a slice
MINUTES = 4  # at most, on two quiet CPU cores
LOG = "run/log.csv"
MARKER = "demo.json"  # identifies the folder of a demo, and contains its seed
FILES = {
    "segmentation": "prediction.nii.gz",
    "record": "prediction.json",
    "overlay": "overlay.png",
    "loss curve": "loss_curve.png",
    "scores": "evaluation/trained/cases.csv",
    "report": "evaluation/trained/report.html",
    "checkpoint": "run/final",
}


@dataclass(frozen=True)
class Options:
    """The arguments of `demo`."""

    out: str
    seed: int


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument("--out", metavar="DIR", default="demo_run", help="folder for all files of the demo")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="random seed of the phantoms")


def run(options: Options) -> None:
    """Run the demo and print where its files are."""
    start()
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    with ConsoleProgress() as progress:
        lines = run_demo(options.out, options.seed, progress)
    print("\n".join(lines))


def demo_config(data: str) -> ExperimentConfig:
    """Return the experiment of the demo: the nano preset at 96 pixels, trained from scratch.

    Weight decay is larger than in fine-tuning. Without it, features that are trained from scratch grow a hundredfold
    within a few hundred steps and drown out the position of the click.

    Args:
        data: folder of the prepared dataset.
    """
    return ExperimentConfig(
        model=ModelConfig(preset="nano", image_size=96, slice_position=SrppConfig(dim=64, layers=1)),
        data=DataConfig(
            path=data,
            slices=4,
            clips=ClipConfig(
                max_stride=5,  # clips of four slices then reach as far from the click as a spleen does
                # Few slices are without the object: an object score that is biased towards absence would hide the
                # object in all slices that are far from the click.
                past_end_probability=0.15,
                absent_probability=0.05,
            ),
            prompts=PromptConfig(box_prompt_probability=0.1, random_point_probability=0.3),
            # 440 steps do not exhaust the phantoms, and rotation and scaling would smooth their noise.
            augmentation=AugmentationConfig(
                rotation=0.0, scaling=0.0, shift=0.0, intensity=0.02, gamma=0.0, noise=0.02
            ),
            preprocessing=PreprocessingConfig(window="60,200"),  # contrast of the organs, not of lung or bone
        ),
        training=TrainingConfig(
            steps=440,
            ema=0.99,  # at 128 px, averaged weights reach in 640 steps the score of the last weights at 800
            batch_size=4,
            learning_rate=2.5e-3,
            weight_decay=0.8,
            warmup_steps=30,
            checkpoint_every=250,
            log_every=10,
            images_every=0,  # pictures would compile another function
            loss=LossConfig(bce=10.0, bd=0.5),
        ),
    )


@dataclass(frozen=True)
class Scores:
    """The scores of one method on the held-out phantoms."""

    rows: list[ScoreRow]
    summary: dict[str, Any]


def run_demo(out: str | Path, seed: int, progress: Progress) -> list[str]:
    """Run the demo in a folder, or resume one that was interrupted.

    Args:
        out: the folder.
        seed: random seed of the phantoms.
        progress: called during all work.

    Returns:
        Lines to print at the end.

    Raises:
        UserError: the folder contains something else.
    """
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.model.checkpoint import load_model
    from sam2_3dmed_jax.training.loop import train

    root = Path(out)
    _claim_folder(root, seed)
    print(f"the demo takes up to {MINUTES} minutes on two CPU cores, longer when the machine is busy", file=sys.stderr)
    config = demo_config(str(root / "prepared"))
    seconds: dict[str, float] = {}
    with _timed(seconds, "phantoms"):
        dataset, setup = _make_data(root, config, seed, progress)
    with _timed(seconds, "training"):
        final = train(config, root / "run", progress, setup=setup)
    with _timed(seconds, "evaluation"):
        cases = _held_out_cases(dataset, config)
        trained = VolumePredictor(load_model(final))
        scores = _score_methods(trained, dataset, cases, config, progress)
        _write_scores(scores, root / "evaluation")
    with _timed(seconds, "pictures"):
        _segment_typical_case(trained, dataset, cases, scores["trained"], root)
    return _summary_lines(scores, len(cases), seconds, root)


def _claim_folder(root: Path, seed: int) -> None:
    """Mark the folder as the demo of a seed.

    Raises:
        UserError: it contains other files, or a demo with another seed.
    """
    from sam2_3dmed_jax.runtime.atomic_files import write_errors, write_text
    from sam2_3dmed_jax.runtime.output_plan import OutputFolder, check_outputs

    check_outputs([OutputFolder("--out", root, owns=())])
    marker = root / MARKER
    if root.exists() and any(root.iterdir()) and not marker.exists():
        raise UserError(f"{root} is not empty and is not the folder of a demo; choose another --out")
    with write_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    if marker.exists() and read_json(marker, "choose another --out") != {"seed": seed}:
        raise UserError(f"{root} contains a demo with another seed; choose another --out or the same --seed")
    write_text(marker, json.dumps({"seed": seed}), keep_unchanged=True)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Record the wall-clock time of a step."""
    begin = time.monotonic()
    yield
    seconds[step] = time.monotonic() - begin


def _make_data(root: Path, config: ExperimentConfig, seed: int, progress: Progress) -> tuple[Dataset, Setup]:
    """Write the phantoms and their shards, while another thread compiles the train step."""
    from sam2_3dmed_jax.data.case_reader import StoredSlices
    from sam2_3dmed_jax.data.datasets import read_dataset
    from sam2_3dmed_jax.data.prepare.prepare import prepare_dataset
    from sam2_3dmed_jax.phantom import write_phantom_dataset
    from sam2_3dmed_jax.training.compilation import compile_step
    from sam2_3dmed_jax.training.setup import set_up

    data, workers = root / "data", min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(1) as pool:
        compilation = pool.submit(lambda: compile_step(set_up(config), StoredSlices(MATRIX, MATRIX, resized=True)))
        if not (data / "dataset.json").exists():
            write_phantom_dataset(data, CASES, seed, "spleen", progress, matrix=MATRIX, workers=workers)
        dataset = read_dataset(data)
        prepare_dataset(dataset, root / "prepared", workers=workers, progress=progress)
        return dataset, compilation.result()


def _held_out_cases(dataset: Dataset, config: ExperimentConfig) -> list[LabelledCase]:
    from sam2_3dmed_jax.data.split_choice import choose_split

    held_out = set(choose_split([case.id for case in dataset.cases], config.data).test)
    return [case for case in dataset.cases if case.id in held_out]


def _score_methods(
    trained: VolumePredictor,
    dataset: Dataset,
    cases: Sequence[LabelledCase],
    config: ExperimentConfig,
    progress: Progress,
) -> dict[str, Scores]:
    """Score the trained model, the untrained model and region growing, each from the same clicks."""
    from sam2_3dmed_jax.evaluation.cost import fixed_cost
    from sam2_3dmed_jax.evaluation.report.worst_cases import WORST
    from sam2_3dmed_jax.evaluation.score_cases import evaluate_model
    from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
    from sam2_3dmed_jax.evaluation.summary import summarise
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.model.build import random_weights
    from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble
    from sam2_3dmed_jax.volume.label_classes import declared_classes

    info = trained.model.info
    weights = random_weights(info.model, config.training.seed)
    untrained = VolumePredictor(assemble(weights, CheckpointInfo(info.model, info.preprocessing)))
    classes = declared_classes(dataset.labels)
    settings = {
        name: EvaluationSettings(classes, "one-click", method_columns=_columns(name), pictures=WORST)
        for name in ("trained", "untrained")
    }
    with ThreadPoolExecutor(1) as pool:  # region growing is the work of SciPy, on another core than the models
        grown = pool.submit(lambda: [_grow_region(case, entry) for case in cases for entry in classes])
        rows = {
            "trained": evaluate_model(trained, cases, settings["trained"], progress),
            "untrained": evaluate_model(untrained, cases, settings["untrained"]),
            "region growing": grown.result(),
        }
    costs = {"trained": [fixed_cost(trained)], "untrained": [fixed_cost(untrained)]}
    return {name: Scores(scored, summarise(scored, costs.get(name, ()))) for name, scored in rows.items()}


def _columns(method: str) -> dict[str, str]:
    """Return the columns that identify a method in each row."""
    return {"method": method, "trained_on_these_cases": "no"}


def _grow_region(case: LabelledCase, entry: LabelClass) -> ScoreRow:
    """Score region growing from the click that the model is prompted with."""
    import numpy as np

    from sam2_3dmed_jax.evaluation.class_rows import score_labels
    from sam2_3dmed_jax.evaluation.region_growing import region_growing
    from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
    from sam2_3dmed_jax.prompts.protocols import protocol_prompts
    from sam2_3dmed_jax.volume.io import read_labels, read_volume

    volume = read_volume(case.image)
    reference = read_labels(case.label, volume)
    (prompt,) = protocol_prompts("one-click", entry.mask(reference), volume.spacing, entry.values[0])
    ((x, y),) = prompt.points
    grown = region_growing(volume.array, (prompt.slice, round(y), round(x)), spacing=volume.spacing)
    settings = EvaluationSettings([entry], "one-click", method_columns=_columns("region growing"))
    (row,) = score_labels(case.id, np.where(grown, entry.values[0], 0), reference, volume.grid, settings)
    return row


def _write_scores(scores: dict[str, Scores], folder: Path) -> None:
    """Write the tables and the report of each method."""
    from sam2_3dmed_jax.evaluation.report import report_page
    from sam2_3dmed_jax.evaluation.result_files import REPORT, write_results

    for name, method in scores.items():
        page = {REPORT: report_page(method.rows, method.summary)}
        write_results(method.rows, method.summary, folder / name.replace(" ", "_"), page)


@dataclass(frozen=True, eq=False)
class _Example:
    """A held-out case, segmented from one click per object."""

    case: str
    dice: float
    volume: Volume
    reference: np.ndarray
    prompts: list[VoxelPrompt]
    segmentation: Segmentation

    def clicks_are_inside(self) -> bool:
        """Return whether the mask of each object contains the clicks on it."""
        labels = self.segmentation.labels
        return all(
            labels[prompt.slice, round(y), round(x)] == prompt.object_id
            for prompt in self.prompts
            for x, y in prompt.points
        )


def _segment_typical_case(
    trained: VolumePredictor, dataset: Dataset, cases: Sequence[LabelledCase], scores: Scores, root: Path
) -> None:
    """Segment a case whose Dice is close to the mean, and draw it and the loss curve."""
    import numpy as np

    from sam2_3dmed_jax.inference.segmentation_record import model_record, record_text, segmentation_record
    from sam2_3dmed_jax.pictures import overlay, training_curve
    from sam2_3dmed_jax.pictures.display_window import display_window
    from sam2_3dmed_jax.prompts.voxel_prompts import VolumePrompts
    from sam2_3dmed_jax.runtime.atomic_files import write_text
    from sam2_3dmed_jax.volume.io import write_labels

    example = _typical_example(trained, dataset, cases, scores)
    segmentation, volume, window = example.segmentation, example.volume, trained.model.info.preprocessing.window
    model = model_record(trained, root / FILES["checkpoint"])
    record = segmentation_record(segmentation, volume, VolumePrompts(example.prompts, dataset.labels), model, window)
    write_text(root / FILES["record"], record_text(record))
    write_labels(root / FILES["segmentation"], segmentation.labels.astype(np.int32), volume)
    title = f"{example.case}: one click, Dice {example.dice:.2f} (a phantom; for research use only)"
    displayed = display_window(volume, example.prompts, window)
    overlay.overlay(
        root / FILES["overlay"], volume, segmentation.labels, example.reference, example.prompts, displayed, title
    )
    training_curve.training_curve(root / FILES["loss curve"], root / LOG)


def _typical_example(
    trained: VolumePredictor, dataset: Dataset, cases: Sequence[LabelledCase], scores: Scores
) -> _Example:
    """Return the case whose Dice is closest to the mean among those whose masks contain their clicks, if there are any.

    A mask may miss its click, which `predict` warns about; the picture of the demo shows the usual case.
    """
    files = {case.id: case for case in cases}
    mean = scores.summary["macro_dice"]
    rows = sorted(scores.rows, key=lambda row: abs(row["dice"] - mean))
    examples = (_example(trained, dataset, files[row["case"]], row["dice"]) for row in rows)
    first = next(examples)
    if first.clicks_are_inside():
        return first
    return next((example for example in examples if example.clicks_are_inside()), first)


def _example(trained: VolumePredictor, dataset: Dataset, case: LabelledCase, dice: float) -> _Example:
    from sam2_3dmed_jax.inference.segment import segment_volume
    from sam2_3dmed_jax.prompts.protocols import protocol_prompts
    from sam2_3dmed_jax.volume.io import read_labels, read_volume

    volume = read_volume(case.image)
    reference = read_labels(case.label, volume)
    prompts = [
        prompt
        for value in dataset.labels
        for prompt in protocol_prompts("one-click", reference == value, volume.spacing, value)
    ]
    return _Example(case.id, dice, volume, reference, prompts, segment_volume(trained, volume, prompts))


def _summary_lines(scores: dict[str, Scores], cases: int, seconds: dict[str, float], root: Path) -> list[str]:
    """Return the Dice of each method, the losses, the time of each step and the paths of the files."""
    lines = [f"Spleen of {cases} phantoms outside of the training set, one click each, mean Dice (research use only):"]
    for name, method in scores.items():
        dice = method.summary["classes"]["spleen"]["dice"]
        lines.append(f"  {name:15} {dice['mean']:.3f}  (median {dice['median']:.3f}, n = {dice['n']})")
    lines += _loss_lines(root / LOG)
    lines.append("Seconds: " + ", ".join(f"{step} {value:.0f}" for step, value in seconds.items()))
    return lines + [f"  {what:13} {root / file}" for what, file in FILES.items()]


def _loss_lines(log: Path) -> list[str]:
    """Return the mean of each loss in the first and in the last fifth of the log, and a note if SRPP's hardly falls."""
    import numpy as np

    rows = list(read_table(log, "run the demo again"))
    fifth = max(len(rows) // 5, 1)

    def mean(part: list[dict[str, str]], name: str) -> float:
        return float(np.mean([float(row[f"loss_{name}"]) for row in part]))

    lines = ["Losses, means of the first and the last fifth of the training:"]
    for name in ("seg", "srpp", "bd"):
        first, last = mean(rows[:fifth], name), mean(rows[-fifth:], name)
        note = "  (hardly falls: the order of slices takes longer to learn than this run)" if last > 0.8 * first else ""
        lines.append(f"  {name:15} {first:.2f} -> {last:.2f}{note if name == 'srpp' else ''}")
    return lines
