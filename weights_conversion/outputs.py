"""Where a conversion may write, and how: under a temporary name beside the target, renamed when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed_jax.errors import UserError
from weights_conversion.mapping import LAYOUTS, Layout


@dataclass(frozen=True)
class Target:
    """What to write where."""

    path: Path
    layout: Layout
    form: str  # "folder", "safetensors" or "torch"


def choose_target(path: Path, to: str | None) -> Target:
    """What a destination's name and `--to` ask for.

    Raises:
        UserError: they contradict each other, or the destination holds something else.
    """
    if to is not None and to not in LAYOUTS:
        raise UserError(f"--to: there is no layout '{to}'; choose one of {', '.join(LAYOUTS)}")
    form = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch"}.get(path.suffix, "folder")
    layout: Layout = next(name for name in LAYOUTS if name == (to or ("meta" if form == "torch" else "native")))
    if form == "torch" and layout != "meta":
        raise UserError(f"{path}: a .pt file is of Meta's layout, not {layout}; give a .safetensors or a folder")
    if form == "folder" and layout == "meta":
        raise UserError(f"{path}: Meta's layout is a file; give a name that ends in .pt or .safetensors")
    if form != "folder":
        if path.is_dir():
            raise UserError(f"{path}: it is a folder; give the name of a file")
    elif path.exists():
        if not path.is_dir():
            raise UserError(f"{path}: it is a file; give a folder, or a name that ends in .safetensors or .pt")
        native = layout == "native" and (path / "config.json").is_file() and (path / "weights").is_dir()
        if any(path.iterdir()) and not native:
            raise UserError(f"{path}: it is not empty and no native checkpoint; choose another folder")
    return Target(path, layout, form)


@contextlib.contextmanager
def renamed_when_whole(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target` at the end; after an error nothing is left."""
    target = target.absolute()
    made = [folder for folder in target.parents if not folder.exists()]
    work = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        work.mkdir(parents=True)
        yield work / target.name
        if target.is_dir():
            target.rename(work / "replaced")
        (work / target.name).replace(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    shutil.rmtree(work)
