"""The references with random weights that are not degenerate, and ours with the same ones, through the converter.

How they are made and what "equal" means is `tests/parity`'s; PyTorch in bfloat16 is its CPU autocast.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any

from experiments.benchmarks.pytorch.side_by_side import SEED
from weights_conversion.convert import convert


def build(options: argparse.Namespace, folder: Path, size: int) -> Any:
    """A reference; its weights are left in `folder` as our checkpoint."""
    from tests.parity import hf, meta

    library = meta if options.reference == "meta" else hf
    model = library.with_generated_weights(options.preset, size, SEED)
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        source = folder / ("official.pt" if options.reference == "meta" else "source")
        library.save(model, source)
        convert(source, checkpoint)
    return model


def load(options: argparse.Namespace, folder: Path, size: int) -> Any:
    """Ours, from the checkpoint that `build` left."""
    from tests.parity import ours

    return ours.load(folder / "checkpoint", size, options.dtype)


def precision(options: argparse.Namespace) -> contextlib.AbstractContextManager:
    """PyTorch's way to compute in the dtype asked for."""
    import torch

    if options.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", torch.bfloat16)
