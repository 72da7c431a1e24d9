"""ONNX graphs from jaxprs: one rule per JAX primitive of the exported programs, straight-line programs only.

`jax2onnx` does the same for all of JAX, but the newest version that this project's Orbax allows (0.13.0) lacks the
primitive `stack`, installs 19 packages, and takes 52 s of CPU for the encoder of `sam2.1_hiera_tiny`, which takes these
rules 4 s. Loops, branches and gradients are left out: a program that has some is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper

from sam2_3dmed_jax.runtime.hashing import sha256_of_chunks

OPSET = 18
IR_VERSION = 10  # understood by ONNX Runtime since 1.18
_INLINED = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}

Equation = core.JaxprEqn
Rule = Callable[["_Graph", Equation, list[str]], str | list[str]]


def onnx_model(program: core.ClosedJaxpr, inputs: Sequence[str], outputs: Sequence[str], name: str) -> onnx.ModelProto:
    """Return a program as an ONNX model.

    Args:
        program: a jaxpr of the primitives in `RULES`.
        inputs: names of its arguments.
        outputs: names of its results.
        name: name of the graph.

    Raises:
        NotImplementedError: the program has another primitive.
    """
    graph = _Graph()
    results = graph.add_jaxpr(program.jaxpr, program.consts, list(inputs))
    graph.nodes += [helper.make_node("Identity", [x], [y]) for x, y in zip(results, outputs, strict=True)]
    made = helper.make_graph(
        graph.nodes,
        name,
        [_value_info(x, var.aval) for x, var in zip(inputs, program.jaxpr.invars, strict=True)],
        [_value_info(x, var.aval) for x, var in zip(outputs, program.jaxpr.outvars, strict=True)],
        list(graph.constants.values()),
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


class _Graph:
    """The nodes and constants of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[Any, ...], TensorProto] = {}
        self._count = 0

    def add_jaxpr(self, jaxpr: core.Jaxpr, constants: Sequence[Any], inputs: list[str]) -> list[str]:
        """Add all equations of a jaxpr, and return the names of its results."""
        names = dict(zip(jaxpr.constvars, map(self.constant, constants), strict=True))
        names |= dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> str:
            return self.constant(np.asarray(atom.val, atom.aval.dtype)) if hasattr(atom, "val") else names[atom]

        for equation in jaxpr.eqns:
            kind = equation.primitive.name
            values = [read(atom) for atom in equation.invars]
            if kind in _INLINED:
                inner = equation.params[_INLINED[kind]]
                results = self.add_jaxpr(inner.jaxpr, inner.consts, values)
            elif kind in RULES:
                result = RULES[kind](self, equation, values)
                results = [result] if isinstance(result, str) else result
            else:
                raise NotImplementedError(f"the ONNX exporter has no rule for the primitive '{kind}'")
            names |= dict(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def constant(self, value: Any) -> str:
        """Return the name of a constant; equal ones are stored once."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, sha256_of_chunks([array.tobytes()]))
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, self._new_name("constant"))
        return self.constants[key].name

    def integers(self, values: Sequence[int]) -> str:
        """Return the name of a constant int64 vector."""
        return self.constant(np.array(values, np.int64))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its result."""
        name = self._new_name(kind)
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def split(self, value: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Add a `Split` and return the names of its results."""
        names = [self._new_name("Split") for _ in sizes]
        self.nodes.append(helper.make_node("Split", [value, self.integers(sizes)], names, axis=axis))
        return names

    def _new_name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"


def _value_info(name: str, aval: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(aval.dtype), aval.shape)


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _same(kind: str) -> Rule:
    return lambda graph, equation, x: graph.node(kind, *x)


def _negated(kind: str) -> Rule:
    return lambda graph, equation, x: graph.node("Not", graph.node(kind, *x))


def _reduction(kind: str) -> Rule:
    return lambda graph, equation, x: graph.node(kind, x[0], graph.integers(equation.params["axes"]), keepdims=0)


def _reshape(graph: _Graph, equation: Equation, x: list[str]) -> str:
    return graph.node("Reshape", x[0], graph.integers(_shape(equation.outvars[0])))


def _broadcast(graph: _Graph, equation: Equation, x: list[str]) -> str:
    shape, kept = equation.params["shape"], equation.params["broadcast_dimensions"]
    sizes = dict(zip(kept, _shape(equation.invars[0]), strict=True))
    reshaped = graph.node("Reshape", x[0], graph.integers([sizes.get(axis, 1) for axis in range(len(shape))]))
    return graph.node("Expand", reshaped, graph.integers(shape))


def _slice(graph: _Graph, equation: Equation, x: list[str]) -> str:
    starts, limits, strides = (equation.params[name] for name in ("start_indices", "limit_indices", "strides"))
    axes = range(len(starts))
    return graph.node("Slice", x[0], *map(graph.integers, (starts, limits, axes, strides or [1] * len(starts))))


def _pad(graph: _Graph, equation: Equation, x: list[str]) -> str:
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior):
        raise NotImplementedError("the ONNX exporter pads at borders only")
    return graph.node("Pad", x[0], graph.integers([*low, *high]), x[1])  # negative padding cuts, as in JAX


def _stack(graph: _Graph, equation: Equation, x: list[str]) -> str:
    axis = equation.params["axis"]
    return graph.node("Concat", *(graph.node("Unsqueeze", each, graph.integers([axis])) for each in x), axis=axis)


def _select(graph: _Graph, equation: Equation, x: list[str]) -> str:
    which, if_false, if_true = x  # of booleans; a choice among more cases has integers
    return graph.node("Where", which, if_true, if_false)


def _argmax(graph: _Graph, equation: Equation, x: list[str]) -> str:
    (axis,) = equation.params["axes"]
    index = graph.node("ArgMax", x[0], axis=axis, keepdims=0)  # int64
    return graph.node("Cast", index, to=helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["index_dtype"])))


def _cast(graph: _Graph, equation: Equation, x: list[str]) -> str:
    return graph.node("Cast", x[0], to=helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"])))


def _dot(graph: _Graph, equation: Equation, x: list[str]) -> str:
    (contract_x, contract_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
    rank_x, rank_y = (len(_shape(atom)) for atom in equation.invars)
    if not batch_x and rank_y == 2 and tuple(contract_x) == (rank_x - 1,) and tuple(contract_y) == (0,):
        return graph.node("MatMul", *x)
    letters_x = [chr(ord("a") + axis) for axis in range(rank_x)]
    letters_y = [chr(ord("A") + axis) for axis in range(rank_y)]
    for axis_x, axis_y in zip((*contract_x, *batch_x), (*contract_y, *batch_y), strict=True):
        letters_y[axis_y] = letters_x[axis_x]
    batch = [letters_x[axis] for axis in batch_x]
    free_x = [letter for axis, letter in enumerate(letters_x) if axis not in (*contract_x, *batch_x)]
    free_y = [letter for axis, letter in enumerate(letters_y) if axis not in (*contract_y, *batch_y)]
    terms = ("".join(letters) for letters in (letters_x, letters_y, (*batch, *free_x, *free_y)))
    return graph.node("Einsum", *x, equation="{},{}->{}".format(*terms))


def _gather(graph: _Graph, equation: Equation, x: list[str]) -> str:
    """Gather single elements or whole rows.

    Indices are clipped to the valid range. Inside of it, all of JAX's modes agree.
    """
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = _shape(equation.invars[0])
    batch, indexed = tuple(numbers.operand_batching_dims), tuple(numbers.start_index_map)
    rest = tuple(axis for axis in range(len(shape)) if axis not in (*batch, *indexed))
    leading = tuple(numbers.start_indices_batching_dims) == tuple(range(len(batch)))
    if (
        sorted(numbers.collapsed_slice_dims) != sorted(indexed)
        or any(sizes[a] != shape[a] for a in rest)
        or not leading
    ):
        raise NotImplementedError("the ONNX exporter gathers whole rows only")
    limits = np.array([shape[axis] - 1 for axis in indexed], np.int64)
    index = graph.node("Cast", x[1], to=TensorProto.INT64)
    index = graph.node("Min", graph.node("Max", index, graph.integers([0])), graph.constant(limits))
    operand = graph.node("Transpose", x[0], perm=[*batch, *indexed, *rest])
    gathered = graph.node("GatherND", operand, index, batch_dims=len(batch))  # [*indices, *rest]
    rank = len(_shape(equation.outvars[0]))
    of_index = [axis for axis in range(rank) if axis not in numbers.offset_dims]
    order = {axis: at for at, axis in enumerate([*of_index, *numbers.offset_dims])}
    return graph.node("Transpose", gathered, perm=[order[axis] for axis in range(rank)])


RULES: dict[str, Rule] = {
    **{
        name: _same(kind)
        for name, kind in {
            "add": "Add",
            "sub": "Sub",
            "mul": "Mul",
            "div": "Div",
            "max": "Max",
            "min": "Min",
            "exp": "Exp",
            "erf": "Erf",
            "sin": "Sin",
            "cos": "Cos",
            "sqrt": "Sqrt",
            "logistic": "Sigmoid",
            "lt": "Less",
            "le": "LessOrEqual",
            "gt": "Greater",
            "ge": "GreaterOrEqual",
            "eq": "Equal",
            "and": "And",
            "or": "Or",
            "not": "Not",
            "stop_gradient": "Identity",
        }.items()
    },
    "ne": _negated("Equal"),
    "square": lambda graph, equation, x: graph.node("Mul", x[0], x[0]),
    "rsqrt": lambda graph, equation, x: graph.node("Reciprocal", graph.node("Sqrt", x[0])),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_max": _reduction("ReduceMax"),
    "argmax": _argmax,
    "reshape": _reshape,
    "squeeze": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": lambda graph, equation, x: graph.node("Transpose", x[0], perm=equation.params["permutation"]),
    "slice": _slice,
    "split": lambda graph, equation, x: graph.split(x[0], equation.params["sizes"], equation.params["axis"]),
    "pad": _pad,
    "concatenate": lambda graph, equation, x: graph.node("Concat", *x, axis=equation.params["dimension"]),
    "stack": _stack,
    "select_n": _select,
    "convert_element_type": _cast,
    "dot_general": _dot,
    "gather": _gather,
}


def straight_line(function: Callable[..., Any], *arguments: Any) -> core.ClosedJaxpr:
    """Trace a function without loops, branches and calls; what does not depend on the arguments becomes constant."""

    def folded(*values: Any) -> Any:
        with jax.ensure_compile_time_eval():
            return function(*values)

    with jax.disable_jit():
        return jax.make_jaxpr(folded)(*arguments)
