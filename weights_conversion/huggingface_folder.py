"""Hugging Face folder of a trained model: SAM 2 in transformers' layout, and a second file with the rest of the model.

transformers reads `config.json` and `model.safetensors`. `NATIVE` has what its layout cannot store: the parameters of
SRPP and BD, and, in its metadata, the native configuration with the preprocessing. `convert` reads both files.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.checkpoint import CONFIG_KEY, FORMAT, parse_info, read_info
from sam2_3dmed_jax.runtime.user_files import read_json
from weights_conversion.names import EXTRA
from weights_conversion.native import open_native_folder
from weights_conversion.presets import fit, native_shapes
from weights_conversion.refusal import require_fit
from weights_conversion.safetensors_files import SafetensorsFile, write_safetensors
from weights_conversion.source import Source, Tensor

NATIVE = "sam2_3dmed.safetensors"
CONFIG_FIELD = "sam2_3dmed_file"  # in `config.json`: the name of the second file


def write_native_part(checkpoint: Path, folder: Path, image_size: int | None = None) -> None:
    """Write `NATIVE` of a native checkpoint into a folder.

    Args:
        checkpoint: the native checkpoint.
        folder: the folder.
        image_size: image size to store, in pixels; None: as in the checkpoint.

    Raises:
        UserError: the checkpoint is damaged.
    """
    source, info = open_native_folder(checkpoint), read_info(checkpoint)
    if image_size is not None:
        info = replace(info, model=replace(info.sam2, image_size=image_size))
    shapes = {name: tensor.shape for name, tensor in source.tensors.items() if name.startswith(EXTRA)}
    record = {CONFIG_KEY: json.dumps({"format": FORMAT, **asdict(info)})}
    write_safetensors(folder / NATIVE, shapes, source.read, record)
    config = folder / "config.json"
    fields = read_json(config, "convert the checkpoint again")
    config.write_text(json.dumps({**fields, CONFIG_FIELD: NATIVE}, indent=2), encoding="utf-8")


def native_part(folder: Path) -> Path | None:
    """Return the path of `NATIVE` in a folder whose `config.json` names it, or None."""
    try:
        fields = read_json(folder / "config.json", "")
    except UserError:  # reading the checkpoint reports it
        return None
    return folder / NATIVE if isinstance(fields, dict) and fields.get(CONFIG_FIELD) == NATIVE else None


def with_native_part(source: Source) -> Source:
    """Return a transformers folder as a native checkpoint, if it has a native part, or as it is.

    Raises:
        UserError: one of the files is missing or damaged, or they do not fit each other.
    """
    path = native_part(source.path)
    if path is None:
        return source
    if not path.is_file():
        raise UserError(f"{path}: it is missing, but config.json names it; download it too")
    file = SafetensorsFile(path)
    info = parse_info(file.metadata.get(CONFIG_KEY, "{}"), str(path))
    plain = replace(info.sam2, srpp=False, bd=False)
    found = fit(source.tensors, plain, "transformers")
    require_fit(source, plain, found, None)
    shapes = native_shapes(plain)

    def read(name: str) -> np.ndarray:
        return file.read(name) if name in file.tensors else found.mapping.to_native(name, source.read)

    return Source(
        source.path,
        "transformers folder with a native part",
        {name: Tensor(shape, "float32") for name, shape in shapes.items()} | file.tensors,
        read,
        (*source.files, path),
        info,
        provenance=info.provenance,
    )
