"""Native checkpoints: self-contained folders of weights (Orbax), model configuration, preprocessing and provenance.

`config.json` is written last, into a temporary folder that is then renamed, so a folder that contains it is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from sam2_3dmed_jax.config import (
    AnyModelConfig,
    MemorySelection,
    ModelConfig,
    PreprocessingConfig,
    Range,
    UNetConfig,
    upgrade_record,
)
from sam2_3dmed_jax.errors import UserError, counted, listed, naming
from sam2_3dmed_jax.model.build import abstract_model, random_weights
from sam2_3dmed_jax.runtime.atomic_files import GIVE_ROOM, atomic_folder
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice, resolve_compute_dtype
from sam2_3dmed_jax.runtime.foreign_errors import foreign, orbax_write_errors
from sam2_3dmed_jax.runtime.local_paths import check_local
from sam2_3dmed_jax.runtime.output_plan import OutputFolder, check_outputs
from sam2_3dmed_jax.runtime.user_files import parse_json, read_bytes, shown, typed
from sam2_3dmed_jax.sam2.model import SAM2
from sam2_3dmed_jax.sam2.parameters import Weights, merge, split
from sam2_3dmed_jax.sam2.presets import preset_config
from sam2_3dmed_jax.unet.network import UNet

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "weights"  # all that is in the folder
LEFT_BY_DESKTOPS = (".DS_Store", "Thumbs.db", "desktop.ini")  # in any folder that was looked at; of no value
FILES_OF_OTHERS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
CONFIG_KEY = "sam2_3dmed_config"  # in the metadata of a .safetensors file: the `config.json` of its model
_WRITE_AGAIN = "write the checkpoint again"
RANDOM = "random"  # value of "weights" in the provenance of a model that was never trained


@dataclass(frozen=True)
class CheckpointInfo:
    """The description of a native checkpoint; equal, and therefore compiled once, for models of the same structure."""

    model: AnyModelConfig
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig, compare=False)
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)
    # Divisor of logits for calibrated probabilities, fitted on the inner cases of the run; None: not known.
    temperature: float | None = field(default=None, compare=False)

    @property
    def sam2(self) -> ModelConfig:
        """The model's configuration, of a model that takes prompts.

        Raises:
            UserError: it is a U-Net.
        """
        if isinstance(self.model, UNetConfig):
            raise UserError("the checkpoint is a U-Net, which takes no prompts; give a checkpoint of SAM 2")
        return self.model

    @property
    def has_random_weights(self) -> bool:
        """Whether the weights are those of `new_model`, also after conversions; training writes another provenance."""
        record: Any = self.provenance
        while isinstance(record, dict):
            if record.get("weights") == RANDOM:
                return True
            record = record.get("previous")  # of the source of a conversion
        return False


def new_model(preset: str, image_size: int | None = None, with_3dmed: bool = False, seed: int = 0) -> SAM2:
    """Return a model with random weights: SAM 2, or SAM2-3dMed with both modules.

    Raises:
        UserError: an unknown preset or a size that does not fit it.
    """
    config = ModelConfig(preset=preset, image_size=image_size, srpp=with_3dmed, bd=with_3dmed)
    info = CheckpointInfo(config, provenance={"weights": RANDOM, "seed": seed})
    model: SAM2 = assemble(random_weights(config, seed), info)
    return model


def assemble(weights: Weights, info: CheckpointInfo) -> Any:
    """Return a module with the given weights and `model.info`; SAM2, SAM2With3DMed or UNet."""
    model = merge(abstract_model(info.model)[0], weights)
    model.info = info
    return model


def without_boundary(model: SAM2) -> SAM2:
    """Return the model without its boundary branch (BD), an ablation at inference; the weights are shared.

    Raises:
        UserError: the model has no boundary branch.
    """
    if not model.info.model.bd:
        raise UserError("the checkpoint has no boundary branch to leave out; give one that was trained with model.bd")
    kept = {name: value for name, value in split(model)[1].items() if not name.startswith("boundary.")}
    info = _with_model_field(model.info, bd=False)
    ablated: SAM2 = assemble(kept, info)
    return ablated


def with_memory_selection(model: SAM2, memory_selection: MemorySelection) -> SAM2:
    """Return the model with another rule which memories a slice sees; the weights are shared.

    Raises:
        UserError: the rule does not exist.
    """
    if model.config.memory_selection == memory_selection:
        return model
    info = _with_model_field(model.info, memory_selection=memory_selection)
    changed: SAM2 = assemble(split(model)[1], info)
    return changed


def _with_model_field(info: CheckpointInfo, **fields: Any) -> CheckpointInfo:
    return dataclasses.replace(info, model=dataclasses.replace(info.model, **fields))


def save_model(model: SAM2 | UNet, path: str | os.PathLike[str], info: CheckpointInfo | None = None) -> None:
    """Write a native checkpoint; an existing one at `path` is replaced when the new one is complete.

    Raises:
        UserError: `path` is a folder with other contents.
    """
    info = info or model.info
    save_weights(split(model)[1], path, info)


def save_weights(weights: Weights, path: str | os.PathLike[str], info: CheckpointInfo, hint: str = GIVE_ROOM) -> None:
    """Write weights by path as a native checkpoint; an existing one at `path` is replaced when the new one is complete.

    In a distributed run every process calls this function with all weights.

    Args:
        weights: of the model.
        path: the folder.
        info: the description of the model.
        hint: how to fix a failed write.

    Raises:
        UserError: `path` is a folder with other contents, or cannot be written.
    """
    first = jax.process_index() == 0
    check_replaceable(path)
    provenance = {
        "tool_version": metadata.version("sam2-3dmed-jax"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **info.provenance,
    }
    record = {"format": FORMAT, **dataclasses.asdict(dataclasses.replace(info, provenance=provenance))}
    tag = None if jax.process_count() == 1 else "all"
    with (
        orbax_write_errors(path, hint),
        atomic_folder(path, replace=True, writer=first, tag=tag, late_writers=True) as temporary,
    ):
        ocp.save(temporary / WEIGHTS, weights)  # the first process writes, and Orbax waits for all processes
        if first:
            (temporary / CONFIG).write_text(json.dumps(record, indent=2))


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Check that nothing but a checkpoint is lost if one is written to a folder.

    Raises:
        UserError: `path` is a file, or a folder with other contents.
    """
    check_outputs([OutputFolder("", path)])
    folder = Path(path)
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    others = sorted(name for name in names if name not in (CONFIG, WEIGHTS, *LEFT_BY_DESKTOPS))
    if names and CONFIG not in names:
        raise UserError(f"{path} is not empty and not a checkpoint; choose another folder")
    if others:
        raise UserError(
            f"{path} contains {listed(others)} besides a checkpoint, which would be deleted with it; move that, or "
            "choose another folder"
        )


