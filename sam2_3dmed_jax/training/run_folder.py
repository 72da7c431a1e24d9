"""A run's folder belongs to one experiment, which `config.json` records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.disk import write_whole, writing

CONFIG = "config.json"
# What a resumed run may change: none of it decides a number that is trained, or which weights become `best`.
MAY_CHANGE = frozenset(
    {
        *("data.workers", "training.checkpoint_every", "training.keep_checkpoints"),
        *("training.log_every", "training.images_every", "training.loss_limit"),
    }
)


def record(config: ExperimentConfig) -> dict[str, Any]:
    """A config as JSON holds it."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def claim_folder(run: Path, config: ExperimentConfig) -> None:
    """Write `config.json`, or check that the folder's run is of the same experiment.

    A field that an older version did not know has its default. Fields of `MAY_CHANGE` may differ; the new are kept.

    Raises:
        UserError: the folder holds another experiment or other files, or cannot be written.
    """
    file = run / CONFIG
    new = record(config)
    if file.exists():
        try:
            old = json.loads(file.read_text())
            different = sorted(set(_differences(_filled(record(ExperimentConfig()), old), new)) - MAY_CHANGE)
        except (ValueError, AttributeError) as error:
            raise UserError(f"{file} cannot be read ({error}); bring a copy back, or choose another --out") from error
        if different:
            raise UserError(
                f"{run} holds a run with other settings ({', '.join(different)}); choose another --out or set them back"
            )
        if old != new:
            write_whole(file, json.dumps(new, indent=2))
        return
    if run.exists() and any(run.iterdir()):
        raise UserError(f"{run} is not empty and holds no run; choose another --out")
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(new, indent=2))


def _filled(defaults: dict, old: dict) -> dict:
    """An old record with the fields that it lacks."""
    both = {
        name: _filled(default, old[name])
        for name, default in defaults.items()
        if isinstance(default, dict) and name in old
    }
    return {**defaults, **old, **both}


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    found = []
    for name in {*old, *new}:
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(prefix + name)
    return found
