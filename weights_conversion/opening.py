"""Opening of checkpoints of all formats: `.pt`, `.safetensors`, transformers folder and native folder.

Only headers are read here. `weights_conversion.presets` recognises the layout from the names of the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sam2_3dmed_jax.errors import NAME, UserError, cut, listed
from sam2_3dmed_jax.model.adapter_file import ADAPTERS_KEY
from sam2_3dmed_jax.model.checkpoint import CONFIG_KEY
from sam2_3dmed_jax.runtime.user_files import parse_json, read_json, typed
from weights_conversion.huggingface_folder import with_native_part
from weights_conversion.native import PROVENANCE_KEY, open_native_folder, open_native_safetensors
from weights_conversion.safetensors_files import SafetensorsFile
from weights_conversion.source import Source, Tensor
from weights_conversion.wrappers import Contents, choose_model

TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".pt.tar", ".pth.tar")
WEIGHTS = "model.safetensors"
FOLDER_WEIGHTS = (WEIGHTS, "pytorch_model.bin")  # in a transformers folder; the first one that exists is read


class TensorFile(Protocol):
    """An open file of weights."""

    tensors: dict[str, Tensor]
    contents: Contents

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32."""


def open_source(path: Path) -> Source:
    """Open a checkpoint, read its headers, and find the model in it.

    Raises:
        UserError: it does not exist, cannot be read without running code, or contains several models.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise UserError(
            f"{path}: the file or folder does not exist; give a .pt, a .safetensors or the folder of a checkpoint"
        )
    ending = path.name.lower()
    if ending.endswith(".safetensors"):
        file = SafetensorsFile(path)
        if ADAPTERS_KEY in file.metadata:
            raise UserError(
                f"{path}: it has the adapters of a run without the weights they belong to; give those as SRC, and this "
                "file as --adapters of 'convert'"
            )
        if CONFIG_KEY in file.metadata:
            return open_native_safetensors(file)
        return _source(path, ".safetensors", [path], [file])
    if ending.endswith(TORCH_ENDINGS):
        return _source(path, "PyTorch file", [path], [_torch_file(path)])
    raise UserError(
        f"{path}: '{path.suffix}' is not the ending of a checkpoint; give a .pt, a .safetensors or a folder"
    )


def _torch_file(path: Path) -> TensorFile:
    from weights_conversion.torch_files import TorchFile

    return TorchFile(path)


def _source(
    path: Path, kind: str, files: Sequence[Path], opened: Sequence[TensorFile], image_size: int | None = None
) -> Source:
    """Return the model in one or several files, which together contain each tensor once."""
    holders = {name: file for file in opened for name in file.tensors}
    contents = Contents(
        {name: inside for file in opened for name, inside in file.contents.tensors.items()},
        {name: inside for file in opened for name, inside in file.contents.objects.items()},
    )
    choice = choose_model(path, contents)
    return Source(
        path,
        kind,
        {name: holders[stored].tensors[stored] for name, stored in choice.paths.items()},
        lambda name: holders[choice.paths[name]].read(choice.paths[name]),
        tuple(files),
        image_size=image_size,
        provenance=_provenance(opened[0]),
        reading=choice.reading,
    )


def _open_folder(path: Path) -> Source:
    config = path / "config.json"
    if (path / "weights").is_dir():
        return open_native_folder(path)
    for weights in FOLDER_WEIGHTS:
        if (path / weights).is_file():
            shards: dict[Path, set[str] | None] = {path / weights: None}
            break
        if _index(path / weights).is_file():
            shards = _shards(path / weights)
            break
    else:
        raise UserError(
            f"{path}: it is not a checkpoint: expected weights/ and config.json (native), or config.json and "
            f"{' or '.join(FOLDER_WEIGHTS)} or its index (transformers)"
        )
    if not config.is_file():
        raise UserError(f"{config}: it is missing; a transformers folder contains one next to its weights")
    image_size = _image_size(_json(config))
    files = {file: SafetensorsFile(file) if weights == WEIGHTS else _torch_file(file) for file in shards}
    _check_index(_index(path / weights), shards, files)
    return with_native_part(_source(path, "transformers folder", list(files), list(files.values()), image_size))


def _index(weights: Path) -> Path:
    """Return the file that lists the shards of a file of weights."""
    return weights.with_name(f"{weights.name}.index.json")


def _check_index(index: Path, shards: Mapping[Path, set[str] | None], files: Mapping[Path, TensorFile]) -> None:
    """Check that each file contains exactly its tensors of the index, and no two contain the same tensor.

    Raises:
        UserError: they do not.
    """
    found: set[str] = set()
    wrong = []
    for shard, expected in shards.items():
        held = set(files[shard].tensors)
        wrong += [f"{name} (not in {shard.name})" for name in sorted((expected or held) - held)]
        wrong += [f"{name} (in {shard.name}, not in the index)" for name in sorted(held - (expected or held))]
        wrong += [f"{name} (twice)" for name in sorted(held & found)]
        found |= held
    if wrong:
        raise UserError(
            f"{index}: it does not match the files in its folder: {listed(wrong, separator='; ')}; download it again"
        )


def _shards(weights: Path) -> dict[Path, set[str] | None]:
    """Return the files of a sharded checkpoint and the names of the tensors in each."""
    index, suffix = _index(weights), weights.suffix
    if "weight_map" not in (record := _json(index)):
        raise UserError(f"{index}: it has no 'weight_map' from tensors to files; download it again")
    entries = typed(record["weight_map"], dict[str, str], str(index), "download it again", "weight_map").items()
    if not entries:
        raise UserError(f"{index}: its 'weight_map' is empty; download it again")
    shards: dict[Path, set[str] | None] = {}
    for name, file in entries:
        # A name with a folder in it could point to any file of the machine.
        if Path(file).name != file or "\\" in file or not file.endswith(suffix):
            raise UserError(
                f"{index}: '{cut(file, NAME)}' is not a {suffix} file in its folder; download the checkpoint again"
            )
        if not index.with_name(file).is_file():
            raise UserError(f"{index.with_name(file)}: it is missing, but {index.name} names it; download it too")
        held = shards.setdefault(index.with_name(file), set())
        assert held is not None
        held.add(name)
    return shards


def _json(file: Path) -> dict[str, Any]:
    fix = "download it again"
    return typed(read_json(file, fix), dict[str, Any], str(file), fix)


def _image_size(config: dict[str, Any]) -> int | None:
    """Return the side of the square image in a transformers configuration, in pixels, if it states one."""
    prompts = config.get("prompt_encoder_config")
    sizes = prompts.get("image_size") if isinstance(prompts, dict) else None
    sizes = config.get("image_size") if sizes is None else sizes
    size = sizes[0] if isinstance(sizes, list) and sizes else sizes
    return size if isinstance(size, int) else None


def _provenance(file: TensorFile) -> dict[str, object]:
    if not isinstance(file, SafetensorsFile):
        return {}
    try:
        record = parse_json(file.metadata.get(PROVENANCE_KEY, "{}"), str(file.path), "")
    except UserError:  # it describes the weights, which are read without it
        return {}
    return record if isinstance(record, dict) else {}
