"""Latency of the server: clicks on an encoded volume, neighbouring slices, bytes, memory, and frames of the page.

    python -m experiments.benchmarks.serve [--checkpoint CKPT] [--image IMAGE] [--clicks 20] [--browser]

A server runs as a process of its own, and this one is its page: it clicks at random places and waits for the masks. The
first clicks compile and are left out. Without --checkpoint, weights are random; without --image, the volume is smooth
tissue with noise, 512 x 512 x 160. `--browser` opens the real page in Chromium, clicks there, and measures the time
between its frames while slices arrive. Prints Markdown tables.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from websockets.sync.client import ClientConnection, connect

from sam2_3dmed_jax import save_model
from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.build import random_weights
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble

NEIGHBOURS = 20
WARM = 3  # first clicks, which are not counted
PRESENCE = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
INTERVALS = """
window.intervals = []; window.last = performance.now();
(function frame(now) { intervals.push(now - last); last = now; requestAnimationFrame(frame); })(performance.now());
"""


@dataclass(frozen=True)
class Clicked:
    """What followed a click: seconds, the bytes of each slice, and the server's own figure."""

    first: float
    neighbours: float  # until the masks of `NEIGHBOURS` further slices, or of all
    server: float
    sizes: list[int]


def write_checkpoint(folder: Path, options: argparse.Namespace) -> str:
    """Write a model with random weights whose objects are present, and return its folder."""
    config = ModelConfig(options.model, options.image_size, srpp=False, bd=False, compute_dtype=options.dtype)
    weights = random_weights(config, 0)
    weights[PRESENCE] = weights[PRESENCE] + 2.0
    save_model(assemble(weights, CheckpointInfo(config)), folder / "checkpoint")
    return str(folder / "checkpoint")


