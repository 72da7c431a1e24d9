"""The demo: phantoms are made, a nano SAM2-3dMed is trained on some and scored on others, and one is segmented.

The untrained model and region growing from the same click stand beside it: numbers on phantoms say that the pipe
carries water, and nothing about patients.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.config import (
    DataConfig,
    ExperimentConfig,
    LossConfig,
    ModelConfig,
    PreprocessingConfig,
    SrppConfig,
    TrainingConfig,
)
from sam2_3dmed_jax.data.datasets import Case, read_dataset
from sam2_3dmed_jax.data.prepare.prepare import prepare
from sam2_3dmed_jax.data.split_choice import choose_split
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.cost import fixed_cost
from sam2_3dmed_jax.evaluation.region_growing import region_growing
from sam2_3dmed_jax.evaluation.report import report_page
from sam2_3dmed_jax.evaluation.report.worst_cases import WORST
from sam2_3dmed_jax.evaluation.results import REPORT, write_results
from sam2_3dmed_jax.evaluation.score_cases import evaluate_model, score_labels
from sam2_3dmed_jax.evaluation.settings import Plan
from sam2_3dmed_jax.evaluation.summary import Row, summarise
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.inference.segment import segment_volume
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble, load_model
from sam2_3dmed_jax.model.sam2_3dmed import random_weights
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.pictures import overlay
from sam2_3dmed_jax.prompts.protocols import prompts_of
from sam2_3dmed_jax.training.compilation import compile_step
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.setup import set_up
from sam2_3dmed_jax.volume.io import read_labels, read_volume, write_labels
from sam2_3dmed_jax.volume.label_classes import LabelClass, declared_classes

CASES = 64
ABOUT = {"trained_on_these_cases": "no"}
Progress = Callable[..., None]


def demo_config(data: str) -> ExperimentConfig:
    """The demo's experiment: nano at 128 px, everything trained from scratch.

    Weight decay is larger than fine-tuning wants: from scratch and without it, features grow a hundredfold within a
    few hundred steps, and drown the position of the click.
    """
    return ExperimentConfig(
        model=ModelConfig(preset="nano", slice_position=SrppConfig(dim=64, layers=1)),
        data=DataConfig(
            path=data,
            slices=4,
            stride=5,  # so that clips of four slices reach as far from the click as a spleen does
            # Few slices without the object: an object score that errs towards absence hides far slices for good.
            beyond=0.15,
            absent=0.05,
            box=0.1,
            point_noise=0.3,
            rotation=0.0,  # so few steps do not exhaust the phantoms; turning and scaling smooth away their noise
            scaling=0.0,
            shift=0.0,
            intensity=0.02,
            gamma=0.0,
            noise=0.02,
            preprocessing=PreprocessingConfig(window="60,200"),  # the organs' contrast, not lung or bone
        ),
        training=TrainingConfig(
            steps=900,
            ema=0.99,  # averaged weights score in 640 steps what the last ones do in 800; rounding moves both by 0.01
            batch_size=4,
            learning_rate=2.5e-3,
            weight_decay=0.8,
            warmup_steps=30,
            checkpoint_every=300,
            log_every=10,
            images_every=0,  # which would compile another function
            loss=LossConfig(bce=10.0, bd=0.5),
        ),
    )


def run_demo(out: str | Path, seed: int, progress: Progress, training_progress: Progress) -> list[str]:
    """Run the demo in `out`, and resume one that was interrupted. Returns the lines to print at the end.

    Raises:
        UserError: `out` holds something else.
    """
    root = Path(out)
    marker = root / "demo.json"
    if root.exists() and any(root.iterdir()) and not marker.exists():
        raise UserError(f"{out} is not empty and holds no demo; choose another --out")
    root.mkdir(parents=True, exist_ok=True)
    if marker.exists() and json.loads(marker.read_text()) != {"seed": seed}:
        raise UserError(f"{out} holds a demo of another seed; choose another --out or the same --seed")
    marker.write_text(json.dumps({"seed": seed}))

    seconds: dict[str, float] = {}
    begin = time.monotonic()
    data, prepared, workers = root / "data", root / "prepared", min(os.cpu_count() or 1, 8)
    config = demo_config(str(prepared))
    with ThreadPoolExecutor(1) as pool:
        compiled = pool.submit(lambda: compile_step(set_up(config)))
        if not (data / "dataset.json").exists():
            write_phantom_dataset(
                data, CASES, seed, "spleen", lambda done, all_: progress("phantoms", done, all_), workers=workers
            )
        dataset = read_dataset(data)
        prepare(dataset, prepared, workers=workers, progress=progress)
        setup = compiled.result()
    begin = _lap(seconds, "phantoms", begin)
    final = train(config, root / "run", training_progress, setup=setup)
    begin = _lap(seconds, "training", begin)

    held_out = set(choose_split([case.id for case in dataset.cases], config.data).test)
    cases = [case for case in dataset.cases if case.id in held_out]
    trained = VolumePredictor(load_model(final))
    info = trained.model.info
    untrained = VolumePredictor(
        assemble(random_weights(info.model, config.training.seed), CheckpointInfo(info.model, info.preprocessing))
    )
    classes = declared_classes(dataset.labels)
    plans = {
        name: Plan(classes, "one-click", about={"method": name, **ABOUT}, pictures=WORST)
        for name in ("trained", "untrained")
    }
    with ThreadPoolExecutor(1) as pool:  # SciPy's work, beside the models
        grown = pool.submit(lambda: [_grow(case, entry) for case in cases for entry in classes])
        rows = {
            "trained": evaluate_model(trained, cases, plans["trained"], progress),
            "untrained": evaluate_model(untrained, cases, plans["untrained"]),
            "region growing": grown.result(),
        }
    costs = {"trained": [fixed_cost(trained)], "untrained": [fixed_cost(untrained)]}
    summaries = {name: summarise(found, costs.get(name, ())) for name, found in rows.items()}
    for name, found in rows.items():
        page = {REPORT: report_page(found, summaries[name])}
        write_results(found, summaries[name], root / "evaluation" / name.replace(" ", "_"), page)
    begin = _lap(seconds, "evaluation", begin)

    # The case nearest the mean, neither the best nor the worst.
    mean = summaries["trained"]["macro_dice"]
    typical = min(rows["trained"], key=lambda row: abs(row["dice"] - mean))
    case = next(case for case in cases if case.id == typical["case"])
    volume = read_volume(case.image)
    reference = read_labels(case.label, volume)
    prompts = [
        prompt
        for value in dataset.labels
        for prompt in prompts_of("one-click", reference == value, volume.spacing, value)
    ]
    labels = segment_volume(trained, volume, prompts).labels
    write_labels(root / "prediction.nii.gz", labels.astype(np.int32), volume)
    title = f"{case.id}: one click, Dice {typical['dice']:.2f} (a phantom; for research use only)"
    overlay.overlay(root / "overlay.png", volume, labels, reference, prompts, title=title)
    overlay.loss_curve(root / "loss_curve.png", root / "run" / "log.csv")
    _lap(seconds, "pictures", begin)

    lines = [f"Spleen of {len(cases)} phantoms it did not train on, one click each, mean Dice (research use only):"]
    for name, summary in summaries.items():
        spleen = summary["classes"]["spleen"]["dice"]
        lines.append(f"  {name:15} {spleen['mean']:.3f}  (median {spleen['median']:.3f}, n = {spleen['n']})")
    lines.append("Seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    for what, file in (
        ("segmentation", "prediction.nii.gz"),
        ("overlay", "overlay.png"),
        ("loss curve", "loss_curve.png"),
        ("scores", "evaluation/trained/cases.csv"),
        ("report", "evaluation/trained/report.html"),
        ("checkpoint", "run/final"),
    ):
        lines.append(f"  {what:13} {root / file}")
    return lines


def _lap(seconds: dict[str, float], name: str, begin: float) -> float:
    now = time.monotonic()
    seconds[name] = now - begin
    return now


def _grow(case: Case, entry: LabelClass) -> Row:
    """Region growing from the click that the model is given."""
    volume = read_volume(case.image)
    reference = read_labels(case.label, volume)
    (prompt,) = prompts_of("one-click", entry.mask(reference), volume.spacing, entry.values[0])
    ((x, y),) = prompt.points
    grown = region_growing(volume.array, (prompt.slice, round(y), round(x)), spacing=volume.spacing)
    plan = Plan([entry], "one-click", about={"method": "region growing", **ABOUT})
    (row,) = score_labels(case.id, np.where(grown, entry.values[0], 0), reference, volume.grid, plan)
    return row
