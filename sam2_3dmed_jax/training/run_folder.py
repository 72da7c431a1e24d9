"""The record of a run's experiment: `config.json` in the run's folder, which belongs to one experiment."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.config import (
    DataConfig,
    ExperimentConfig,
    MeshConfig,
    ModelConfig,
    TrainingConfig,
    UNetConfig,
    upgrade_record,
)
from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.folder_lock import is_lock
from sam2_3dmed_jax.runtime.foreign_errors import orbax_write_errors
from sam2_3dmed_jax.runtime.user_files import plain, read_json, shown, typed

CONFIG = "config.json"
RESUME = "make room or repair the disk, then run the same command again: it resumes from the newest checkpoint"
# Settings that a resumed run may change: they affect neither the trained weights nor the choice of `best`.
MAY_CHANGE = frozenset(
    {
        *("data.workers", "training.checkpoint_every", "training.keep_checkpoints"),
        *("training.log_every", "training.images_every", "training.loss_limit"),
    }
)


def run_write_errors(path: Path) -> AbstractContextManager[None]:
    """Turn any error of a block that writes a file of a run, Orbax's included, into a `UserError` that names `path`."""
    return orbax_write_errors(path, RESUME)


def record(config: ExperimentConfig) -> dict[str, Any]:
    """Return an experiment as plain JSON values."""
    values: dict[str, Any] = plain(config)
    return values


def claim_folder(run: Path, config: ExperimentConfig) -> None:
    """Write `config.json`, or check that the folder's run has the same experiment.

    A run of an earlier version has the default of each field that is newer than the run. Fields of `MAY_CHANGE` may
    differ, and the record then takes their new values.

    Args:
        run: the folder.
        config: the complete experiment.

    Raises:
        UserError: the folder holds another experiment or other files, or cannot be written.
    """
    file = run / CONFIG
    new = record(config)
    if file.exists():
        stored = read_record(file, "restore a copy of it, or choose another --out")
        if different := _different_settings(stored, new):
            raise UserError(
                f"{run}: it holds a run with other settings ({listed(different)}); choose another --out or set "
                "them back"
            )
        write_text(file, json.dumps(new, indent=2), RESUME, keep_unchanged=True)
        return
    if run.exists() and not all(is_lock(path) for path in run.iterdir()):
        raise UserError(f"{run}: it is not empty and holds no run; choose another --out")
    with run_write_errors(run):
        run.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(new, indent=2), RESUME)


def read_record(file: Path, fix: str) -> dict[str, Any]:
    """Return the experiment of a run as plain JSON values, with today's field names and the default of each new field.

    Args:
        file: the run's `config.json`.
        fix: what the user can do about a damaged file.

    Raises:
        UserError: the file is missing or damaged, or holds no experiment that this version knows.
    """
    stored = upgrade_record(typed(read_json(file, fix), dict[str, Any], str(file), fix))
    kind = stored["model"].get("kind") if isinstance(stored.get("model"), dict) else None
    parts: dict[str, type] = {
        "model": UNetConfig if kind == "unet" else ModelConfig,
        "data": DataConfig,
        "training": TrainingConfig,
        "mesh": MeshConfig,
    }
    if unknown := stored.keys() - parts.keys():
        raise UserError(f"{file}: {shown(min(unknown))} is not a known field; {fix}")
    read: dict[str, Any] = {
        name: typed(stored.get(name, {}), part, str(file), fix, name) for name, part in parts.items()
    }
    return record(ExperimentConfig(**read))


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder: the names that Orbax gives them are plain numbers."""
    return [int(path.name) for path in folder.glob("*") if re.fullmatch("0|[1-9][0-9]{0,17}", path.name)]


def _different_settings(stored: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the names of settings that differ between two records and that a run may not change."""
    if stored["model"]["kind"] != new["model"]["kind"]:
        return ["model.kind"]  # the other fields of the models cannot be compared
    return sorted(set(_differences(stored, new)) - MAY_CHANGE)


def _differences(stored: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the paths of the fields that differ between two records, such as `training.steps`."""
    paths = []
    for name in {*stored, *new}:
        old_value, new_value = stored.get(name), new.get(name)
        if isinstance(old_value, dict) and isinstance(new_value, dict):
            paths += _differences(old_value, new_value, f"{prefix}{name}.")
        elif old_value != new_value:
            paths.append(prefix + name)
    return paths
