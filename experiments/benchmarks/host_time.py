"""Host time per slice of a prediction, outside of the compiled programs.

    python -m experiments.benchmarks.host_time [--image-size 1024] [--slices 32] [--objects 1]

The compiled programs are replaced by ones that return the same arrays at once, so that what remains is the host's work:
preparing and uploading slices, storing and gathering features, fetching results, and the way back to voxels. Features
stay on the device, as on a GPU or TPU. The work on a phantom of 512 x 512 voxels is measured as CPU time of all threads
(best of several volumes), by part. The programs that prepare slices on a device are left out of its time by the same
replacement. The script runs on earlier commits too, which prepared slices and kept features on the host.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

VOXELS = 512  # rows and columns of a slice
PARTS = ("preparing and encoding", "propagation", "back to voxels")


def stub(module: Any, name: str) -> None:
    """Replace a compiled program of a module by one that returns zeros on the device, made once per shape."""
    program = getattr(module, name)
    results: dict[Any, Any] = {}

    def instead(*arguments: Any) -> Any:
        key = tuple(map(_shape, arguments))
        if key not in results:
            shapes = program.eval_shape(*arguments)
            results[key] = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return results[key]

    setattr(module, name, instead)


def _shape(argument: Any) -> tuple[int, ...]:
    """Return the shape of an array, a shape itself, and () for other arguments, such as weights."""
    if type(argument) is tuple:
        return argument
    return tuple(getattr(argument, "shape", ()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=1024, help="S, pixels; default: %(default)s")
    parser.add_argument("--slices", type=int, default=32, help="slices of the volume; default: %(default)s")
    parser.add_argument("--objects", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--repeats", type=int, default=3, help="volumes, of which the best counts; default: %(default)s"
    )
    options = parser.parse_args(arguments)
    print(measure(options.image_size, options.slices, options.objects, options.repeats))
    return 0


def measure(image_size: int, depth: int, objects: int, repeats: int) -> str:
    """Return a table of milliseconds per slice."""
    from sam2_3dmed_jax import Prompt, VolumePredictor
    from sam2_3dmed_jax.config import ModelConfig, PreprocessingConfig
    from sam2_3dmed_jax.inference import feature_store, predictor, propagation
    from sam2_3dmed_jax.inference.segment import label_result
    from sam2_3dmed_jax.model.build import random_weights
    from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble
    from sam2_3dmed_jax.volume.geometry import Grid, Volume
    from sam2_3dmed_jax.volume.intensity import PreparedSlices

    stub(feature_store, "encode_block")
    stub(propagation, "propagate_block")
    stub(predictor, "segment_from_points")
    try:
        stub(importlib.import_module("sam2_3dmed_jax.inference.device_slices"), "prepare_block")
        stub(importlib.import_module("sam2_3dmed_jax.inference.feature_blocks"), "gather_rows")
        label_maps = importlib.import_module("sam2_3dmed_jax.inference.label_maps")
        stub(label_maps, "nothing")
        stub(label_maps, "paint_object")
        device_memory = importlib.import_module("sam2_3dmed_jax.inference.device_memory")
        device_memory.is_separate = device_memory.has_room = lambda array: True
    except ModuleNotFoundError:  # an earlier commit
        pass
    hu = np.random.default_rng(0).normal(0, 300, (depth, VOXELS, VOXELS)).astype(np.float32)
    volume = Volume(hu, Grid((VOXELS, VOXELS, depth), np.diag([-1.0, -1.0, 1.0, 1.0])))
    config = ModelConfig("sam2.1_hiera_tiny", image_size, srpp=False, bd=False, compute_dtype="bfloat16")
    model = VolumePredictor(assemble(random_weights(config, 0), CheckpointInfo(config)))
    prompts = [Prompt(k + 1, depth // 2, [(100.0, 100.0)], [1]) for k in range(objects)]
    best = np.full(len(PARTS), np.inf)
    for _ in range(repeats + 1):
        times = [time.process_time()]
        session = model.start(PreparedSlices(volume, PreprocessingConfig(), image_size))
        times.append(time.process_time())
        session.add(prompts)
        result = session.result()
        times.append(time.process_time())
        label_result(result, (VOXELS, VOXELS))
        times.append(time.process_time())
        best = np.minimum(best, np.diff(times))
    rows = dict(zip((*PARTS, "all"), 1e3 * np.array([*best, best.sum()]) / depth, strict=True))
    head = f"{image_size} px, {depth} slices, {objects} object(s), jax {jax.__version__}"
    lines = [f"| {part} | {milliseconds:.2f} |" for part, milliseconds in rows.items()]
    return "\n".join([head, "| host work | ms of CPU per slice |", "|---|---|", *lines])


if __name__ == "__main__":
    sys.exit(main())
