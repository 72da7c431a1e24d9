"""StableHLO programs of a model by `jax.export`, one per platform, with the weights next to them.

Each platform has its own program, because attention on TPU is a Pallas kernel that other platforms cannot lower.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from sam2_3dmed_jax.export.programs import programs_of
from sam2_3dmed_jax.export.runner import write_runner
from sam2_3dmed_jax.inference.feature_store import BLOCK
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.attention_choice import target_gpu
from sam2_3dmed_jax.sam2.model import SAM2
from sam2_3dmed_jax.sam2.parameters import split

PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(model: SAM2, folder: Path, progress: Progress | None = None) -> None:
    """Write the programs of a model, its weights and `run.py` into an existing folder.

    `propagate` takes blocks of any number of slices, and `context` volumes of any depth.

    Args:
        model: SAM2 or SAM2With3DMed.
        folder: the folder.
        progress: called after each program.
    """
    depth, steps = jax.export.symbolic_shape("depth, steps")
    programs = programs_of(model, depth, steps)
    weights = split(model)[1]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights)
    arrays: Any = {name: np.asarray(value) for name, value in weights.items()}
    np.savez(folder / "weights.npz", **arrays)
    for done, (name, program) in enumerate(programs.items(), start=1):
        traced = jax.jit(program.function)  # traced once for all platforms
        for platform in PLATFORMS:
            with target_gpu(None):  # a kernel for this machine's GPU has no stable format
                exported = jax.export.export(traced, platforms=[platform])(shapes, program.inputs)
            (folder / f"{name}.{platform}.stablehlo").write_bytes(exported.serialize())
        if progress:
            progress("exporting programs", done, len(programs), name)
    write_runner(model, folder, "stablehlo", programs, steps=BLOCK, context_slices=0)
