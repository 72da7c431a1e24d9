"""Destination of a conversion: its layout and form, and an atomic write to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.checkpoint import CONFIG, WEIGHTS, check_replaceable
from weights_conversion.mapping import LAYOUTS, Layout


@dataclass(frozen=True)
class Target:
    """The path, layout and form to write."""

    path: Path
    layout: Layout
    form: str  # "folder", "safetensors" or "torch"


def choose_target(path: Path, to: str | None) -> Target:
    """Return the target that the destination's name and `--to` select.

    Raises:
        UserError: they contradict each other, or the destination contains something else.
    """
    if to is not None and to not in LAYOUTS:
        raise UserError(f"--to: the layout '{to}' does not exist; choose one of {', '.join(LAYOUTS)}")
    form = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch"}.get(path.suffix.lower(), "folder")
    layout: Layout = next(name for name in LAYOUTS if name == (to or ("meta" if form == "torch" else "native")))
    if form == "torch" and layout != "meta":
        raise UserError(f"{path}: a .pt file has Meta's layout, not {layout}; give a .safetensors file or a folder")
    if form == "folder" and layout == "meta":
        raise UserError(f"{path}: Meta's layout is a file; give a name that ends in .pt or .safetensors")
    if form != "folder":
        if path.is_dir():
            raise UserError(f"{path}: it is a folder; give the name of a file")
    elif path.exists():
        if not path.is_dir():
            raise UserError(f"{path}: it is a file; give a folder, or a name that ends in .safetensors or .pt")
        native = layout == "native" and (path / CONFIG).is_file() and (path / WEIGHTS).is_dir()
        if any(path.iterdir()) and not native:
            raise UserError(f"{path}: it is not empty and is not a native checkpoint; choose another folder")
        if native:
            check_replaceable(path)
    return Target(path, layout, form)
