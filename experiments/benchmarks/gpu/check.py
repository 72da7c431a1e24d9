"""Correctness on a GPU: each path of attention, and whole works, against float32 and the reference's stored outputs.

    python -m experiments.benchmarks.gpu.check            # on an NVIDIA GPU
    python -m experiments.benchmarks.gpu.check --smoke    # on any machine: each line of it, on toy sizes

Nothing is downloaded. Exits with 1 and names what is wrong. `benchmark` runs the same checks, and does not time what is
wrong.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.gpu.attention_paths import (
    CUDNN,
    SHAPES,
    SMOKE_SHAPES,
    WIDE,
    Shape,
    default_path,
    operands,
    path_of,
    paths,
    relative_error,
    run_both,
)
from experiments.benchmarks.gpu.works import attention_by, our_side, work_options
from experiments.benchmarks.pytorch import image_encoder, memory_attention, training_step
from sam2_3dmed_jax.runtime import compilation_cache
from tests.parity import compare, generated, ours, stored

# Relative to the largest number of the exact result. bfloat16 has 8 bits of mantissa, 4e-3 of each number, and the
# softmax's weights are rounded before the second product. Float32: sums in another order.
ATTENTION_LIMITS = {"bfloat16": 2e-2, "float32": 2e-5}
NUMPY_QUERIES = 64  # of each shape, which NumPy computes in float64


@dataclass(frozen=True)
class Check:
    """One comparison."""

    name: str  # begins with the work and the path, by which `benchmark` finds the checks of what it times
    measure: Callable[[], float]  # returns the error
    limit: float
    is_ours: bool = True  # False: a library that we only compare with


@dataclass(frozen=True)
class Outcome:
    """The result of a check."""

    error: float  # NaN: the check could not run
    limit: float
    is_ours: bool
    message: str = ""  # why it could not run

    @property
    def is_right(self) -> bool:
        """Whether the error is within the limit."""
        return self.error <= self.limit


def attention_checks(shapes: dict[str, Shape]) -> Iterator[Check]:
    """Yield the checks of the paths of attention: plain XLA in float32 first, since the others are compared with it."""
    for name, shape in shapes.items():
        yield Check(f"attention, wide, float32, {name}, output by NumPy", lambda s=shape: _numpy_error(s), 2e-5)
    for name, shape in SMOKE_SHAPES.items():
        yield Check(
            f"attention, wide, float32, {name}, gradients by autodiff", lambda s=shape: _autodiff_error(s), 2e-5
        )
    for name, shape in shapes.items():
        for path in paths("bfloat16"):
            yield Check(
                f"attention, {path}, bfloat16, {name}",
                lambda s=shape, p=path: _attention_error(s, p),
                ATTENTION_LIMITS["bfloat16"],
                path != CUDNN,
            )


def _attention_error(shape: Shape, path: str) -> float:
    """Return the largest error of the output and the gradients, against plain XLA in float32."""
    given = operands(shape, "bfloat16")
    exact = run_both(path_of(WIDE), given.float32())
    return relative_error(run_both(path_of(path), given), exact)


def _numpy_error(shape: Shape) -> float:
    """Return the error of the first queries of the first row, against NumPy in float64."""
    q, k, v, valid, _ = operands(shape, "float32")
    found = jax.jit(path_of(WIDE).forward)(q, k, v, valid)[0][0, :NUMPY_QUERIES]
    wide_q, wide_k, wide_v = (np.asarray(x[0], np.float64) for x in (q[:, :NUMPY_QUERIES], k, v))
    scores = np.einsum("nhd,mhd->hnm", wide_q, wide_k) / math.sqrt(shape.channels)
    if valid is not None:
        scores[..., ~np.asarray(valid[0])] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = np.einsum("hnm,mhd->nhd", weights / weights.sum(-1, keepdims=True), wide_v)
    return float(np.abs(np.asarray(found, np.float64) - exact).max() / np.abs(exact).max())


def _autodiff_error(shape: Shape) -> float:
    """Return the error of the gradients, against those that JAX derives from the formula."""
    q, k, v, valid, gradient = operands(shape, "float32")

    def formula(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision="highest") / math.sqrt(shape.channels)
        if valid is not None:
            scores = jnp.where(valid[:, None, None, :], scores, -jnp.inf)
        return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores), v, precision="highest")

    out, pull_back = jax.vjp(formula, q, k, v)
    return relative_error(run_both(path_of(WIDE), operands(shape, "float32")), (out, *pull_back(gradient)))


def reference_checks(folder: Path, smoke: bool) -> Iterator[Check]:
    """Yield the comparisons with the stored outputs of Meta's predictor on a CPU, which `tests/parity` describes."""
    preset = stored.PRESETS[-1]
    reference = stored.reference(preset)
    converted = functools.cache(lambda presence: stored.convert_generated(preset, presence, folder))

    def stages() -> float:
        model = ours.load(converted(1.0), stored.SIZE)
        return max(stored.stage_errors(ours.stages(model, stored.SEED), reference).values())

    def propagation(case: str, dtype: Any) -> float:
        """Return the largest share of a tolerance that is used."""
        presence, scenario = stored.CASES[case].presence, stored.CASES[case].scenario
        slices = generated.slices(stored.DEPTH, stored.SIZE, stored.SEED)
        found = ours.Video(ours.load(converted(presence), stored.SIZE, dtype), slices).track(scenario)
        agreement = stored.agreement(case, found, reference)
        if dtype == "bfloat16":
            return (1 - agreement.same_sign) / (1 - compare.SAME_SIGN_BFLOAT16)
        shares = agreement.error / compare.LOGITS, agreement.score_error / compare.SCORES
        return max(*shares, (1 - agreement.same_sign) / (1 - compare.SAME_SIGN))

    yield Check("reference, each stage, float32", stages, compare.FEATURES)
    # An object near the threshold of presence may appear in bfloat16, and then its whole mask differs.
    cases = [name for name, case in stored.CASES.items() if case.presence == 1.0]
    for case in cases[-1:] if smoke else stored.CASES:
        yield Check(f"reference, {case}, float32", functools.partial(propagation, case, "float32"), 1.0)
    for case in () if smoke else cases:
        yield Check(f"reference, {case}, bfloat16", functools.partial(propagation, case, "bfloat16"), 1.0)


