"""Built-in experiments and sweeps: the files of the folder `experiments`, which commands find by name.

The repository has them in `experiments/`; the wheel contains copies in `sam2_3dmed_jax/builtin_experiments/`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed_jax.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
_SWEEP = "sweep_"  # starts the name of the file of a sweep; the rest is the sweep's name


@dataclass(frozen=True)
class Builtin:
    """One experiment or sweep."""

    name: str
    file: Path
    function: str  # `get_config` of an experiment, `get_spec` of a sweep
    summary: str  # first sentence of the file


def folder() -> Path:
    """Return the folder of the built-in experiments."""
    installed = PACKAGE / "builtin_experiments"
    return installed if installed.is_dir() else PACKAGE.parent / "experiments"


def builtins() -> list[Builtin]:
    """Return the experiments and sweeps, in alphabetical order, without the files that they share."""
    found = []
    for file in sorted(folder().glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        summary, *_ = (ast.get_docstring(tree) or "").splitlines()
        for function in functions & {"get_config", "get_spec"}:
            found.append(Builtin(file.stem.removeprefix(_SWEEP), file, function, summary))
    return found


def find(path_or_name: str, function: str, what: str) -> Path:
    """Return the file of an experiment or sweep.

    Args:
        path_or_name: an existing file, or the name of a built-in one.
        function: the function that the file must define, `get_config` or `get_spec`.
        what: `experiment` or `sweep`, for messages.

    Raises:
        UserError: neither.
    """
    file = Path(path_or_name)
    if file.is_file() and file.suffix == ".py":
        return file
    files = {builtin.name: builtin.file for builtin in builtins() if builtin.function == function}
    if path_or_name in files and not file.is_file():
        return files[path_or_name]
    raise UserError(
        f"{path_or_name}: the {what} file does not exist; give a Python file with {function}(), or a built-in {what}: "
        f"{', '.join(files)}"
    )
