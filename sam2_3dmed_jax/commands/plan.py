"""What a plan is asked for: an experiment, its fields as flags, and three of them by shorter names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sam2_3dmed_jax.commands.experiment_files import read_experiment
from sam2_3dmed_jax.config import ExperimentConfig


def read_request(
    experiment: str, flags: Sequence[str], model: str | None, image_size: str | None, slices: str | None
) -> ExperimentConfig:
    """Read an experiment file and apply flags.

    A model that is named by `--model` is planned as it is mostly trained: an official one from its checkpoint, so that
    by default its encoders are frozen. `--model.preset` alone leaves `model.init` as the experiment has it.

    Raises:
        UserError: no such experiment, or a flag that does not fit it.
    """
    names = {"--model.preset": model, "--model.image_size": image_size, "--data.slices": slices}
    short = [word for name, value in names.items() if value is not None for word in (name, value)]
    config = read_experiment(experiment, [*flags, *short])
    if model and model.startswith("sam2") and not config.model.init:
        config = config.replace(model=replace(config.model, init=f"{model}.pt"))
    return config
