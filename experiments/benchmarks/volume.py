"""Time and memory of the segmentation of a volume: seconds per slice, time from a correction to its mask, peak memory.

    python experiments/benchmarks/volume.py [--model nano | --checkpoint CKPT] [--slices 96] [--objects 1 4 16]

Each number of objects runs in a separate process, on the same random weights (or a checkpoint) and a phantom. A first
volume compiles the programs; a second one is timed. Prints a Markdown table.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam2_3dmed_jax.commands.command_line import add_compute_dtype
from sam2_3dmed_jax.runtime import compilation_cache


def make_model(options: argparse.Namespace) -> Any:
    """Return the model of the options: a checkpoint, or random weights in the same dtype."""
    from sam2_3dmed_jax import load_model
    from sam2_3dmed_jax.config import ModelConfig
    from sam2_3dmed_jax.model.build import random_weights
    from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble
    from sam2_3dmed_jax.runtime.compute_dtype import resolve_compute_dtype

    if options.checkpoint:
        return load_model(options.checkpoint, options.image_size, options.compute_dtype)
    dtype = resolve_compute_dtype(options.compute_dtype)
    config = ModelConfig(options.model, options.image_size, compute_dtype=dtype)
    return assemble(random_weights(config, 0), CheckpointInfo(config))


def measure(model: Any, depth: int, objects: int) -> dict[str, float]:
    """Measure one row of the table in this process, of a model and a volume of `depth` slices."""
    from sam2_3dmed_jax import Prompt, VolumePredictor
    from sam2_3dmed_jax.config import PreprocessingConfig
    from sam2_3dmed_jax.phantom import make_case
    from sam2_3dmed_jax.runtime import host_memory
    from sam2_3dmed_jax.volume.geometry import Grid, Volume
    from sam2_3dmed_jax.volume.intensity import PreparedSlices

    hu, _, (dz, dy, dx) = make_case(0, "spleen")
    array = np.resize(hu.astype(np.float32), (depth, *hu.shape[1:]))
    volume = Volume(array, Grid(array.shape[::-1], np.diag([-dx, -dy, dz, 1.0])))
    slices = PreparedSlices(volume, PreprocessingConfig(), model.config.image_size)
    predictor = VolumePredictor(model)
    middle, side = len(slices) // 2, model.config.image_size
    clicks = np.random.default_rng(0).uniform(0.3, 0.7, (objects, 2)) * side
    prompts = [Prompt(k + 1, middle, [tuple(xy)], [1]) for k, xy in enumerate(clicks.tolist())]

    def segment() -> tuple[float, float, float]:
        start = time.perf_counter()
        session = predictor.start(slices)
        encoded = time.perf_counter()
        session.add(prompts)
        session.result()
        propagated = time.perf_counter()
        session.add([Prompt(1, middle, [(0.2 * side, 0.2 * side)], [0])])
        session.preview()
        corrected = time.perf_counter()
        session.result()
        return encoded - start, propagated - encoded, corrected - propagated

    segment()
    encode, propagate, correct = segment()
    return {
        "objects": objects,
        "encoding, s/slice": encode / len(slices),
        "propagation, s/slice": propagate / len(slices),
        "correction to mask, s": correct,
        "peak memory, MiB": host_memory.peak_bytes() / 2**20,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="preset with random weights; default: %(default)s")
    parser.add_argument("--checkpoint", metavar="CKPT", help="a native checkpoint instead of random weights")
    parser.add_argument("--image-size", type=int, help="S, pixels; default: the preset's")
    add_compute_dtype(parser)
    parser.add_argument("--slices", type=int, default=96, help="slices of the volume; default: %(default)s")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4, 16], help="default: 1 4 16")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        compilation_cache.enable()
        print(json.dumps(measure(make_model(options), options.slices, options.objects[0])))
        return 0
    print(
        f"{options.checkpoint or options.model}, {options.slices} slices, {os.cpu_count()} cores, {platform.machine()}"
    )
    for number, objects in enumerate(options.objects):
        flags = [*(sys.argv[1:] if arguments is None else arguments), "--child", "--objects", str(objects)]
        child = subprocess.run([sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(child.stdout)
        if not number:
            print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
        print("| " + " | ".join(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in row.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
