"""Opening of checkpoints of all formats: `.pt`, `.safetensors`, transformers folder and native folder.

Only headers are read here. `weights_conversion.presets` recognises the layout from the names of the tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from weights_conversion.native import CONFIG_KEY, PROVENANCE_KEY, open_native_folder, open_native_safetensors
from weights_conversion.safetensors_files import SafetensorsFile
from weights_conversion.source import Source

PICKLES = (".pt", ".pth", ".bin")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def open_source(path: Path) -> Source:
    """Open a checkpoint and read its headers.

    Raises:
        UserError: it does not exist, or cannot be read without running code.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise UserError(
            f"{path}: the file or folder does not exist; give a .pt, a .safetensors or the folder of a checkpoint"
        )
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in PICKLES:
        from weights_conversion.torch_files import TorchFile

        file = TorchFile(path)
        return Source(path, "PyTorch file", file.tensors, file.read, (path,))
    raise UserError(
        f"{path}: '{path.suffix}' is not the ending of a checkpoint; give a .pt, a .safetensors or a folder"
    )


def _open_safetensors(path: Path) -> Source:
    file = SafetensorsFile(path)
    if CONFIG_KEY in file.metadata:
        return open_native_safetensors(file)
    provenance = _provenance(file)
    return Source(path, ".safetensors", file.tensors, file.read, (path,), provenance=provenance)


def _open_folder(path: Path) -> Source:
    config = path / "config.json"
    if (path / "weights").is_dir():
        return open_native_folder(path)
    if (path / WEIGHTS).is_file():
        shards: dict[Path, set[str] | None] = {path / WEIGHTS: None}
    elif (path / INDEX).is_file():
        shards = _shards(path)
    else:
        raise UserError(
            f"{path}: it is not a checkpoint: expected weights/ and config.json (native), or config.json and {WEIGHTS} "
            f"or {INDEX} (transformers)"
        )
    if not config.is_file():
        raise UserError(f"{config}: it is missing; a transformers folder contains one next to its weights")
    record = _json(config)
    return _joined(path, shards, _image_size(record))


def _joined(path: Path, shards: dict[Path, set[str] | None], image_size: int | None) -> Source:
    """Return several files as one source.

    Raises:
        UserError: a file does not contain exactly the tensors of the index, or two files contain the same tensor.
    """
    holders: dict[str, SafetensorsFile] = {}
    wrong = []
    files = {shard: SafetensorsFile(shard) for shard in shards}
    for shard, expected in shards.items():
        held = set(files[shard].tensors)
        wrong += [f"{name} (not in {shard.name})" for name in sorted((expected or held) - held)]
        wrong += [f"{name} (in {shard.name}, not in the index)" for name in sorted(held - (expected or held))]
        wrong += [f"{name} (twice)" for name in sorted(held & set(holders))]
        holders.update(dict.fromkeys(held, files[shard]))
    if wrong:
        raise UserError(f"{path / INDEX}: it does not match the files in its folder: {'; '.join(wrong)}")
    tensors = {name: file.tensors[name] for name, file in holders.items()}

    def read(name: str) -> np.ndarray:
        return holders[name].read(name)

    provenance = _provenance(next(iter(files.values())))
    return Source(
        path, "transformers folder", tensors, read, tuple(shards), image_size=image_size, provenance=provenance
    )


def _shards(path: Path) -> dict[Path, set[str] | None]:
    """Return the files of a sharded checkpoint and the names of the tensors in each."""
    index = path / INDEX
    try:
        entries = [(str(name), str(file)) for name, file in _json(index)["weight_map"].items()]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{index}: it has no 'weight_map' from tensors to files; download it again") from error
    if not entries:
        raise UserError(f"{index}: its 'weight_map' is empty; download it again")
    shards: dict[Path, set[str] | None] = {}
    for name, file in entries:
        # A name with a folder in it could point to any file of the machine.
        if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise UserError(
                f"{index}: '{file}' is not a .safetensors file in its folder; download the checkpoint again"
            )
        if not (path / file).is_file():
            raise UserError(f"{path / file}: it is missing, but {INDEX} names it; download it too")
        held = shards.setdefault(path / file, set())
        assert held is not None
        held.add(name)
    return shards


def _json(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: it cannot be read as JSON ({error}); download it again") from error
    if not isinstance(record, dict):
        raise UserError(f"{file}: it contains a {type(record).__name__}, expected a JSON object; download it again")
    return record


def _image_size(config: dict[str, Any]) -> int | None:
    """Return the side of the square image in a transformers configuration, in pixels, if it states one."""
    sizes = (config.get("prompt_encoder_config") or {}).get("image_size", config.get("image_size"))
    size = sizes[0] if isinstance(sizes, list) and sizes else sizes
    return size if isinstance(size, int) else None


def _provenance(file: SafetensorsFile) -> dict[str, object]:
    try:
        record = json.loads(file.metadata.get(PROVENANCE_KEY, "{}"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
