"""Alternating timing of our code and a PyTorch reference, each in a separate process: same weights, input and threads.

Outputs are compared before anything is timed. Times and peak memory exclude the warm-up, because compilation has its
own peak. A script defines a `Work` and passes it to `main`.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.pytorch import rows, where
from sam2_3dmed_jax.runtime import compilation_cache, host_memory

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

SEED = 0
MIB = 1 << 20


@dataclass(frozen=True)
class Side:
    """One implementation of the work."""

    run: Callable[[], Any]  # returns when the work is finished
    flops: float | None = None  # of the matrix products and convolutions of this implementation
    result: Callable[[Any], Any] = lambda out: out  # converts the output of `run` for the check; not timed


@dataclass(frozen=True)
class Work:
    """A row of the table: one task in two implementations, which are built from the options and a shared folder."""

    name: Callable[[argparse.Namespace], str]
    limits: dict[str, float]  # ours / reference, by dtype
    ours: Callable[[argparse.Namespace, Path], Side]  # from the native checkpoint in the folder
    theirs: Callable[[argparse.Namespace, Path], Side]
    check: Callable[[Any, Any, argparse.Namespace], str]  # returns the agreement as text; raises AssertionError


def main(work: Work, parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Compare and time both sides, and print a Markdown table."""
    parser.add_argument("--preset", default="sam2.1_hiera_tiny", help="default: %(default)s")
    parser.add_argument("--reference", choices=("meta", "transformers"), default="meta", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file, too")
    parser.add_argument("--alone", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    flags = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(flags)
    if options.alone == "ours":
        os.environ["SAM2_3DMED_CACHE"] = f"{options.folder}/cache"
        compilation_cache.enable()  # as all our commands do
        host_memory.keep_freed_memory()
    if options.alone == "theirs":
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
    if options.alone:
        _serve(work, options)
        return 0
    with tempfile.TemporaryDirectory() as name:
        row = _pairs(work, options, flags, Path(name))
    if options.json:
        Path(options.json).write_text(json.dumps(row, indent=1) + "\n")
    print("\n".join([rows.table([row]), "", where.table([row])]))
    return 0


class Worker:
    """One side in a separate process, which waits while the other side runs.

    Separate processes also allow to attribute memory to a side.
    """

    def __init__(self, work: Work, side: str, flags: Sequence[str], folder: Path):
        script = sys.modules[work.ours.__module__].__spec__.name  # type: ignore[union-attr]
        command = [sys.executable, "-m", script, *flags, "--alone", side, "--folder", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self._answer()

    def ask(self, what: str) -> Any:
        """Send one of the commands of `_serve` and return the answer."""
        print(what, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        for line in self._process.stdout or ():
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise SystemExit(f"a worker process ended early with exit code {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


ANSWER = "answer: "


def _serve(work: Work, options: argparse.Namespace) -> None:
    """Answer commands in a worker process until its input ends."""
    side = (work.ours if options.alone == "ours" else work.theirs)(options, Path(options.folder))
    print(ANSWER + json.dumps({"flops": side.flops}), flush=True)
    before = 0.0
    for line in sys.stdin:
        answer: Any = None
        if line == "run\n":
            start = time.perf_counter()
            out = side.run()
            answer = time.perf_counter() - start
        elif line == "keep\n":
            with open(f"{options.folder}/{options.alone}.pickle", "wb") as file:
                pickle.dump(side.result(out), file)
        elif line == "watch\n":
            before = watch_memory()
        elif line == "peak\n":
            answer = {"peak_mib": host_memory.peak_bytes() / MIB, "before_mib": before}
        elif line == "where\n":
            answer = (where.ours if options.alone == "ours" else where.theirs)(side.run)
        elif line == "matmul\n":
            answer = matmul_rate(options)
        print(ANSWER + json.dumps(answer), flush=True)


def _pairs(work: Work, options: argparse.Namespace, flags: Sequence[str], folder: Path) -> dict[str, Any]:
    sides = {"theirs": Worker(work, "theirs", flags, folder)}  # writes the checkpoint
    # XLA's compiler leaves a fragmented heap that slows all that follows (`training/compilation.py`). Our program is
    # compiled in another process and then read from the cache, as in `train` and in the second run of any command.
    compiling = Worker(work, "ours", flags, folder)
    first_call = compiling.ask("run")
    compiling.close()
    sides["ours"] = Worker(work, "ours", flags, folder)
    for worker in sides.values():
        worker.ask("run")
    outputs = {}
    for side, worker in sides.items():
        worker.ask("keep")
        with open(folder / f"{side}.pickle", "rb") as file:
            outputs[side] = pickle.load(file)
    agreement = work.check(outputs["ours"], outputs["theirs"], options)
    outputs.clear()
    rate = max(worker.ask("matmul") for worker in sides.values())
    for worker in sides.values():
        worker.ask("watch")
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(options.pairs):
        for side in sorted(seconds, reverse=number % 2 == 1):
            seconds[side].append(sides[side].ask("run"))
            print(f"{side} {seconds[side][-1]:.3f} s", file=sys.stderr, flush=True)
    row = {
        "work": work.name(options),
        "reference": options.reference,
        "dtype": options.dtype,
        "limit": work.limits.get(options.dtype),
        "ours_seconds": seconds["ours"],
        "theirs_seconds": seconds["theirs"],
        "first_call_seconds": first_call,
        "matmul_flops_per_second": rate,
        "agreement": agreement,
        "machine": rows.machine(),
    }
    for side, worker in sides.items():
        row |= {f"{side}_{key}": value for key, value in worker.ask("peak").items()}
        row[f"{side}_flops"] = worker.ready["flops"]
        row[f"{side}_where"] = worker.ask("where")
        worker.close()
    return row


def watch_memory() -> float:
    """Restart the measurement of the peak resident memory of this process and return the present one, in MiB."""
    host_memory.reset_peak()
    return host_memory.peak_bytes() / MIB


def peak_of(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result of `run`, and the resident memory of this process in MiB: its peak, and before the run."""
    before = watch_memory()
    return run(), {"peak_mib": host_memory.peak_bytes() / MIB, "before_mib": before}


def matmul_rate(options: argparse.Namespace, n: int = 3072) -> float:
    """Return the FLOP/s of one large matrix product by the library of a side, the best of four."""
    values = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
    if options.alone == "ours":
        import jax
        import jax.numpy as jnp

        x = jnp.asarray(values, options.dtype)
        multiply = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32, precision="highest"))

        def product() -> Any:
            return multiply(x).block_until_ready()
    else:
        import torch

        y = torch.from_numpy(values).to(getattr(torch, options.dtype))

        def product() -> Any:
            return y @ y

    product()
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def counted(run: Callable[[], Any]) -> float:
    """Return the FLOPs of `run` in PyTorch: matrix products, convolutions and attention."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    # The counter does not include the attention kernels for CPU.
    aten = torch.ops.aten

    def forward(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backward(g: Any, q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        (b, h, n, d), m, dv = q, k[2], v[3]
        return 2 * b * h * n * m * (3 * d + 2 * dv)

    custom = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=custom) as counter:
        run()
    return float(counter.get_total_flops())