def write_volume(path: Path, shape: tuple[int, int, int]) -> str:
    """Write smooth tissue with noise, `[i, j, k]` int16 in HU."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(16, 16, 12)).astype(np.float32)
    tissue = ndimage.zoom(coarse, np.divide(shape, coarse.shape), order=1)
    values = 40 + 60 * tissue + 12 * rng.standard_normal(shape, np.float32)
    nib.save(nib.Nifti1Image(np.rint(values).astype(np.int16), np.diag([-0.8, -0.8, 2.5, 1.0])), path)
    return str(path)


@contextlib.contextmanager
def serving(checkpoint: str, image: str) -> Iterator[tuple[int, int]]:
    """Run the server, and yield the numbers of its process and of its port."""
    command = [sys.executable, "-m", "sam2_3dmed_jax", "serve", checkpoint, image, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert address
            yield process.pid, int(address[1])
        finally:
            process.terminate()


def wait_until_idle(socket: ClientConnection) -> None:
    """Wait until the server has encoded the volume."""
    while True:
        message = socket.recv(timeout=1800)
        if not isinstance(message, bytes) and json.loads(message).get("activity") == "idle":
            return


def click(socket: ClientConnection, voxel: Sequence[int], inside: bool) -> Clicked:
    """Click, and wait until all masks are complete."""
    start = time.perf_counter()
    socket.send(json.dumps({"type": "click", "object": 1, "voxel": list(voxel), "inside": inside}))
    times: list[float] = []
    sizes: list[int] = []
    while True:
        message = socket.recv(timeout=1800)
        passed = time.perf_counter() - start
        if isinstance(message, bytes):
            times.append(passed)
            sizes.append(len(message))
            continue
        state = json.loads(message)
        assert state["type"] != "error", state
        if state.get("complete") and state["activity"] == "idle":
            times = times or [passed]
            return Clicked(times[0], times[min(NEIGHBOURS, len(times) - 1)], state["clickSeconds"], sizes)


def memory_mib(process: int) -> float:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index] # it is in each status


def measure_clicks(process: int, port: int, image: str, clicks: int) -> list[str]:
    """Click from a page without a viewer, and return the lines of the table."""
    rng = np.random.default_rng(1)
    with connect(f"ws://127.0.0.1:{port}/page/socket", max_size=None) as socket:
        socket.send(json.dumps({"type": "open", "image": Path(image).name}))
        opened = json.loads(socket.recv(timeout=600))
        assert opened["type"] == "opened", opened
        shape = np.array(opened["image"]["shape"])
        start = time.perf_counter()
        socket.send(json.dumps({"type": "ready"}))
        wait_until_idle(socket)
        encoded = time.perf_counter() - start
        found, memory = [], []
        for number in range(WARM + clicks):
            voxel = (shape * rng.uniform(0.3, 0.7, 3)).astype(int).tolist()
            found.append(click(socket, voxel, number % 3 != 2))
            memory.append(memory_mib(process))
    warm = found[WARM:]
    first, neighbours = ([getattr(each, name) for each in warm] for name in ("first", "neighbours"))
    sizes = [size for each in warm for size in each.sizes]
    half = memory[WARM + clicks // 2 :]
    return [
        "| measure | median | worst |",
        "|---|---|---|",
        _row("click to the mask of its slice, ms", [1000 * value for value in first]),
        _row("the same on the server, ms", [1000 * each.server for each in warm]),
        _row(f"click to {NEIGHBOURS} further slices, s", neighbours, 2),
        _row("bytes of a slice", sizes),
        _row("memory of the server, MiB, second half of the clicks", half),
        f"| memory after {WARM} clicks, MiB | {memory[WARM - 1]:.0f} | |",
        f"| encoding of {shape[2]} slices, with compilation, s | {encoded:.1f} | |",
    ]


def _row(name: str, values: Sequence[float], digits: int = 0) -> str:
    return f"| {name} | {statistics.median(values):.{digits}f} | {max(values):.{digits}f} |"


def measure_frames(port: int, image: str) -> list[str]:
    """Click on the real page, and return the lines of the table."""
    from tests.helpers.chromium import chromium
    from tests.helpers.served_page import User

    with chromium() as page:
        user = User(page, port)
        user.open(Path(image).name)
        page.wait("session.activity === 'idle'", 1800)
        middle = [length // 2 for length in page.run("session.image.shape")]
        user.click(middle)  # compiles
        user.wait_for_masks()
        page.run(INTERVALS)
        time.sleep(3)
        idle = page.run("intervals.splice(0)")
        user.click([middle[0] // 2, *middle[1:]])
        user.wait_for_masks()
        busy = page.run("intervals.splice(0)")
        renderer = page.run(
            "nv.gl.getParameter(nv.gl.getExtension('WEBGL_debug_renderer_info').UNMASKED_RENDERER_WEBGL)"
        )
        drawing = page.run("drawMs")
    return [
        f"Page of 1280 x 800 in Chromium, {renderer}; one drawing takes {drawing:.0f} ms.",
        "",
        "| between two frames, ms | median | 99 % | worst | above 100 ms |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {np.median(found):.0f} | {np.percentile(found, 99):.0f} | {max(found):.0f} | "
            f"{sum(value > 100 for value in found)} of {len(found)} |"
            for name, found in (("at rest", idle), ("while slices arrive", busy))
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sam2.1_hiera_tiny", help="preset with random weights; default: %(default)s")
    parser.add_argument("--image-size", type=int, default=512, help="S, pixels; default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default: %(default)s")
    parser.add_argument("--checkpoint", metavar="CKPT", help="a native checkpoint instead of random weights")
    parser.add_argument("--image", help="NIfTI file instead of a generated one")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 160), help="of the generated one, voxels")
    parser.add_argument("--clicks", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--browser", action="store_true", help="measure the frames of the page too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or write_checkpoint(Path(folder), options)
        image = options.image or write_volume(Path(folder, "volume.nii.gz"), tuple(options.shape))
        model = options.checkpoint or f"{options.model}, {options.image_size} px, {options.dtype}, random weights"
        print(f"{model}; {os.cpu_count()} cores, {platform.machine()}\n")
        with serving(checkpoint, image) as (process, port):
            print("\n".join(measure_clicks(process, port, image, options.clicks)), flush=True)
            if options.browser:
                print("\n" + "\n".join(measure_frames(port, image)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
