"""ONNX graphs of a model, with the weights inside. docs/how-to/export.md has the measured errors."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.export.programs import Program, programs_of
from sam2_3dmed_jax.export.runner import write_runner
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.attention import all_scores_at_once
from sam2_3dmed_jax.sam2.memory_selection import memory_rule
from sam2_3dmed_jax.sam2.model import SAM2
from sam2_3dmed_jax.sam2.parameters import Weights, split

CONTEXT_SLICES = 1024  # of `context`, whose shapes are static; deeper volumes are refused by ONNX Runtime


def require_onnx() -> None:
    """Check that the packages that write ONNX are installed.

    Raises:
        UserError: they are not.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise UserError("--to onnx needs the package onnx: pip install 'sam2-3dmed-jax[onnx]'") from error


def write_onnx(model: SAM2, folder: Path, progress: Progress | None = None) -> None:
    """Write the programs of a model as ONNX graphs, and `run.py`, into an existing folder.

    Args:
        model: SAM2 or SAM2With3DMed, in float32.
        folder: the folder.
        progress: called after each graph.

    Raises:
        UserError: the model computes in another dtype, or has another memory rule than `recent`.
    """
    if model.config.compute_dtype != "float32":
        raise UserError(
            f"--to onnx: the model computes in {model.config.compute_dtype}; only float32 models can be exported"
        )
    if memory_rule(model.config.memory_selection).ranked:
        raise UserError(
            f"--to onnx: the memory selection of the model is '{model.config.memory_selection}', and ONNX graphs have "
            "only 'recent'; give --to stablehlo, or a model with model.memory_selection recent"
        )
    programs = programs_of(model, CONTEXT_SLICES, None)
    weights = {name: jnp.asarray(value) for name, value in split(model)[1].items()}  # NumPy cannot be traced
    for done, (name, program) in enumerate(programs.items(), start=1):
        (folder / f"{name}.onnx").write_bytes(onnx_bytes(program, weights, name))
        if progress:
            progress("exporting programs", done, len(programs), name)
    write_runner(model, folder, "onnx", programs, steps=1, context_slices=CONTEXT_SLICES)


def onnx_bytes(program: Program, weights: Weights, name: str) -> bytes:
    """Return a program with its weights as the content of an .onnx file."""
    from sam2_3dmed_jax.export.onnx_graph import onnx_model, straight_line

    outputs: list[str] = []

    def function(*arrays: jax.Array) -> list[jax.Array]:
        results = program.function(weights, dict(zip(program.inputs, arrays, strict=True)))
        outputs[:] = results
        return list(results.values())

    with all_scores_at_once():
        traced = straight_line(function, *program.inputs.values())
    return onnx_model(traced, list(program.inputs), outputs, name).SerializeToString()
