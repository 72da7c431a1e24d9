"""Seconds from a command to its label map: a script around Meta's predictor, and `sam2-3dmed predict`, cold and warm.

    python -m experiments.benchmarks.pytorch.first_result [--slices 24] [--size 512] [--pairs 3]

Each run is a new process that reads weights and a NIfTI file, segments both directions from one click on the middle
slice and writes a label map. "Cold" has an empty cache of compiled programs, "warm" the cache of the run before.
Weights are random, the same on all sides. Prints a Markdown table.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SEED = 0
LEVEL, WIDTH = 40.0, 400.0  # HU, the window of our default preprocessing
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as Meta's predictor takes them
LIMITS = {"cold": 1.3, "warm": 0.6}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="sam2.1_hiera_tiny", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=512, help="S, pixels; default: %(default)s")
    parser.add_argument("--slices", type=int, default=24, help="D; default: %(default)s")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side, by turns; default: %(default)s")
    parser.add_argument("--dtypes", nargs="+", default=["auto", "float32"], help="of ours; default: auto float32")
    parser.add_argument("--work", choices=("make", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(flags)
    if options.work:
        {"make": make, "theirs": theirs}[options.work](options)
        return 0
    with tempfile.TemporaryDirectory() as name:
        print("\n".join(measure(options, flags, Path(name))))
    return 0


def measure(options: argparse.Namespace, flags: Sequence[str], folder: Path) -> list[str]:
    """Return the lines of the table."""
    import nibabel

    own = [sys.executable, "-m", "experiments.benchmarks.pytorch.first_result", *flags, "--folder", str(folder)]
    subprocess.run([*own, "--work", "make"], check=True)
    center = options.size // 2
    seconds: dict[str, list[float]] = {}
    outputs: dict[str, str] = {}

    def timed(name: str, command: Sequence[str], output: str, cache: str = "") -> None:
        environment = {**os.environ, "SAM2_3DMED_CACHE": str(folder / cache)}
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        outputs[name] = output
        print(f"{name} {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)

    for number in range(options.pairs):
        timed("Meta's predictor, float32", [*own, "--work", "theirs"], "theirs.nii.gz")
        for dtype in options.dtypes:
            output = f"{dtype}.nii.gz"
            command = [sys.executable, "-m", "sam2_3dmed_jax", "predict", str(folder / "checkpoint")]
            command += [str(folder / "image.nii.gz"), "--point", f"{center},{center},{options.slices // 2}"]
            command += ["--compute-dtype", dtype, "--out", str(folder / output)]
            for state in LIMITS:
                timed(f"predict, {dtype}, {state}", command, output, cache=f"cache-{dtype}-{number}")

    masks = {name: np.asarray(nibabel.load(folder / file).dataobj) > 0 for name, file in outputs.items()}
    (reference, reference_seconds), *_ = seconds.items()
    lines = ["| work | seconds | of the reference | limit | Dice with it |", "|---|---|---|---|---|"]
    for name, found in seconds.items():
        median, state = statistics.median(found), name.rpartition(", ")[2]
        ratio = median / statistics.median(reference_seconds)
        own_mask, their_mask = masks[name], masks[reference]
        dice = 2 * (own_mask & their_mask).sum() / max(own_mask.sum() + their_mask.sum(), 1)
        spread = f"{median:.1f} ({min(found):.1f} to {max(found):.1f})"
        lines.append(f"| {name} | {spread} | {ratio:.2f} | {LIMITS.get(state, '')} | {dice:.4f} |")
    return lines


def make(options: argparse.Namespace) -> None:
    """Write the weights of both sides, and an image of smooth tissue with noise."""
    import nibabel
    from scipy import ndimage

    from tests.parity import meta
    from weights_conversion.convert import convert_checkpoint

    official = options.folder / "official.pt"
    meta.save(meta.with_generated_weights(options.preset, options.size, SEED), official)
    convert_checkpoint(official, options.folder / "checkpoint", image_size=options.size)
    shape = options.size, options.size, options.slices
    smooth = ndimage.gaussian_filter(np.random.default_rng(SEED).normal(0, 1, shape).astype(np.float32), (24, 24, 2))
    hu = (LEVEL + smooth / smooth.std() * WIDTH / 4).astype(np.int16)
    # Left and posterior first, so that ours does not turn the slices.
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([-1.0, -1.0, 3.0, 1.0])), options.folder / "image.nii.gz")


def theirs(options: argparse.Namespace) -> None:
    """Segment the image as a script around Meta's predictor does; features of all slices are kept, as ours are."""
    import nibabel
    import torch

    from tests.parity import meta
    from tests.parity.scenarios import Ask

    torch.set_num_threads(os.cpu_count() or 1)
    model = meta.build(options.preset, options.size)
    model.load_state_dict(torch.load(options.folder / "official.pt", weights_only=True)["model"])
    image = nibabel.load(options.folder / "image.nii.gz")
    grey = np.clip((np.asarray(image.dataobj, np.float32).T - (LEVEL - WIDTH / 2)) / WIDTH, 0, 1)
    slices = (grey[..., None] - np.float32(MEAN)) / np.float32(STD)
    center = (options.size // 2 + 0.5) / options.size
    click = Ask(1, options.slices // 2, ((center, center, 1),))
    tracked = meta.Video(model, slices).track(((click,),))
    logits = torch.from_numpy(tracked.mask_logits[0, 0])[:, None]
    masks = torch.nn.functional.interpolate(logits, (options.size, options.size), mode="bilinear")[:, 0] > 0
    labels = masks.numpy().T.astype(np.uint16)
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), options.folder / "theirs.nii.gz")


if __name__ == "__main__":
    sys.exit(main())
