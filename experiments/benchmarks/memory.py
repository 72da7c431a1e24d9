"""Peak memory of `predict` by slices and objects: of the process, and of what is in files.

    python -m experiments.benchmarks.memory [--rows 100x1 300x1 1000x1 1000x20] [--model sam2.1_hiera_tiny]

Each row is a command of its own, `sam2-3dmed predict`, on random weights, smooth tissue with noise of S x S voxels a
slice, and one click per object on the middle slice. A first command on a small volume compiles. The volume is counted
as float32, as it is in memory. "Own" memory cannot be dropped by the system; pages of files can. Prints a Markdown
table, row by row.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.benchmarks.serve import write_checkpoint, write_volume
from sam2_3dmed_jax.commands.command_line import add_compute_dtype
from sam2_3dmed_jax.runtime.compute_dtype import resolve_compute_dtype

SMALL = 24  # slices of the first command


@dataclass(frozen=True)
class Peak:
    """What a command took: seconds, and the largest memory in MiB of all moments at which it was looked at."""

    seconds: float
    resident: float
    own: float


def predict(checkpoint: str, folder: Path, shape: tuple[int, int, int], objects: int, dtype: str) -> Peak:
    """Run the command and watch its memory."""
    image = write_volume(folder / "volume.nii", shape)
    rng = np.random.default_rng(1)
    places = (rng.uniform(0.3, 0.7, (objects, 2)) * shape[:2]).astype(int).tolist()
    clicked = [{"id": 1 + k, "points": [{"voxel": [*place, shape[2] // 2]}]} for k, place in enumerate(places)]
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps({"objects": clicked}))
    inputs = [checkpoint, image, "--prompts", str(prompts), "--compute-dtype", dtype]
    command = ["predict", *inputs, "--out", str(folder / "segmentation.nii.gz")]
    start, resident, own = time.perf_counter(), 0.0, 0.0
    with subprocess.Popen([sys.executable, "-m", "sam2_3dmed_jax", *command]) as process:
        while process.poll() is None:
            time.sleep(0.05)
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = max(resident, _mebibytes(status, "VmHWM"))
            own = max(own, _mebibytes(status, "RssAnon"))
    if process.returncode:
        sys.exit(f"{shape[2]} slices, {objects} objects: predict ended with {process.returncode}")
    return Peak(time.perf_counter() - start, resident, own)


def _mebibytes(status: str, name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else 0.0  # a process that has ended has none


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["100x1", "300x1", "1000x1", "1000x20"], help="slices x objects")
    parser.add_argument("--model", default="sam2.1_hiera_tiny", help="preset; default: %(default)s")
    parser.add_argument("--image-size", type=int, default=512, help="S, pixels; default: %(default)s")
    add_compute_dtype(parser)
    options = parser.parse_args(arguments)
    options.dtype = "float32"  # of the checkpoint
    size, dtype = options.image_size, options.compute_dtype
    print(f"{options.model}, {size} px, {resolve_compute_dtype(dtype)}, random weights\n")
    print("| slices | objects | volume, MiB | seconds | peak, MiB | beyond the volume | own, beyond the volume |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_checkpoint(folder, options)
        predict(checkpoint, folder, (size, size, SMALL), 1, dtype)
        for row in options.rows:
            depth, objects = (int(word) for word in row.split("x"))
            peak = predict(checkpoint, folder, (size, size, depth), objects, dtype)
            volume = 4 * size * size * depth / 2**20
            print(
                f"| {depth} | {objects} | {volume:.0f} | {peak.seconds:.0f} | {peak.resident:.0f} | "
                f"{peak.resident - volume:.0f} | {peak.own - volume:.0f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