def checkpoint_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files of a native checkpoint, or of the trained model of a run."""
    folder = Path(path)
    folder = folder if (folder / WEIGHTS).exists() else folder / "final"
    return [folder / CONFIG, *(folder / WEIGHTS).rglob("*")]


def read_info(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Read the description of a native checkpoint.

    Raises:
        UserError: `path` is not a checkpoint that this version can read.
    """
    check_local(path)
    file = Path(path) / CONFIG
    if not Path(path).exists():
        raise UserError(
            f"{path}: the checkpoint does not exist; give a folder that training or conversion wrote, or a name that "
            "'sam2-3dmed download' lists"
        )
    if kind := _other_format(Path(path)):
        raise UserError(f"{path}: it is {kind} and not a native checkpoint; convert it once: {_conversion(Path(path))}")
    if not file.exists():
        raise UserError(
            f"{path}: config.json is missing, so this is not a native checkpoint; give one, such as RUN/final, or "
            "convert this one with 'sam2-3dmed convert'"
        )
    return parse_info(read_bytes(file, _WRITE_AGAIN), str(file))


def _other_format(path: Path) -> str:
    """Return the format of a checkpoint of another project, which `convert` reads, or "" for any other path."""
    if path.is_file():
        return f"a {path.suffix} file" if path.name.endswith(FILES_OF_OTHERS) else ""
    holds_weights = any((path / name).exists() for name in ("model.safetensors", "pytorch_model.bin"))
    return "a folder of transformers" if holds_weights and not (path / WEIGHTS).exists() else ""


def _conversion(path: Path) -> str:
    """Return the command that converts a checkpoint of another project."""
    converted = path.with_suffix("") if path.is_file() else path.with_name(f"{path.name}_native")
    return f"sam2-3dmed convert {shlex.quote(str(path))} {shlex.quote(str(converted))}"


def parse_info(text: bytes | str, where: str) -> CheckpointInfo:
    """Parse the text of a `config.json`; `where` names the file in errors.

    Raises:
        UserError: the text is damaged or has another format.
    """
    record = typed(parse_json(text, where, _WRITE_AGAIN), dict[str, Any], where, _WRITE_AGAIN)
    if "format" not in record and "model_type" in record:
        raise UserError(f"{where}: this is a checkpoint of transformers; convert it with 'sam2-3dmed convert'")
    if (version := record.pop("format", None)) != FORMAT:
        raise UserError(f"{where}: the format is {shown(version)}, this version reads {FORMAT}; use another version")
    stored = typed(record, _StoredInfo, where, _WRITE_AGAIN)
    model = model_config(stored.model, where)
    return CheckpointInfo(model, stored.preprocessing, stored.provenance, stored.temperature)


