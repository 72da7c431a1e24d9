"""One work in Meta's `sam2` on a GPU, timed in a process of its own; prints one line of JSON.

python -m experiments.benchmarks.gpu.meta_side --preset sam2.1_hiera_tiny --work encoder [--compiled] [--smoke]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.gpu.timing import milliseconds

SIZES = {"encoder": (1024, 0), "memory attention": (1024, 0), "volume": (1024, 96), "training step": (1024, 12)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--work", choices=SIZES, required=True)
    parser.add_argument("--compiled", action="store_true", help="torch.compile, as upstream's vos_optimized")
    parser.add_argument("--smoke", action="store_true", help="toy sizes on the CPU; torch.compile does nothing")
    options = parser.parse_args(arguments)
    os.environ["JAX_PLATFORMS"] = "cpu"  # the weights are converted by our code; the GPU is PyTorch's
    import torch

    if options.smoke:
        torch.compile = lambda function, **_: function
    from experiments.benchmarks.gpu.works import WORKS, work_options

    if not options.smoke and not torch.cuda.is_available():
        print("PyTorch finds no GPU", file=sys.stderr)
        return 1
    device = "cpu" if options.smoke else "cuda"
    size, slices = (128, 2 if SIZES[options.work][1] else 0) if options.smoke else SIZES[options.work]
    settings = work_options(options.preset, size, "bfloat16", slices, device=device)
    settings.compiled = options.compiled

    def wait(_: object) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    with tempfile.TemporaryDirectory() as folder:
        side = WORKS[options.work].theirs(settings, Path(folder))
        start = time.perf_counter()
        wait(side.run())
        first = time.perf_counter() - start
        ms = milliseconds(side.run, wait, options.smoke)
    entry = {"ms": ms, "first call, s": first}
    if options.work == "volume":
        entry["slices/s"] = slices / ms * 1e3
    print(json.dumps(entry))
    return 0


if __name__ == "__main__":
    sys.exit(main())
