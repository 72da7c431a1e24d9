"""Help of the fields of experiments and sweeps, which are flags: the common ones by topic, or all of them by group.

The names, units and defaults are read from `config.py` by tyro.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sam2_3dmed_jax.commands.experiment_files import tyro_help
from sam2_3dmed_jax.config import ExperimentConfig, SweepSpec, UNetConfig

Topics = Mapping[str, tuple[str, ...]]  # fields by topic

TRAIN: Topics = {
    "Model": ("model.preset", "model.init", "model.image_size", "model.srpp", "model.bd"),
    "Data": ("data.path", "data.classes", "data.slices", "data.fold", "data.preprocessing.window"),
    "Training": (
        "training.steps",
        "training.batch_size",
        "training.learning_rate",
        "training.checkpoint_every",
        "training.seed",
    ),
}
PLAN: Topics = {
    "Model": ("model.preset", "model.init", "model.image_size", "model.srpp", "model.bd", "model.compute_dtype"),
    "Clips": ("data.slices", "data.clips.objects"),
    "Training": (
        "training.batch_size",
        "training.accumulation",
        "training.remat_trunk",
        "training.remat_slices",
        "training.frozen",
    ),
    "Devices": ("mesh.data", "mesh.fsdp"),
}
SWEEP: Topics = {
    "What is scored": ("checkpoints", "data", "folds", "seeds", "classes", "targets"),
    "Prompts": ("prompt", "placement", "noise_mm", "misplacement_mm", "prompted_slices"),
    "Propagation": ("order", "threshold"),
    "Combination of the factors": ("design", "crossed"),
}


def experiment_help(topics: Topics, every: bool) -> str:
    """Return the help of an experiment's fields.

    Args:
        topics: the common fields.
        every: show every field instead, with the fields of a U-Net.
    """
    fields = tyro_help(ExperimentConfig())
    if every:
        fields += f"\nAn experiment with a U-Net has these model fields instead:\n{tyro_help(_UNetFields())}"
    return _help("an experiment", fields, topics, every)


def sweep_help(every: bool) -> str:
    """Return the help of a sweep's fields, the common ones or all."""
    return _help("a sweep", tyro_help(SweepSpec()), SWEEP, every)


@dataclass(frozen=True)
class _UNetFields:
    """The fields of a U-Net, named as in an experiment."""

    model: UNetConfig = field(default_factory=UNetConfig)


def _help(record: str, fields: str, topics: Topics, every: bool) -> str:
    fields = re.sub(" +$", "", fields, flags=re.MULTILINE)
    if every:
        return f"Every field of {record} is a flag; defaults, unless the file sets another value:\n{fields}"
    # An entry is a line with the flag, and the indented lines below it.
    entries = {entry[1]: entry[0] for entry in re.finditer(r"^  --(\S+) .*\n(?: {8,}\S.*\n)*", fields, re.MULTILINE)}
    shown = [f"\n{topic}:\n{''.join(entries[name] for name in names)}" for topic, names in topics.items()]
    number = sum(map(len, topics.values()))
    return (
        f"Every field of {record} is a flag. These are the common {number} of {len(entries)}; --help-all shows all.\n"
        f"Defaults hold unless the file sets another value.\n{''.join(shown)}"
    )
