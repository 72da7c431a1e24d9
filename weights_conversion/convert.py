"""Convert a checkpoint between layouts: first compare all names and shapes, then move tensor by tensor.

Strict: every tensor of the source is used, every parameter is filled, and a value that is not finite is an error.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo
from sam2_3dmed_jax.sam2.presets import preset_config
from weights_conversion.mapping import Layout, Shapes, layout_map
from weights_conversion.names import EXTRA
from weights_conversion.native import PROVENANCE_KEY, write_native_folder, write_native_safetensors
from weights_conversion.outputs import Target, choose_target, renamed_when_whole
from weights_conversion.presets import Fit, best_fit, native_shapes, recognise
from weights_conversion.safetensors_files import write_safetensors
from weights_conversion.source import Source
from weights_conversion.sources import WEIGHTS, open_source
from weights_conversion.transformers_config import transformers_config

Progress = Callable[[str, int, int], None]
Read = Callable[[str], np.ndarray]
BLOCK = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True)
class Converted:
    """What was converted."""

    preset: str
    source_layout: Layout
    target: Target
    tensors: int


def convert(
    source: Path,
    destination: Path,
    *,
    preset: str | None = None,
    image_size: int | None = None,
    to: str | None = None,
    drop_extra: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Converted:
    """Convert a checkpoint.

    Args:
        source: a .pt, a .safetensors, a transformers folder or a native folder.
        destination: a folder, or a name that ends in .safetensors or .pt.
        preset: hold the source to this one; None: recognise it.
        image_size: S in pixels to store; None: the source's own.
        to: the layout to write; None: native, or Meta's for .pt.
        drop_extra: leave out SRPP and BD.
        progress: called with what is done, how much of it and of how much.

    Raises:
        UserError: the source does not fit or is damaged, or the destination cannot be written; nothing is left there.
    """
    target = choose_target(destination, to)
    if destination.exists() and source.exists() and destination.samefile(source):
        raise UserError(f"{destination}: it is the source itself; give another name")
    opened = open_source(source)
    config, fit = recognise(opened, preset)
    require_fit(opened, config, fit, preset)
    config = replace(config, image_size=config.image_size if image_size is None else image_size)
    preset_config(config.preset, config.image_size)
    config = _without_extra(opened, config, target, drop_extra)
    shapes = native_shapes(config)

    def read_source(name: str) -> np.ndarray:
        value = opened.read(name)
        if not np.isfinite(value).all():
            raise UserError(f"{source}: {name} holds NaN or infinity; the file is damaged, fetch it again")
        return value

    def read(name: str) -> np.ndarray:
        try:
            return fit.mapping.to_native(name, read_source)
        except UserError as error:
            raise UserError(str(error) if str(source) in str(error) else f"{source}: {error}") from error

    info = CheckpointInfo(config, provenance=_provenance(opened, config, fit, progress))
    if opened.info:
        info = replace(info, preprocessing=opened.info.preprocessing)
    try:
        count = _write(target, shapes, read, info, progress)
    except OSError as error:
        raise UserError(f"{error.filename or destination}: {error.strerror or error}; nothing was written") from error
    return Converted(config.preset, fit.mapping.layout, target, count)


def require_fit(source: Source, config: ModelConfig, fit: Fit, asked: str | None) -> None:
    """Refuse a checkpoint that is not exactly what it should be, in one line that lists all that is wrong.

    Raises:
        UserError: it is not.
    """
    if not fit.discrepancies:
        return
    if asked is None and source.info is None:
        raise UserError(
            f"{source.path}: it fits no preset; {fit.preset} in {fit.mapping.layout} layout fits best, but for "
            f"{fit.text}; fetch the checkpoint again, or give one of SAM 2"
        )
    best = recognise(source)[1] if source.info else best_fit(source.tensors)
    if best.preset != fit.preset:
        how = "exactly" if not best.discrepancies else f"best, with {best.discrepancies} discrepancies"
        mend = f"{best.preset} fits {how}: give --model {best.preset}"
    else:
        mend = f"no other preset fits better than {fit.preset}: fetch the checkpoint again"
    raise UserError(f"{source.path}: it does not fit {config.preset}: {fit.text}; {mend}")


def _without_extra(source: Source, config: ModelConfig, target: Target, drop: bool) -> ModelConfig:
    """The model to write: SRPP and BD go where there is a place for them, unless dropped."""
    extra = [name for name in source.tensors if name.startswith(EXTRA)]
    if not extra:
        return config
    if drop:
        return replace(config, srpp=False, bd=False)
    if target.layout != "native":
        raise UserError(
            f"{source.path}: {target.layout} layout has no place for {len(extra)} parameters of SRPP and BD: "
            f"{', '.join(extra)}; give --drop-extra to leave them out, or --to native"
        )
    return config


def _provenance(source: Source, config: ModelConfig, fit: Fit, progress: Progress) -> dict[str, Any]:
    """Where the weights come from. What a source says of its own origin is kept."""
    record: dict[str, Any] = {
        "source": source.path.name,
        "sha256": sha256(source, progress),
        "layout": fit.mapping.layout,
        "preset": config.preset,
        "tool_version": metadata.version("sam2-3dmed-jax"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return {**record, "previous": source.provenance} if source.provenance else record


def sha256(source: Source, progress: Progress) -> dict[str, str]:
    """The SHA-256 of each file that holds weights, by its name."""
    total = sum(-(-file.stat().st_size // BLOCK) for file in source.files)
    done, found = 0, {}
    for path in source.files:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                done += 1
                progress("SHA-256, MiB", done, total)
        root = source.path if source.path.is_dir() else source.path.parent
        found[path.relative_to(root).as_posix()] = digest.hexdigest()
    return found


def _write(target: Target, shapes: Shapes, read: Read, info: CheckpointInfo, progress: Progress) -> int:
    """Write a model's parameters; returns how many tensors that are."""
    mapping = layout_map(target.layout, shapes)
    foreign = mapping.foreign_shapes(shapes)
    done = 0

    def counted(name: str) -> np.ndarray:
        nonlocal done
        value = read(name) if target.layout == "native" else mapping.to_foreign(name, read)
        done += 1
        progress("tensors", done, len(foreign))
        return value

    described = {"format": "pt", PROVENANCE_KEY: json.dumps(info.provenance)}
    with renamed_when_whole(target.path) as path:
        if target.form == "torch":
            from weights_conversion.torch_files import write_torch

            write_torch(path, foreign, counted)
        elif target.layout == "native" and target.form == "folder":
            write_native_folder(path, foreign, counted, info)
        elif target.layout == "native":
            write_native_safetensors(path, foreign, counted, info)
        elif target.form == "safetensors":
            write_safetensors(path, foreign, counted, described)
        else:
            path.mkdir()
            (path / "config.json").write_text(json.dumps(transformers_config(info.model), indent=2))
            write_safetensors(path / WEIGHTS, foreign, counted, described)
    return len(foreign)
