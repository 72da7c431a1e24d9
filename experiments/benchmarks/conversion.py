"""Time and peak memory of the conversion of a large checkpoint, in a separate process.

    python experiments/benchmarks/conversion.py [--preset sam2.1_hiera_large] [--source pt|safetensors|transformers]

The script writes random weights into a temporary folder, converts them with the command, and prints both figures with
their limits. Peak memory is the maximum resident set of the process, which includes mapped pages of the source.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from weights_conversion.presets import fit, native_shapes, plain
from weights_conversion.safetensors_files import write_safetensors

SECONDS, TIMES = 60.0, 2.5  # limits of the time, and of the memory relative to the size of the file


def write_random(folder: Path, preset: str, source: str) -> Path:
    """Write a source checkpoint with random weights and return its path."""
    layout = "transformers" if source == "transformers" else "meta"
    shapes = fit({}, plain(preset), layout).mapping.foreign_shapes(native_shapes(plain(preset)))

    def random(name: str) -> np.ndarray:
        rng = np.random.default_rng(1 if name.endswith("positional_embedding") else list(shapes).index(name))
        return rng.standard_normal(shapes[name], np.float32)

    if source == "pt":
        from weights_conversion.torch_files import write_torch

        write_torch(folder / "source.pt", shapes, random)
        return folder / "source.pt"
    if source == "safetensors":
        write_safetensors(folder / "source.safetensors", shapes, random, {"format": "pt"})
        return folder / "source.safetensors"
    (folder / "source").mkdir()
    (folder / "source" / "config.json").write_text("{}")
    write_safetensors(folder / "source" / "model.safetensors", shapes, random, {"format": "pt"})
    return folder / "source"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="sam2.1_hiera_large", help="default: %(default)s")
    parser.add_argument("--source", choices=("pt", "safetensors", "transformers"), default="pt", help="default: pt")
    parser.add_argument("--make", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--destination", default="native", help="name of the result: a folder, *.pt or *.safetensors")
    options = parser.parse_args()
    if options.make:
        write_random(Path(options.make), options.preset, options.source)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The peak of a forked process starts at its parent's memory, so this process must stay small.
        command = [sys.executable, __file__, "--preset", options.preset, "--source", options.source, "--make", name]
        subprocess.run(command, check=True)
        (source,) = folder.iterdir()
        size = sum(file.stat().st_size for file in ([source] if source.is_file() else source.iterdir()))
        command = [sys.executable, "-m", "weights_conversion", "convert", source, folder / options.destination]
        start = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        seconds, peak = time.perf_counter() - start, usage.ru_maxrss * 1024
    ok = status == 0 and seconds < SECONDS and peak < TIMES * size
    print(f"{options.preset}, {options.source} of {size / 1e6:.0f} MB to {options.destination}, {os.cpu_count()} cores")
    print(f"time         {seconds:6.1f} s   (limit {SECONDS:.0f} s)")
    print(f"peak memory  {peak / 1e6:6.0f} MB  = {peak / size:.2f} x the file (limit {TIMES} x)")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
