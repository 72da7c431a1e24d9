"""Strict conversion of a checkpoint between layouts.

All names and shapes are compared first; then the tensors are converted one at a time. Every tensor of the source is
used, every parameter is filled, and a value that is not finite is an error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.config import AnyModelConfig, ModelConfig, UNetConfig
from sam2_3dmed_jax.errors import UserError, counted
from sam2_3dmed_jax.model.adapter_file import check_base, read_adapters
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo
from sam2_3dmed_jax.runtime.atomic_files import atomic_folder, atomic_path, write_errors
from sam2_3dmed_jax.runtime.hashing import BLOCK, sha256_of_file
from sam2_3dmed_jax.runtime.output_plan import Input, OutputFile, OutputFolder, check_outputs
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.presets import preset_config
from weights_conversion.mapping import Layout, Shapes, layout_map
from weights_conversion.names import EXTRA
from weights_conversion.native import PROVENANCE_KEY, write_native_folder, write_native_safetensors
from weights_conversion.opening import WEIGHTS, open_source
from weights_conversion.outputs import Target, choose_target
from weights_conversion.presets import Fit, native_shapes, recognise
from weights_conversion.refusal import require_fit
from weights_conversion.safetensors_files import write_safetensors
from weights_conversion.source import Source
from weights_conversion.torch_files import import_torch, write_torch
from weights_conversion.transformers_config import transformers_config

Read = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion."""

    preset: str
    source_layout: Layout
    target: Target
    tensors: int
    reading: dict[str, str]  # how the model was found in the source and read, as in the provenance


