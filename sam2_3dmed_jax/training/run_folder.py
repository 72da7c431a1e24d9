"""The record of a run's experiment: `config.json` in the run's folder, which belongs to one experiment."""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.config import ExperimentConfig, ModelConfig, UNetConfig, upgrade_record
from sam2_3dmed_jax.errors import UserError, listed
from sam2_3dmed_jax.runtime.atomic_files import write_errors, write_text

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
    return write_errors(path, RESUME, errors=Exception)


def record(config: ExperimentConfig) -> dict[str, Any]:
    """Return an experiment as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


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
        try:
            stored = json.loads(file.read_text())
            different = _different_settings(upgrade_record(stored), new)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}: it cannot be read ({error}); restore a copy of it, or choose another --out"
            ) from error
        if different:
            raise UserError(
                f"{run}: it holds a run with other settings ({listed(different)}); choose another --out or set "
                "them back"
            )
        if stored != new:
            write_text(file, json.dumps(new, indent=2), RESUME)
        return
    if run.exists() and any(run.iterdir()):
        raise UserError(f"{run}: it is not empty and holds no run; choose another --out")
    with run_write_errors(run):
        run.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(new, indent=2), RESUME)


def _different_settings(stored: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the names of settings that differ between two records and that a run may not change."""
    kinds = [experiment["model"].get("kind", "sam2") for experiment in (stored, new)]
    if kinds[0] != kinds[1]:
        return ["model.kind"]  # the other fields of the models cannot be compared
    default = ExperimentConfig(model=UNetConfig() if kinds[0] == "unet" else ModelConfig())
    return sorted(set(_differences(_with_defaults(stored, record(default)), new)) - MAY_CHANGE)


def _with_defaults(stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the default of each field that it lacks."""
    nested = {
        name: _with_defaults(stored[name], default)
        for name, default in defaults.items()
        if isinstance(default, dict) and name in stored
    }
    return {**defaults, **stored, **nested}


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
