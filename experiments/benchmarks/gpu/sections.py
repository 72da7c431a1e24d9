"""Sections of the GPU benchmark: what is timed, in which order, with which budget, and on which checks it depends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import volume
from experiments.benchmarks.gpu.attention_paths import (
    SHAPES,
    SMOKE_SHAPES,
    TRITON,
    WIDE,
    Operands,
    Shape,
    default_path,
    operands,
    path_of,
    paths,
    relative_error,
    run_both,
)
from experiments.benchmarks.gpu.check import ATTENTION_LIMITS
from experiments.benchmarks.gpu.results import Entry
from experiments.benchmarks.gpu.timing import milliseconds
from experiments.benchmarks.gpu.works import attention_by, our_side, random_model, work_options
from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig
from sam2_3dmed_jax.plan.programs import Program, programs_to_compile

TINY, SMALL, BASE_PLUS, LARGE = (f"sam2.1_hiera_{name}" for name in ("tiny", "small", "base_plus", "large"))
GIB = 1 << 30
SWEPT = ("memory, full bank", "self-attention of memory attention", "tiny, global", "large, global", "large, windows")


@dataclass(frozen=True)
class Run:
    """The settings of a run."""

    smoke: bool  # toy sizes, two calls each
    folder: Path  # for weights

    def milliseconds(self, call: Callable[[], Any]) -> float:
        """Return the time of a call of JAX."""
        return milliseconds(call, jax.block_until_ready, self.smoke)


@dataclass(frozen=True)
class Timing:
    """One entry of a section."""

    name: str
    measure: Callable[[], Entry]
    needs: tuple[str, ...] = ()  # beginnings of the names of the checks that must be right


@dataclass(frozen=True)
class Section:
    """A group of entries, the most important ones first; an entry starts only within the budget."""

    title: str
    budget: float  # seconds
    timings: Callable[[Run], Iterator[Timing]]


def machine(run: Run) -> Iterator[Timing]:
    """Yield what the hardware reaches: the rates of a product and a copy, and the cost of small steps in a loop."""
    side, count, trips = (256, 1 << 16, 10) if run.smoke else (8192, 1 << 28, 2000)

    def product(dtype: str) -> Entry:
        x = jax.random.normal(jax.random.key(0), (side, side), dtype)
        ms = run.milliseconds(partial(jax.jit(partial(jnp.matmul, precision="highest")), x, x))
        return {"ms": ms, "TFLOP/s": 2 * side**3 / ms / 1e9}

    def copy() -> Entry:
        x = jnp.zeros(count, jnp.float32)
        ms = run.milliseconds(partial(jax.jit(lambda x: x + 1), x))
        return {"ms": ms, "GB/s": 2 * x.nbytes / ms / 1e6}

    def in_loop(body: Callable[[Any, jax.Array], jax.Array]) -> Entry:
        loop = jax.jit(lambda x: jax.lax.fori_loop(0, trips, body, x))
        return {"us": run.milliseconds(partial(loop, jnp.zeros(8))) / trips * 1e3}

    yield Timing("product of matrices, bfloat16", partial(product, "bfloat16"))
    yield Timing("product of matrices, float32", partial(product, "float32"))
    yield Timing("copy", copy)
    yield Timing("one small kernel in a loop", partial(in_loop, lambda i, x: jnp.sort(x)))
    branches = jnp.sort, lambda x: x + 1
    yield Timing("one conditional in a loop", partial(in_loop, lambda i, x: jax.lax.cond(x[0] > i, *branches, x)))


def _timed_work(run: Run, work: str, path: str, options: Any) -> Entry:
    with attention_by(path):
        side = our_side(work, options, run.folder)
        start = time.perf_counter()
        side.run()
        first = time.perf_counter() - start
        ms = run.milliseconds(side.run)
    return {"ms": ms, "TFLOP/s": (side.flops or 0) / ms / 1e9, "first call, s": first}


def encoder(run: Run) -> Iterator[Timing]:
    """Yield the image encoders, on one slice."""
    every = (TINY, "bfloat16", ""), (LARGE, "bfloat16", ""), (TINY, "bfloat16", WIDE), (TINY, "float32", "")
    every += (BASE_PLUS, "bfloat16", ""), (SMALL, "bfloat16", "")
    for preset, dtype, path in (("nano", "bfloat16", WIDE), ("nano", "float32", "")) if run.smoke else every:
        options = work_options(preset, 64 if run.smoke else 1024, dtype)
        needs = () if dtype == "float32" else (f"encoder, {path or default_path()}",)
        yield Timing(_name(preset, dtype, path), partial(_timed_work, run, "encoder", path, options), needs)


def memory_attention(run: Run) -> Iterator[Timing]:
    """Yield memory attention of one slice to a full bank."""
    every = (("bfloat16", ""), ("bfloat16", WIDE), ("float32", ""))
    preset, size = ("nano", 64) if run.smoke else (TINY, 1024)
    for dtype, path in (("bfloat16", WIDE),) if run.smoke else every:
        needs = () if dtype == "float32" else (f"memory attention, {path or default_path()}",)
        options = work_options(preset, size, dtype)
        yield Timing(_name(preset, dtype, path), partial(_timed_work, run, "memory attention", path, options), needs)


def attention(run: Run) -> Iterator[Timing]:
    """Yield each path of attention alone, forward and backward."""
    for name, shape in (SMOKE_SHAPES if run.smoke else SHAPES).items():
        for path in paths("bfloat16"):
            measure = partial(_timed_attention, run, shape, path, {})
            yield Timing(f"{name}, {path}", measure, (f"attention, {path}, bfloat16, {name}",))


def _timed_attention(run: Run, shape: Shape, path: str, settings: dict[str, Any]) -> Entry:
    used, given = path_of(path, **settings), operands(shape, "bfloat16")
    forward, backward = jax.jit(used.forward), jax.jit(used.backward)
    inputs, gradient = given[:4], given.gradient
    out, logsumexp = forward(*inputs)
    return {
        "forward, ms": run.milliseconds(lambda: forward(*inputs)),
        "backward, ms": run.milliseconds(lambda: backward(*inputs, out, logsumexp, gradient)),
    }


def volumes(run: Run) -> Iterator[Timing]:
    """Yield the segmentation of a volume of 96 slices from a click, and a correction of its mask."""
    every = ((TINY, "bfloat16", 1), (LARGE, "bfloat16", 1), (TINY, "bfloat16", 4), (TINY, "float32", 1))
    every += ((BASE_PLUS, "bfloat16", 1), (SMALL, "bfloat16", 1))

    def measure(preset: str, dtype: str, objects: int) -> Entry:
        depth, size = (4, 64) if run.smoke else (96, 1024)
        found = volume.measure(random_model(preset, size, dtype), depth, objects)
        seconds = found["encoding, s/slice"] + found["propagation, s/slice"]
        return {
            "ms": depth * seconds * 1e3,
            "slices/s": 1 / seconds,
            "encoding, ms/slice": found["encoding, s/slice"] * 1e3,
            "correction to mask, ms": found["correction to mask, s"] * 1e3,
            "peak host memory, MiB": found["peak memory, MiB"],
        }

    for preset, dtype, objects in (("nano", "bfloat16", 1),) if run.smoke else every:
        needs = ("reference",) if dtype == "float32" else ("volume", "reference")
        yield Timing(f"{preset}, {dtype}, {objects} object(s)", partial(measure, preset, dtype, objects), needs)


def training(run: Run) -> Iterator[Timing]:
    """Yield the whole train step on a clip of 12 slices: encoding, propagation, gradients and the optimizer."""
    every = (TINY, "bfloat16"), (LARGE, "bfloat16"), (TINY, "float32")

    def measure(preset: str, dtype: str) -> Entry:
        size, slices = (64, 2) if run.smoke else (1024, 12)
        heads = not run.smoke  # SRPP and BD, which take a minute to compile on a CPU
        config = ExperimentConfig(
            model=ModelConfig(preset, size, heads, heads, init="pretrained", compute_dtype=dtype),  # type: ignore[arg-type]
            data=DataConfig(slices=slices),
            training=TrainingConfig(batch_size=1, remat_slices="all"),
        )
        (program,) = programs_to_compile(config, "train", jax.devices()[:1])
        start = time.perf_counter()
        compiled = program.trace(*program.arguments.values()).lower().compile()
        first = time.perf_counter() - start
        state, *rest = _filled(program)

        def step() -> Any:  # the state is donated
            nonlocal state
            state, losses = compiled(state, *rest)[:2]
            return losses

        ms = run.milliseconds(step)
        return {"ms": ms, "clips/s": 1e3 / ms, "compilation, s": first}

    for preset, dtype in (("nano", "bfloat16"),) if run.smoke else every:
        needs = () if dtype == "float32" else ("training step",)
        yield Timing(f"{preset}, {dtype}", partial(measure, preset, dtype), needs)


def _filled(program: Program) -> list[Any]:
    """Return arguments for a program: small random weights and slices, true masks, zeros for counters and moments."""
    rng = np.random.default_rng(0)

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if leaf.dtype == jnp.bool_:
            value: Any = np.ones(leaf.shape, bool)
        elif not jnp.issubdtype(leaf.dtype, jnp.floating) or "optimizer" in name or "ema" in name:
            value = np.zeros(leaf.shape)
        else:
            value = rng.normal(size=leaf.shape, scale=0.02)
        return jax.device_put(jnp.asarray(value, leaf.dtype), leaf.sharding)

    return [jax.tree_util.tree_map_with_path(fill, tree) for tree in program.arguments.values()]


def block_sizes(run: Run) -> Iterator[Timing]:
    """Yield other blocks and splits of the kernel; a faster one belongs into the table of `triton_attention`."""
    if default_path() != TRITON:
        return
    from sam2_3dmed_jax.sam2.triton_attention import Block

    shapes = SMOKE_SHAPES if run.smoke else {name: SHAPES[name] for name in SWEPT}
    sides = [(32, 32)] if run.smoke else [(128, 64), (128, 32), (64, 64), (64, 32), (128, 128)]
    pipelines = [(4, 2)] if run.smoke else [(8, 2), (4, 2), (8, 3), (4, 3), (8, 1)]
    for queries, keys in sides:
        for warps, stages in pipelines:
            for name, shape in shapes.items():
                block = Block(queries, keys, warps, stages)
                for splits in (1,) if run.smoke or shape.rows * shape.heads > 1 else (1, 4):
                    measure = partial(_timed_block, run, shape, {"block": block, "splits": splits})
                    text = f"{name}, {queries} x {keys}, {warps} warps, {stages} stages, {splits} split(s)"
                    yield Timing(text, measure, (f"attention, {TRITON}, bfloat16, {name}",))


def _timed_block(run: Run, shape: Shape, settings: dict[str, Any]) -> Entry:
    """Time a block whose results equal the results of the default one within rounding."""
    given: Operands = operands(shape, "bfloat16")
    found, default = (run_both(path_of(TRITON, **chosen), given) for chosen in (settings, {}))
    if not (error := relative_error(found, default)) <= ATTENTION_LIMITS["bfloat16"]:
        raise ArithmeticError(f"the results differ by {error:.1e} from the default block's")
    return _timed_attention(run, shape, TRITON, settings)


def meta(run: Run) -> Iterator[Timing]:
    """Yield the same works in Meta's `sam2`, eager and compiled, where it and PyTorch for the device are installed."""
    if util.find_spec("torch") is None or util.find_spec("sam2") is None:
        return
    presets = (TINY,) if run.smoke else (TINY, LARGE)
    for preset in presets:
        for kind in ("eager", "compiled"):
            for work in ("encoder", "memory attention", "volume", *(["training step"] if kind == "eager" else [])):
                measure = partial(_timed_meta, run, preset, work, kind)
                yield Timing(f"{work}, {preset}, bfloat16, {kind}", measure)


