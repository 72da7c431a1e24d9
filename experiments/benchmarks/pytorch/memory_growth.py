"""Growth of peak memory with the number of slices; each depth and side runs in a separate process.

    python -m experiments.benchmarks.pytorch.memory_growth [--slices 24 96] [--keep] [--reference transformers]

All sides start from a CT volume in memory. Ours keeps the features of all slices for corrections. By default, the
references keep the features of one slice, and a correction would have to encode the others again; with --keep they keep
the features of all slices, too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from experiments.benchmarks.pytorch.references import build, load
from experiments.benchmarks.pytorch.rows import machine
from experiments.benchmarks.pytorch.side_by_side import SEED, peak_of
from sam2_3dmed_jax.runtime import host_memory
from tests.parity import compare, generated
from tests.parity.scenarios import Tracked, one_object

LIMIT = 0.3
WARM_UP_SLICES = 8  # slices of the volume of the warm-up


def volume(depth: int, size: int):
    """Return a volume in HU, float32 `[depth, size, size]`."""
    from sam2_3dmed_jax.volume.geometry import Grid, Volume

    hu = np.empty((depth, size, size), np.float32)
    for d in range(depth):
        hu[d] = 40 + 60 * generated.slices(1, size, SEED + d % 8)[0, ..., 0]
    return Volume(hu, Grid((size, size, depth), np.diag([-0.8, -0.8, 2.5, 1.0])))


def make_segment(options: argparse.Namespace) -> Callable[[int], Tracked]:
    """Return a function that segments a volume of a number of slices from a click on its middle slice."""
    from sam2_3dmed_jax.config import PreprocessingConfig
    from sam2_3dmed_jax.volume.intensity import PreparedSlices

    folder = Path(options.folder)
    if options.alone == "ours":
        from sam2_3dmed_jax.runtime import compilation_cache
        from tests.parity.ours import Video

        host_memory.keep_freed_memory()
        compilation_cache.enable()
        model = load(options, folder, options.size)
    else:
        import torch

        from tests.parity import hf, meta

        torch.set_num_threads(2)
        model = build(options, folder, options.size)
        library = meta if options.reference == "meta" else hf

    def segment(depth: int) -> Tracked:
        slices = PreparedSlices(volume(depth, options.size), PreprocessingConfig(), options.size)
        if options.alone == "ours":
            return Video(model, slices).track(one_object(depth))
        return library.Video(model, slices[:], encode=options.keep).track(one_object(depth))

    return segment


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs=2, default=[24, 96], help="D; default: 24 96")
    parser.add_argument("--size", type=int, default=512, help="S, pixels; default: %(default)s")
    parser.add_argument("--keep", action="store_true", help="the reference keeps the features of all slices, too")
    parser.add_argument("--preset", default="sam2.1_hiera_tiny", help="default: %(default)s")
    parser.add_argument("--reference", choices=("meta", "transformers"), default="meta", help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file, too")
    parser.add_argument("--alone", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    flags = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(flags)
    options.dtype = "float32"
    if options.alone:
        depth, segment = options.slices[0], make_segment(options)
        segment(WARM_UP_SLICES)
        tracked, figures = peak_of(lambda: segment(depth))
        np.savez(f"{options.folder}/{options.alone}{depth}.npz", **vars(tracked))
        print(json.dumps(figures))
        return 0
    peaks: dict[str, list[float]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as name:
        build(options, Path(name), options.size)
        for depth in options.slices:
            for side in ("theirs", "ours"):
                command = [*flags, "--alone", side, "--folder", name, "--slices", str(depth), str(depth)]
                module = "experiments.benchmarks.pytorch.memory_growth"
                child = subprocess.run([sys.executable, "-m", module, *command], check=True, stdout=subprocess.PIPE)
                peaks[side].append(json.loads(child.stdout.splitlines()[-1])["peak_mib"])
                print(f"{side}, {depth} slices: {peaks[side][-1]:.0f} MiB", file=sys.stderr, flush=True)
        depth = options.slices[0]
        ours, theirs = (Tracked(**np.load(f"{name}/{side}{depth}.npz")) for side in ("ours", "theirs"))
        compare.assert_same_propagation(ours, theirs)
    row = {
        "kind": "memory",
        "slices": options.slices,
        "size": options.size,
        "reference": options.reference + (", keeping features" if options.keep else ", default"),
        "limit": LIMIT,
        "ours_mib": peaks["ours"],
        "theirs_mib": peaks["theirs"],
        "agreement": str(compare.agreement(ours, theirs)),
        "machine": machine(),
    }
    if options.json:
        Path(options.json).write_text(json.dumps(row, indent=1) + "\n")
    print(table([row]))
    return 0


def table(rows: Sequence[dict]) -> str:
    """Return rows as Markdown."""
    names = (
        "slices",
        "px",
        "reference",
        "peak MiB, ours",
        "reference",
        "growth MiB, ours",
        "reference",
        "ratio",
        "limit",
    )
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        grown = [row[f"{side}_mib"][1] - row[f"{side}_mib"][0] for side in ("ours", "theirs")]
        cells = [" to ".join(map(str, row["slices"])), str(row["size"]), row["reference"]]
        cells += [" to ".join(f"{peak:.0f}" for peak in row[f"{side}_mib"]) for side in ("ours", "theirs")]
        cells += [f"{grown[0]:.0f}", f"{grown[1]:.0f}", f"{grown[0] / grown[1]:.2f}", f"{row['limit']}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
