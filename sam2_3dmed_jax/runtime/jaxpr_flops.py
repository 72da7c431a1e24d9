"""FLOPs of a traced program: its matrix products and convolutions, each as often as it runs.

XLA's own count (`cost_analysis`) includes the body of a loop once and is empty on GPUs; a jaxpr contains the lengths of
its scans. As in "model FLOPs", only matrix products and convolutions count: nearly all of a model's arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal


def flops(program: ClosedJaxpr | Jaxpr, platform: str | None = None) -> int:
    """Return the floating-point operations of one call, summed over all devices; a multiply-add is two.

    The most expensive branch of a conditional counts, and the platform's own one of a choice by platform. A loop whose
    number of iterations is not in the program counts once.

    Args:
        program: the traced program.
        platform: "cpu", "tpu", "cuda" or "rocm"; by default the one of this process.
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    platform = platform or jax.default_backend().replace("gpu", "cuda")
    return sum(_equation(equation, jaxpr, platform) for equation in jaxpr.eqns)


def _equation(equation: JaxprEqn, inside: Jaxpr, platform: str) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        ((contracted, _), _) = params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return 2 * _size(equation.outvars[0]) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * _size(equation.outvars[0]) * math.prod(kernel) // outputs
    if name == "scan":
        return params["length"] * flops(params["jaxpr"], platform)
    if name == "cond":
        return max(flops(branch, platform) for branch in _branches(params, platform))
    if name == "while":
        return _iterations(equation, inside) * flops(params["body_jaxpr"], platform)
    if name == "shard_map":  # its body is the program of one shard
        axes = params.get("manual_axes") or params["mesh"].axis_names
        return math.prod(params["mesh"].shape[axis] for axis in axes) * flops(params["jaxpr"], platform)
    if name == "pallas_call":
        estimate = params.get("cost_estimate")
        if estimate is not None:
            return estimate.flops
        return math.prod(params["grid_mapping"].grid) * flops(params["jaxpr"], platform)
    return sum(flops(jaxpr, platform) for jaxpr in _called_programs(params))


def _branches(params: dict[str, Any], platform: str) -> list[ClosedJaxpr]:
    """Return the branches of a conditional that may run on a platform."""
    by_platform = params.get("branches_platforms")  # one tuple of platforms per branch; None: of all others
    if by_platform is None:
        return list(params["branches"])
    of_others = by_platform.index(None) if None in by_platform else -1
    at = next((i for i, names in enumerate(by_platform) if names and platform in names), of_others)
    return [params["branches"][at]]


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _size(variable: Any) -> int:
    return math.prod(_shape(variable))


def _called_programs(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    """Yield the programs that an equation calls once each (`jit`, `remat`, `custom_vjp_call`, ...)."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield item


def _iterations(equation: JaxprEqn, inside: Jaxpr) -> int:
    """Return the iterations of a `while` that counts an integer to a constant, as `fori_loop` does; otherwise 1."""
    condition, counts = equation.params["cond_jaxpr"].jaxpr, equation.params["cond_nconsts"]
    if len(condition.eqns) != 1 or condition.eqns[0].primitive.name != "lt":
        return 1
    carried = equation.invars[counts + equation.params["body_nconsts"] :]
    arguments = dict(zip(condition.invars, [*equation.invars[:counts], *carried], strict=True))
    start, end = (_constant(v if isinstance(v, Literal) else arguments.get(v)) for v in condition.eqns[0].invars)
    return max(end - start, 0) if start is not None and end is not None else 1


def _constant(value: Any) -> int | None:
    return int(value.val) if isinstance(value, Literal) else None