def convert_checkpoint(
    source: Path,
    destination: Path,
    *,
    preset: str | None = None,
    image_size: int | None = None,
    to: str | None = None,
    drop_extra: bool = False,
    adapters: Path | None = None,
    origin: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint.

    Args:
        source: a .pt, a .safetensors, a transformers folder or a native folder.
        destination: a folder, or a name that ends in .safetensors or .pt.
        preset: preset that the source must fit; None: recognise it.
        image_size: image size to store, in pixels; None: as in the source.
        to: layout to write; None: native, or Meta's for .pt.
        drop_extra: leave out the parameters of SRPP and BD.
        adapters: file of the adapters of a run with LoRA, to merge into the source.
        origin: entries of the provenance about where the source was published.
        progress: called after each block that is hashed and each tensor.

    Raises:
        UserError: the source does not fit or is damaged, the adapters belong to other weights, or the destination
            cannot be written. In all cases, nothing is left at the destination.
    """
    target = choose_target(destination, to)
    output = OutputFolder("", destination) if target.form == "folder" else OutputFile("", destination)
    check_outputs([output], [Input("the source", source), *([Input("--adapters", adapters)] if adapters else [])])
    if target.form == "torch":  # before minutes of work
        import_torch(destination, "writing")
    added = read_adapters(adapters) if adapters else None
    opened = open_source(source)
    config, fit = recognise(opened, preset)
    require_fit(opened, config, fit, preset)
    own_shapes = native_shapes(config)
    config = added.info.model if added else config
    if isinstance(config, ModelConfig):
        config = replace(config, image_size=config.image_size if image_size is None else image_size)
        preset_config(config.preset, config.image_size)
    config = _without_extra(source, config, target, drop_extra)
    shapes = native_shapes(config)

    def read_source(name: str) -> np.ndarray:
        value = opened.read(name)
        if not np.isfinite(value).all():
            raise UserError(f"{source}: {name} contains NaN or infinity; the file is damaged, download it again")
        return value

    def read(name: str) -> np.ndarray:
        try:
            return fit.mapping.to_native(name, read_source)
        except UserError as error:
            raise UserError(str(error) if str(source) in str(error) else f"{source}: {error}") from error

    info = CheckpointInfo(config, provenance={**_provenance(opened, config, fit, progress), **(origin or {})})
    if opened.info:
        info = replace(info, preprocessing=opened.info.preprocessing)
    if adapters and added:
        check_base(adapters, added, str(source), own_shapes, read)
        record = {"file": adapters.name, "sha256": sha256_of_file(adapters), **added.info.provenance}
        info = replace(added.info, model=config, provenance={**info.provenance, "adapters": record})
    with write_errors(destination):
        count = _write(target, shapes, added.merged(read) if added else read, info, progress)
    return Conversion(fit.preset, fit.mapping.layout, target, count, {**opened.reading, **_rounding(opened)})


def _without_extra(source: Path, config: AnyModelConfig, target: Target, drop: bool) -> AnyModelConfig:
    """Return the model to write, without SRPP and BD if they are dropped.

    Raises:
        UserError: the layout cannot store them.
    """
    if isinstance(config, UNetConfig):
        if target.layout != "native":
            raise UserError(f"{source}: {target.layout} layout stores no U-Net; give --to native")
        return config
    extra = [name for name in native_shapes(config) if name.startswith(EXTRA)]
    if not extra:
        return config
    if drop:
        return replace(config, srpp=False, bd=False)
    if target.layout != "native":
        modules = {f"in {module[:-1]}": [name for name in extra if name.startswith(module)] for module in EXTRA}
        raise UserError(
            f"{source}: {target.layout} layout cannot store SRPP and BD ({counted(modules)}); give --drop-extra "
            "to leave them out, or --to native"
        )
    return config


def _provenance(source: Source, config: AnyModelConfig, fit: Fit, progress: Progress | None) -> dict[str, Any]:
    """Return the record of where the weights come from, with the record of the source as `previous`."""
    record: dict[str, Any] = {
        "source": source.path.name,
        "sha256": sha256(source, progress),
        "layout": fit.mapping.layout,
        "preset": fit.preset,
        **source.reading,
        **_rounding(source),
        "tool_version": metadata.version("sam2-3dmed-jax"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return {**record, "previous": source.provenance} if source.provenance else record


def _rounding(source: Source) -> dict[str, str]:
    rounded = any(tensor.dtype == "float64" for tensor in source.tensors.values())
    return {"rounded": "float64 to float32"} if rounded else {}


def sha256(source: Source, progress: Progress | None) -> dict[str, str]:
    """Return the SHA-256 of each file of weights, by name."""
    total = sum(-(-file.stat().st_size // BLOCK) for file in source.files)
    root = source.path if source.path.is_dir() else source.path.parent
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += 1
        if progress:
            progress("SHA-256, MiB", done, total)

    return {path.relative_to(root).as_posix(): sha256_of_file(path, report) for path in source.files}


def _write(target: Target, shapes: Shapes, read: Read, info: CheckpointInfo, progress: Progress | None) -> int:
    """Write the parameters of a model and return the number of tensors."""
    mapping = layout_map(target.layout, shapes)
    foreign = mapping.foreign_shapes(shapes)
    done = 0

    def counted(name: str) -> np.ndarray:
        nonlocal done
        value = read(name) if target.layout == "native" else mapping.to_foreign(name, read)
        done += 1
        if progress:
            progress("tensors", done, len(foreign))
        return value

    metadata_entries = {"format": "pt", PROVENANCE_KEY: json.dumps(info.provenance)}
    if target.form == "folder" and target.layout == "native":
        write_native_folder(target.path, foreign, counted, info)
    elif target.form == "folder":
        with atomic_folder(target.path) as folder:
            (folder / "config.json").write_text(json.dumps(transformers_config(info.sam2), indent=2))
            write_safetensors(folder / WEIGHTS, foreign, counted, metadata_entries)
    else:
        with atomic_path(target.path, target.path.suffix) as path:
            if target.form == "torch":
                write_torch(path, foreign, counted)
            elif target.layout == "native":
                write_native_safetensors(path, foreign, counted, info)
            else:
                write_safetensors(path, foreign, counted, metadata_entries)
    return len(foreign)