def work_checks(folder: Path, smoke: bool) -> Iterator[Check]:
    """Yield the comparisons of whole works in bfloat16 with float32."""
    preset, size = ("nano", 64) if smoke else ("sam2.1_hiera_tiny", 1024)

    def result(work: str, path: str, dtype: str, size: int = size, slices: int = 0) -> Any:
        with attention_by(path):
            side = our_side(work, work_options(preset, size, dtype, slices), folder)
            return side.result(side.run())

    exact = functools.cache(lambda work, *rest: result(work, "", "float32", *rest))

    def encoder(path: str) -> float:
        maps = zip(result("encoder", path, "bfloat16"), exact("encoder"), strict=True)
        return max(compare.relative_error(x, y) for x, y in maps)

    def memory(path: str) -> float:
        found = result("memory attention", path, "bfloat16").astype(np.float32)
        return _norm_error([found], [exact("memory attention")])

    def volume() -> float:
        found, same = (result("volume", "", dtype, size, 4) for dtype in ("bfloat16", "float32"))
        return 1 - compare.agreement(found, same).same_sign

    def training(part: int) -> float:
        shape = (64, 2) if smoke else (512, 4)
        found, same = training_results(*shape)
        if part == 0:
            return abs(found[0] - same[0]) / abs(same[0])
        return _norm_error(list(found[1].values()), [same[1][name] for name in found[1]])

    @functools.cache
    def training_results(size: int, slices: int) -> list[Any]:
        return [result("training step", "", dtype, size, slices) for dtype in ("bfloat16", "float32")]

    for path in (WIDE,) if smoke else dict.fromkeys((WIDE, default_path())):
        encoder_limit, memory_limit = image_encoder.TOLERANCE["bfloat16"], memory_attention.TOLERANCE["bfloat16"]
        yield Check(f"encoder, {path}, bfloat16", functools.partial(encoder, path), encoder_limit)
        yield Check(f"memory attention, {path}, bfloat16", functools.partial(memory, path), memory_limit)
    # A toy slice has few pixels away from the contour.
    yield Check("volume, bfloat16, signs that differ", volume, 0.05 if smoke else 1 - compare.SAME_SIGN_BFLOAT16)
    for part, name in enumerate(("loss", "gradients")):
        limit = training_step.TOLERANCE["bfloat16"][part]
        yield Check(f"training step, bfloat16, {name}", functools.partial(training, part), limit)


def _norm_error(found: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    """Return the norm of all errors, relative to the norm of all numbers."""
    errors = sum(float(np.square(x - y, dtype=np.float64).sum()) for x, y in zip(found, exact, strict=True))
    return math.sqrt(errors / sum(float(np.square(y, dtype=np.float64).sum()) for y in exact))


def all_checks(folder: Path, smoke: bool) -> Iterator[Check]:
    """Yield all checks; `folder` holds the weights while they run."""
    yield from attention_checks(SMOKE_SHAPES if smoke else SHAPES)
    yield from reference_checks(folder, smoke)
    yield from work_checks(folder, smoke)


def compile_quickly() -> None:
    """Halve the time to compile, for `--smoke`; call it before JAX starts its devices."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"


def run_check(check: Check) -> Outcome:
    """Run a check; a failure is an outcome, so that it does not hide the others."""
    try:
        return Outcome(check.measure(), check.limit, check.is_ours)
    except Exception as error:  # compilers and drivers raise many kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Outcome(math.nan, check.limit, check.is_ours, reason)


def line(name: str, outcome: Outcome) -> str:
    """Return one line about an outcome."""
    verdict = "ok" if outcome.is_right else ("WRONG" if outcome.is_ours else "not usable")
    return f"{verdict:10s} {name}: {outcome.message or f'{outcome.error:.1e} (limit {outcome.limit:.1e})'}"


def wrong(outcomes: dict[str, Outcome]) -> list[str]:
    """Return the names of our checks that are not right."""
    return [name for name, outcome in outcomes.items() if outcome.is_ours and not outcome.is_right]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="toy sizes, on any machine")
    options = parser.parse_args(arguments)
    compilation_cache.enable()
    if options.smoke:
        compile_quickly()
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        for check in all_checks(Path(folder), options.smoke):
            outcomes[check.name] = run_check(check)
            print(line(check.name, outcomes[check.name]), flush=True)
    if names := wrong(outcomes):
        print(f"\n{len(names)} of {len(outcomes)} are wrong:", *names, sep="\n")
        return 1
    print(f"\nall {len(outcomes)} checks are right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
