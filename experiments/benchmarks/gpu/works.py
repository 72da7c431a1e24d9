"""Works that are checked and timed: those of `benchmarks.pytorch`, with weights that need no PyTorch.

The weights are generated as for the parity tests, of any preset, so that a process with Meta's `sam2` has the same.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.numpy import load_file, save_file

from experiments.benchmarks.pytorch import image_encoder, memory_attention, training_step, volume
from experiments.benchmarks.pytorch.side_by_side import SEED, Side
from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.build import random_weights
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble, save_weights
from sam2_3dmed_jax.sam2.attention_choice import force_attention
from tests.parity import generated
from weights_conversion.convert import convert_checkpoint

WORKS: dict[str, ModuleType] = {
    "encoder": image_encoder,
    "memory attention": memory_attention,
    "volume": volume,
    "training step": training_step,
}


def work_options(
    preset: str, size: int, dtype: str, slices: int = 0, objects: int = 1, device: str = "cpu"
) -> argparse.Namespace:
    """Return the options of a work; `device` is PyTorch's."""
    return argparse.Namespace(
        preset=preset, size=size, dtype=dtype, slices=slices, objects=objects, device=device, reference="meta"
    )


def write_checkpoint(preset: str, folder: Path) -> None:
    """Write `folder/checkpoint` with the generated weights of a preset, if it is not there."""
    if (folder / "checkpoint").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = ModelConfig(preset, srpp=False, bd=False)
    save_weights(random_weights(config, SEED), folder / "names", CheckpointInfo(config))
    convert_checkpoint(folder / "names", folder / "names.safetensors", to="meta")
    shapes = {name: value.shape for name, value in load_file(folder / "names.safetensors").items()}
    save_file(generated.weights(shapes, SEED), folder / "generated.safetensors")
    convert_checkpoint(folder / "generated.safetensors", folder / "checkpoint", preset=preset)


def our_side(work: str, options: argparse.Namespace, folder: Path) -> Side:
    """Return our side of a work, built from a folder that has a subfolder per preset."""
    write_checkpoint(options.preset, folder / options.preset)
    side: Side = WORKS[work].ours(options, folder / options.preset)
    return side


def attention_by(path: str) -> contextlib.AbstractContextManager[None]:
    """Return the context in which programs are compiled with one path of attention; "": the model chooses."""
    return force_attention(path) if path else contextlib.nullcontext()  # type: ignore[arg-type]


def random_model(preset: str, size: int, dtype: str) -> Any:
    """Return SAM 2 with random weights and a description, as `load_model` does."""
    config = ModelConfig(preset, size, srpp=False, bd=False, compute_dtype=dtype)  # type: ignore[arg-type]
    return assemble(random_weights(config, SEED), CheckpointInfo(config))
