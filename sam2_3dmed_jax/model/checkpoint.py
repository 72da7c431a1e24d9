"""Native checkpoints: a self-contained folder of weights (Orbax), configuration, preprocessing and provenance.

`config.json` is written last, into a temporary folder that is then renamed, so a folder with one is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath

from sam2_3dmed_jax.config import BdConfig, ModelConfig, PreprocessingConfig, SrppConfig, UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.sam2_3dmed import abstract_model, random_weights
from sam2_3dmed_jax.sam2.model import SAM2
from sam2_3dmed_jax.sam2.parameters import Weights, merge, split
from sam2_3dmed_jax.unet.network import UNet

FORMAT = 1


@dataclass(frozen=True)
class CheckpointInfo:
    """What a native checkpoint says of itself. Equal, and so compiled once, for models of the same structure."""

    model: ModelConfig
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig, compare=False)
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)


def new_model(preset: str, image_size: int | None = None, with_3dmed: bool = False, seed: int = 0) -> SAM2:
    """A model with random weights: plain SAM 2, or SAM2-3dMed with both modules.

    Raises:
        UserError: an unknown preset or a size that does not fit it.
    """
    config = ModelConfig(preset=preset, image_size=image_size, srpp=with_3dmed, bd=with_3dmed)
    return assemble(random_weights(config, seed), CheckpointInfo(config))


def assemble(weights: Weights, info: CheckpointInfo) -> Any:
    """Weights as a module that knows what it was made from (`model.info`)."""
    model = merge(abstract_model(info.model)[0], weights)
    model.info = info
    return model


def without_boundary(model: SAM2) -> SAM2:
    """The same model with its boundary branch (BD) left out, as an ablation at inference; its weights are shared.

    Raises:
        UserError: it has none.
    """
    if not model.info.model.bd:
        raise UserError("the checkpoint has no boundary branch to leave out; give one that was trained with model.bd")
    kept = {name: value for name, value in split(model)[1].items() if not name.startswith("boundary.")}
    info = dataclasses.replace(model.info, model=dataclasses.replace(model.info.model, bd=False))
    return assemble(kept, info)


def save_model(model: SAM2 | UNet, path: str | os.PathLike[str], info: CheckpointInfo | None = None) -> None:
    """Write a native checkpoint; an existing one at `path` is replaced once the new one is whole.

    Raises:
        UserError: `path` is a folder that is no checkpoint.
    """
    info = info or model.info
    save_weights(split(model)[1], path, info)


def save_weights(weights: Weights, path: str | os.PathLike[str], info: CheckpointInfo) -> None:
    """Write weights by path as a native checkpoint. In several processes all call it, with all of the weights."""
    target = epath.Path(path)
    first = jax.process_index() == 0
    if target.exists() and not (target / "config.json").exists() and any(target.iterdir()):
        raise UserError(f"{path} is not empty and no checkpoint; choose another folder")
    temporary = target.parent / f".{target.name}.{os.getpid() if jax.process_count() == 1 else 'all'}.tmp"
    provenance = {
        "tool_version": metadata.version("sam2-3dmed-jax"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **info.provenance,
    }
    record = {"format": FORMAT, **dataclasses.asdict(dataclasses.replace(info, provenance=provenance))}
    try:
        if first:
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
        ocp.save(os.path.abspath(temporary / "weights"), weights)  # the first process writes, and Orbax waits for all
        if first:
            (temporary / "config.json").write_text(json.dumps(record, indent=2))
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
    except BaseException:  # such as of a full disk
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_info(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Read what a native checkpoint says of itself.

    Raises:
        UserError: no checkpoint there, or one that this version cannot read.
    """
    file = epath.Path(path) / "config.json"
    if not epath.Path(path).exists():
        raise UserError(f"{path}: there is no such checkpoint; give the folder that training or conversion wrote")
    if not file.exists():
        raise UserError(f"{path}: it has no config.json, so it is no native checkpoint; give one, such as RUN/final")
    return parse_info(file.read_text(), str(file))


def parse_info(text: str, where: str) -> CheckpointInfo:
    """Read what `config.json` holds; `where` names it in errors.

    Raises:
        UserError: it is damaged, or of another version.
    """
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise UserError(
                f"{where}: it has format {record['format']}, this version reads {FORMAT}; use another version"
            )
        model = dict(record["model"])
        model["slice_position"] = SrppConfig(**model["slice_position"])
        model["boundary"] = BdConfig(**model["boundary"])
        if "unet" in model:  # of which older versions know nothing
            listed: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in model["unet"].items()}
            model["unet"] = UNetConfig(**listed)
        return CheckpointInfo(
            ModelConfig(**model), PreprocessingConfig(**record["preprocessing"]), dict(record["provenance"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: it cannot be read ({error}); write the checkpoint again") from error


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[str]:
    """The folder with a native checkpoint's weights, for Orbax to read in this context.

    Raises:
        UserError: the weights are damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Orbax: "Sharding info not provided"; these are host arrays
            yield os.path.abspath(epath.Path(path) / "weights")
    except Exception as error:  # Orbax raises many kinds on a damaged folder
        raise UserError(f"{path}: its weights cannot be read ({type(error).__name__}); write it again") from error


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All weights of a native checkpoint by name, on the host, whatever devices they lay on when they were written.

    Raises:
        UserError: they are damaged.
    """
    with reading(path) as folder:
        # Orbax would else look for the devices of the machine that wrote them.
        on_host = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in ocp.metadata(folder).metadata.items()}
        return dict(ocp.load(folder, on_host))


def load_weights(path: str | os.PathLike[str], config: ModelConfig) -> Weights:
    """Load the weights of a native checkpoint into the structure of `config`.

    Raises:
        UserError: the checkpoint is of another preset or has other modules, or cannot be read.
    """
    _, abstract = abstract_model(config)
    stored = read_weights(path)
    missing, unexpected = sorted(set(abstract) - set(stored)), sorted(set(stored) - set(abstract))
    shaped = sorted(
        name for name in set(abstract) & set(stored) if tuple(abstract[name].shape) != tuple(stored[name].shape)
    )
    if missing or unexpected or shaped:
        parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
        found = "; ".join(f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in parts if names)
        structure = f"model.preset {config.preset}" if config.kind == "sam2" else "model.unet"
        raise UserError(
            f"{path}: its weights do not fit {structure} ({found}); give the preset and modules it was made with"
        )
    return {name: jax.numpy.asarray(np.asarray(value, np.float32)) for name, value in stored.items()}


def load_model(path: str | os.PathLike[str], image_size: int | None = None) -> Any:
    """Load a native checkpoint as an NNX module, SAM2, SAM2With3DMed or UNet, with float32 parameters.

    Args:
        path: the checkpoint's folder.
        image_size: overrides the stored one; SAM 2 runs at any multiple of 32.

    Raises:
        UserError: no readable checkpoint at `path`.
    """
    info = read_info(path)
    weights = load_weights(path, info.model)
    if image_size is not None:
        info = dataclasses.replace(info, model=dataclasses.replace(info.model, image_size=image_size))
    return assemble(weights, info)
