"""`sam2-3dmed plan`: memory and time of an experiment on accelerators that this machine need not have."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sam2_3dmed_jax.commands.command_line import Parser, terminated_as_interrupted
from sam2_3dmed_jax.errors import UserError

if TYPE_CHECKING:
    from sam2_3dmed_jax.config import ExperimentConfig

HELP = "memory and time of the train step on TPUs or GPUs that this machine need not have. Every field is a flag"


@dataclass(frozen=True)
class Options:
    """The arguments of `plan`. The sizes stay text, because they are passed on as flags of the experiment."""

    experiment: str
    topology: str
    model: str | None
    image_size: str | None
    slices: str | None
    what: str
    scaling: bool
    json: bool
    field_flags: tuple[str, ...]


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument(
        "experiment", metavar="EXPERIMENT.py|NAME", help="experiment, as for `train`; its data and weights are not read"
    )
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE", help="v5e:4x4, v5p:2x2x4, h100:8, a100:8, ..."
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="model.preset; an official one starts from its checkpoint (model.init), which need not exist here",
    )
    parser.add_argument("--image-size", metavar="N", help="model.image_size, in pixels")
    parser.add_argument("--slices", metavar="D", help="data.slices, the slices per clip")
    parser.add_argument(
        "--what", choices=("train", "predict"), default="train", help="the train step, or propagation on one chip"
    )
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="a table of the train step on 1 chip up to TOPOLOGY: one clip per chip, then the experiment's batch",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_fields(_fields)


def _fields(every: bool) -> str:
    from sam2_3dmed_jax.commands import field_help

    return field_help.experiment_help(field_help.PLAN, every)


def run(options: Options) -> None:
    """Compile for the topology and print the plan."""
    from sam2_3dmed_jax.plan.process import plan_experiment
    from sam2_3dmed_jax.runtime.progress import console_stages

    config = experiment_to_plan(options)
    if options.scaling:
        _print_scaling(config, options)
        return
    with terminated_as_interrupted(), console_stages("plan") as stage:
        report = plan_experiment(config, options.topology, options.what, stage)
    print(json.dumps(report.record(), indent=2) if options.json else "\n".join(report.lines()))


def _print_scaling(config: ExperimentConfig, options: Options) -> None:
    """Compile for each number of chips and print the table.

    Raises:
        UserError: --what is given too, or a field does not fit.
    """
    from sam2_3dmed_jax.plan.scaling import plan_scaling, table
    from sam2_3dmed_jax.runtime.progress import console_stages

    if options.what != "train":
        raise UserError("--scaling is for the train step, and prediction takes one chip; leave out --what")
    with terminated_as_interrupted(), console_stages("plan") as stage:
        rows = list(plan_scaling(config, options.topology, stage))
    print(json.dumps([row.record() for row in rows], indent=2) if options.json else "\n".join(table(rows)))


def experiment_to_plan(options: Options) -> ExperimentConfig:
    """Read the experiment file and apply the flags.

    An official model that `--model` names is planned as it is usually trained: starting from its checkpoint, so that
    its encoders are frozen by default. `--model.preset` alone leaves `model.init` as the experiment sets it.

    Raises:
        UserError: the experiment does not exist, or a flag does not fit it.
    """
    from sam2_3dmed_jax.commands.experiment_files import read_experiment

    fields = {
        "--model.preset": options.model,
        "--model.image_size": options.image_size,
        "--data.slices": options.slices,
    }
    flags = [word for name, value in fields.items() if value is not None for word in (name, value)]
    config = read_experiment(options.experiment, [*options.field_flags, *flags])
    if options.model and options.model.startswith("sam2") and not config.model.init:
        config = config.replace(model=replace(config.model, init=options.model))
    return config