@dataclass(frozen=True)
class _StoredInfo:
    """Members of `config.json` besides its format."""

    model: dict[str, Any]
    preprocessing: PreprocessingConfig
    provenance: dict[str, Any]
    temperature: Annotated[float | None, Range(1e-3, 1e3)] = None  # checkpoints of version 0.1 have none


def model_config(record: Mapping[str, Any], where: str) -> AnyModelConfig:
    """Return the model config that a JSON record holds; `where` names its file in errors.

    Raises:
        UserError: it is not the record of a model config, or a number is out of its range.
    """
    model = upgrade_record({"model": record})["model"]
    kind: type[Any] = UNetConfig if model.get("kind") == "unet" else ModelConfig
    config: AnyModelConfig = typed(model, kind, where, _WRITE_AGAIN, "model")
    if isinstance(config, ModelConfig):
        with naming(where):
            preset_config(config.preset)
    return config


@contextlib.contextmanager
def weights_folder(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give the context the weights folder of a native checkpoint, and turn the errors of Orbax into a `UserError`.

    Raises:
        UserError: the weights are damaged.
    """
    with foreign("orbax", lambda reason: f"{path}: its weights cannot be read ({reason}); write the checkpoint again"):
        yield os.path.abspath(Path(path) / WEIGHTS)


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all weights of a native checkpoint by path into host memory, independent of the devices that wrote them.

    Raises:
        UserError: the weights are damaged.
    """
    with weights_folder(path) as folder:
        # Without a target, Orbax looks for the devices of the machine that wrote the weights.
        on_host = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in ocp.metadata(folder).metadata.items()}
        return dict(ocp.load(folder, on_host))


def load_weights(path: str | os.PathLike[str], config: AnyModelConfig) -> Weights:
    """Load the weights of a native checkpoint into the structure of `config`.

    Raises:
        UserError: the checkpoint has another preset or other modules, or cannot be read.
    """
    _, abstract = abstract_model(config)
    stored = read_weights(path)
    missing, unexpected = sorted(set(abstract) - set(stored)), sorted(set(stored) - set(abstract))
    misshaped = sorted(
        name for name in set(abstract) & set(stored) if tuple(abstract[name].shape) != tuple(stored[name].shape)
    )
    if missing or unexpected or misshaped:
        summary = counted({"missing": missing, "unexpected": unexpected, "of another shape": misshaped})
        structure = f"model.preset {config.preset}" if isinstance(config, ModelConfig) else "the U-Net"
        raise UserError(
            f"{path}: its weights do not fit {structure} ({summary}); give the preset and modules of the checkpoint"
        )
    # `jax.numpy.asarray` would compile a program for each shape of a parameter.
    return {name: jax.device_put(np.asarray(value, np.float32)) for name, value in stored.items()}


def with_compute_dtype(info: CheckpointInfo, compute_dtype: ComputeDtypeChoice) -> CheckpointInfo:
    """Return the description of the same checkpoint with the dtype in which it predicts.

    The stored dtype is the one of training, which does not decide it: the same weights run on other hardware.
    """
    return _with_model_field(info, compute_dtype=resolve_compute_dtype(compute_dtype))


def load_model(
    path: str | os.PathLike[str],
    image_size: int | None = None,
    compute_dtype: ComputeDtypeChoice = "auto",
    memory_selection: MemorySelection | None = None,
) -> Any:
    """Load a native checkpoint as an NNX module, SAM2, SAM2With3DMed or UNet, with float32 parameters.

    Args:
        path: the checkpoint's folder.
        image_size: S in pixels, in place of the stored size; SAM 2 runs at any multiple of 32. A U-Net has none.
        compute_dtype: see `runtime.compute_dtype`; the dtype of training has no influence.
        memory_selection: which memories a slice sees, in place of the stored rule. A U-Net has no memories.

    Raises:
        UserError: `path` is not a readable checkpoint, or its model does not run at `image_size` or has no such rule.
    """
    info = with_compute_dtype(read_info(path), compute_dtype)
    if image_size is not None:
        if not isinstance(info.model, ModelConfig):
            raise UserError(f"{path}: a U-Net has patches and no image size; leave image_size out")
        info = _with_model_field(info, image_size=image_size)
    if memory_selection is not None:
        if not isinstance(info.model, ModelConfig):
            raise UserError(f"{path}: a U-Net has no memories to select; leave memory_selection out")
        info = _with_model_field(info, memory_selection=memory_selection)
    return assemble(load_weights(path, info.model), info)
