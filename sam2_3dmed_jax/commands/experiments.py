"""`sam2-3dmed experiments`: the built-in experiments and sweeps, listed or copied into a folder to change them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed_jax.commands.command_line import Parser
from sam2_3dmed_jax.errors import UserError

HELP = "list the built-in experiments and sweeps, or copy their files into a folder to change them"


@dataclass(frozen=True)
class Options:
    """The arguments of `experiments`."""

    action: str
    folder: str | None


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument("action", nargs="?", choices=("list", "copy"), default="list", help="what to do")
    parser.add_argument("folder", nargs="?", metavar="DIR", help="folder for the copies; existing files are kept")


def run(options: Options) -> None:
    """Print the names, or copy the files."""
    if options.action == "copy":
        _copy(options.folder)
    elif options.folder:
        raise UserError(
            f"experiments list: it takes no folder; to copy the files, run 'experiments copy {options.folder}'"
        )
    else:
        _list()


def _list() -> None:
    from sam2_3dmed_jax.commands.builtin_experiments import builtins

    found = builtins()
    width = max(len(each.name) for each in found)
    for verb, function in (("train", "get_config"), ("sweep", "get_spec")):
        print(f"sam2-3dmed {verb} NAME --out DIR")
        for each in found:
            if each.function == function:
                print(f"  {each.name:<{width}}  {each.summary}")


def _copy(folder: str | None) -> None:
    """Copy all files, with those that others import, so that each runs in the new folder.

    Raises:
        UserError: no folder, a file that exists already, or a folder that cannot be written.
    """
    from sam2_3dmed_jax.commands import builtin_experiments
    from sam2_3dmed_jax.runtime.atomic_files import write_text

    if not folder:
        raise UserError("experiments copy: the folder is missing; give one, such as 'experiments copy my_experiments'")
    files = sorted(builtin_experiments.folder().glob("*.py"))
    if existing := [file.name for file in files if Path(folder, file.name).exists()]:
        raise UserError(f"{Path(folder, existing[0])} exists and is not overwritten; give another folder")
    for file in files:
        write_text(Path(folder, file.name), file.read_text(encoding="utf-8"))
    print(f"copied {len(files)} files; change one, then run 'sam2-3dmed train {Path(folder, 'NAME.py')} --out DIR'")
