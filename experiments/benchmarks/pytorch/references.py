"""Reference models with random, non-degenerate weights, and our model with the same weights through the converter.

`tests/parity` defines the weights and what "equal" means; PyTorch in bfloat16 is its autocast.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any

from experiments.benchmarks.pytorch.side_by_side import SEED
from weights_conversion.convert import convert_checkpoint


def build(options: argparse.Namespace, folder: Path, size: int) -> Any:
    """Return a reference model, and write its weights to `folder` as our checkpoint."""
    from tests.parity import hf, meta

    library = meta if options.reference == "meta" else hf
    compiled = {"compiled": True} if getattr(options, "compiled", False) else {}  # Meta's only
    model = library.with_generated_weights(options.preset, size, SEED, **compiled).to(device(options))
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        source = folder / ("official.pt" if options.reference == "meta" else "source")
        library.save(model, source)
        convert_checkpoint(source, checkpoint)
    return model


def device(options: argparse.Namespace) -> str:
    """Return the device of PyTorch, which the benchmarks on GPUs set."""
    return getattr(options, "device", "cpu")


def load(options: argparse.Namespace, folder: Path, size: int) -> Any:
    """Return our model from the checkpoint that `build` wrote."""
    from tests.parity import ours

    return ours.load(folder / "checkpoint", size, options.dtype)


def precision(options: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Return the context in which PyTorch computes in the dtype of the options."""
    import torch

    if options.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device(options), torch.bfloat16)
