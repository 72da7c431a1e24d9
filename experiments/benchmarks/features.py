"""Step time with and without cached features: the same clips, alternating steps in one process.

    python experiments/benchmarks/features.py [--models sam2.1_hiera_tiny sam2.1_hiera_large] [--image-size 512]

A phantom is prepared with few slices, its features are computed, and both runs read their clips from disk through the
training pipeline. Weights are random and the encoder is frozen. The losses of the first step must agree before anything
is timed. Prints a Markdown table; times are medians and include the wait for data.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, PrepareConfig, SplitConfig, TrainingConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.data.pipeline import clip_batches, iterate
from sam2_3dmed_jax.data.prepare.prepare import prepare_dataset
from sam2_3dmed_jax.data.prepared import PreparedDataset
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.runtime import host_memory
from sam2_3dmed_jax.training.dataset import open_case_reader, split_cases
from sam2_3dmed_jax.training.features.build import open_features
from sam2_3dmed_jax.training.features.shards import slice_bytes
from sam2_3dmed_jax.training.feed import to_devices
from sam2_3dmed_jax.training.parameter_groups import FROZEN_PRETRAINED
from sam2_3dmed_jax.training.setup import set_up

SLICE_MM = 24.0  # slice spacing of the phantom, which then has about fifteen slices
AGREE = 0.01  # largest relative difference of losses, from the rounding of features to bfloat16


class Run:
    """A training run that is stepped one step at a time."""

    def __init__(self, config: ExperimentConfig, dataset: PreparedDataset):
        setup = set_up(config)
        view = open_case_reader(dataset, config)
        cases, _, _ = split_cases(view, config)
        start = time.perf_counter()
        features = open_features(config, setup.encoder, setup.devices, view, cases)
        self.encoding_seconds, self.slices = time.perf_counter() - start, sum(case.shape[0] for case in cases)
        batches = clip_batches(view, cases, config.data, config.training.batch_size, 0, features=features)
        self.megabytes = slice_bytes(setup.encoder.shapes) / 1e6 if setup.encoder else 0.0
        self._setup, self._state = setup, setup.state
        self._clips = iterate(batches, 0, config.data.workers)
        self._batches = to_devices(self._clips, setup.sharding)

    def step(self) -> tuple[float, float, float]:
        """Take a step; return its seconds, the part of them spent waiting for the batch, and its loss."""
        start = time.perf_counter()
        batch = jax.block_until_ready(next(self._batches))
        fed = time.perf_counter()
        self._state, metrics = self._setup.step(self._state, self._setup.frozen, batch)
        loss = float(metrics["loss"])
        return time.perf_counter() - start, fed - start, loss

    def close(self) -> None:
        """Stop reading clips."""
        self._clips.close()


def measure(options: argparse.Namespace, model: str, folder: Path, dataset: PreparedDataset) -> dict[str, str]:
    """Return one row of the table."""
    cached = ExperimentConfig(
        model=ModelConfig(model, options.image_size, compute_dtype=options.compute_dtype),
        data=DataConfig(
            path=dataset.path,
            slices=options.slices,
            split=SplitConfig(folds=2),
            features=str(folder / f"features_{model}"),
            augmentation=NO_AUGMENTATION,
        ),
        training=TrainingConfig(batch_size=options.batch_size, frozen=FROZEN_PRETRAINED),
    )
    runs = {
        "with": Run(cached, dataset),
        "without": Run(cached.replace(data=replace(cached.data, features="")), dataset),
    }
    first = {name: run.step()[2] for name, run in runs.items()}  # compiles
    if abs(first["with"] - first["without"]) > AGREE * abs(first["without"]):
        raise SystemExit(f"{model}: losses differ: {first}")
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    for number in range(options.steps):
        for name in sorted(runs, reverse=number % 2 == 0):
            times[name].append(runs[name].step())
    for run in runs.values():
        run.close()
    seconds = {name: statistics.median(taken[0] for taken in found) for name, found in times.items()}
    ratios = [out[0] / within[0] for out, within in zip(times["without"], times["with"], strict=True)]
    return {
        "model": model,
        "S": str(options.image_size),
        "D": str(options.slices),
        "B": str(options.batch_size),
        "first loss, without": f"{first['without']:.5f}",
        "with": f"{first['with']:.5f}",
        "step without, s": f"{seconds['without']:.3g}",
        "step with, s": f"{seconds['with']:.3g}",
        "times faster": f"{statistics.median(ratios):.2f}",
        "of it waiting for data, s": f"{statistics.median(taken[1] for taken in times['with']):.3g}",
        "making features, compilation included, s": f"{runs['with'].encoding_seconds:.3g}",
        "slices": str(runs["with"].slices),
        "MB/slice": f"{runs['with'].megabytes:.2f}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["sam2.1_hiera_tiny"], help="presets; default: sam2.1_hiera_tiny"
    )
    parser.add_argument("--image-size", type=int, default=512, help="S, pixels; default: %(default)s")
    parser.add_argument("--slices", type=int, default=6, help="D, of a clip; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=1, help="B, clips; default: %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each; default: %(default)s")
    parser.add_argument("--compute-dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args(arguments)
    host_memory.keep_freed_memory()
    print(f"{options.compute_dtype}, {os.cpu_count()} cores, {platform.machine()}; {jax.device_count()} devices\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_phantom_dataset(folder / "raw", 2, 0, "spleen", lambda *_: None)
        settings = PrepareConfig((SLICE_MM, None, None))
        dataset = prepare_dataset(read_dataset(folder / "raw"), folder / "data", settings, workers=1).dataset
        for number, model in enumerate(options.models):
            row = measure(options, model, folder, dataset)
            if not number:
                print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
            print("| " + " | ".join(row.values()) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
