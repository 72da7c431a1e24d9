"""The first interactive session on a machine: seconds of each early click, and what was compiled for it.

    python -m experiments.benchmarks.first_session [--model sam2.1_hiera_tiny] [--image-size 512] [--slices 12]

Nothing is compiled before. The clicks of a user follow on encoded slices of smooth tissue with noise: each is answered
with its slice and then with all masks. Weights are random. The script also runs on earlier commits, without warm-up.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sam2.1_hiera_tiny", help="preset; default: %(default)s")
    parser.add_argument("--image-size", type=int, default=512, help="S, pixels; default: %(default)s")
    parser.add_argument("--slices", type=int, default=12, help="of the volume; default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="of computation; default: %(default)s")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SAM2_3DMED_CACHE"] = cache
        print("\n".join(measure(options)))
    return 0


def measure(options: argparse.Namespace) -> list[str]:
    """Return the lines of the table."""
    import jax
    import numpy as np
    from scipy import ndimage

    from sam2_3dmed_jax import Scan, new_model, save_model

    compiled: list[float] = []

    def on_duration(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    checkpoint = os.path.join(os.environ["SAM2_3DMED_CACHE"], "checkpoint")
    save_model(new_model(options.model, options.image_size), checkpoint)
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(0, 1, (256, 256, options.slices)), 3) * 2000
    scan = Scan(image, checkpoint, affine=np.diag([-1.0, -1.0, 3.0, 1.0]), compute_dtype=options.dtype)
    middle = options.slices // 2
    lines = ["| work | seconds | programs compiled | seconds of their compilation |", "|---|---|---|---|"]

    def timed(name: str, work: Callable[[], object]) -> None:
        compiled.clear()
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        lines.append(f"| {name} | {seconds:.2f} | {len(compiled)} | {sum(compiled):.1f} |")

    def answered(change: Callable[[], object]) -> Callable[[], object]:
        def work() -> None:
            change()
            scan.preview()
            scan.propagate()

        return work

    timed("encoding", scan.encode)
    if warm_up := getattr(scan, "warm_up", None):
        timed("warm-up", warm_up)
    timed("first click", answered(lambda: scan.click((128, 128, middle))))
    timed("second click on the slice", answered(lambda: scan.click((100, 120, middle), inside=False)))
    timed("click on another slice", answered(lambda: scan.click((120, 128, middle + 2))))
    timed("click on a third slice", answered(lambda: scan.click((120, 128, middle - 3))))
    timed("first click on a second object", answered(lambda: scan.click((60, 60, middle), object=2)))
    timed("box around a third object", answered(lambda: scan.box((160, 160, middle), (220, 220, middle), object=3)))
    for number in range(3):
        name = f"click {number + 4} on the first slice"
        timed(name, answered(lambda number=number: scan.click((128 + 5 * number, 140, middle))))  # type: ignore[misc]
    return lines


if __name__ == "__main__":
    sys.exit(main())
