"""Calls of foreign readers are inside of the boundary that turns their errors into one sentence."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Functions of libraries that parse what users give, by the end of their name.
READERS = (
    *("nib.load", "Nifti1Header", "Nifti2Header", "Nifti1PairHeader", "Nifti2PairHeader", "get_best_affine"),
    *("apply_read_scaling", "get_slope_inter", "dcmread", "sitk.ReadImage", "np.load"),
    *("ocp.load", "ocp.metadata", "safe_open", "get_tensor", "get_slice", "torch.load", "hf_hub_download"),
    *("ArrayRecordReader", "num_records", "decompress2", "get_cbuffer_sizes", "_run_tyro"),
)
# `foreign`, and context managers that are made of it. Functions whose callers are in such a block.
BOUNDARIES = ("foreign", "reading", "_reading", "weights_folder", "library_errors", "_errors")
CALLED_INSIDE = ("_parse_header", "_load")
# They make headers of their own, and read no file.
WRITERS = ("_nifti_image", "_set_geometry", "tyro_help")
COPIED = ("export/run.py",)  # a script for users, which imports nothing of ours


def calls_outside(tree: ast.AST, inside: bool = False) -> Iterator[tuple[int, str]]:
    """Return line and name of each reader that is called outside of a boundary."""
    for node in ast.iter_child_nodes(tree):
        within = inside
        if isinstance(node, ast.FunctionDef):
            within = node.name in CALLED_INSIDE or node.name in WRITERS
        if isinstance(node, ast.With):
            names = {ast.unparse(item.context_expr).partition("(")[0].rpartition(".")[2] for item in node.items}
            within = inside or bool(names & set(BOUNDARIES))
        if isinstance(node, ast.Call) and not inside:
            name = ast.unparse(node.func)
            if any(name == reader or name.endswith(f".{reader}") for reader in READERS):
                yield node.lineno, name
        yield from calls_outside(node, within)


def test_foreign_readers_are_called_inside_of_a_boundary():
    found = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for package in ("sam2_3dmed_jax", "weights_conversion")
        for file in sorted((ROOT / package).rglob("*.py"))
        if not file.as_posix().endswith(COPIED)
        for line, name in calls_outside(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("def f():\n    return nib.load('a')", 1),
        ("with foreign('nibabel', str):\n    nib.load('a')", 0),
        ("with self._errors():\n    safe_open('a')\nsafe_open('a')", 1),
    ],
)
def test_a_call_outside_is_found(code: str, count: int):
    assert len(list(calls_outside(ast.parse(code)))) == count