def _timed_meta(run: Run, preset: str, work: str, kind: str) -> Entry:
    """Time a work in another process, because PyTorch and JAX do not share a GPU's memory pool."""
    command = [sys.executable, "-m", "experiments.benchmarks.gpu.meta_side", "--preset", preset, "--work", work]
    command += ["--compiled"] if kind == "compiled" else []
    command += ["--smoke"] if run.smoke else []
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, timeout=META_SECONDS, env={**os.environ, "PYTHONPATH": "."}
    )
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.strip().splitlines()[-1:]) or f"exit code {done.returncode}")
    entry: Entry = json.loads(done.stdout.splitlines()[-1])
    return entry


META_SECONDS = 120.0  # of one work in Meta's `sam2`, with its compilation


def _name(preset: str, dtype: str, path: str) -> str:
    return f"{preset}, {dtype}" + (f", attention: {path}" if path else "")


SECTIONS = {
    "machine": Section("Machine", 45, machine),
    "encoder": Section("Image encoder, one slice", 150, encoder),
    "memory_attention": Section("Memory attention, one slice", 75, memory_attention),
    "volume": Section("Volume of 96 slices, from a click", 180, volumes),
    "training": Section("Train step, a clip of 12 slices", 150, training),
    "attention": Section("Attention alone, bfloat16", 90, attention),
    "meta": Section("Meta's sam2", 150, meta),
    "block_sizes": Section("Block sizes of the kernel", 60, block_sizes),
}
CHECK_BUDGET = 300.0  # seconds, for the checks before; with the sections 20 minutes
