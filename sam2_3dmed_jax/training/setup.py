"""All of a run that needs no data: mesh, weights, optimizer state and the train step, which can be compiled ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
from jax.sharding import NamedSharding

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.data.clips import clip_shapes
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.checkpoint import load_weights, read_info
from sam2_3dmed_jax.model.sam2_3dmed import abstract_model, random_weights
from sam2_3dmed_jax.sam2.parameters import Weights
from sam2_3dmed_jax.sam2.presets import preset_config
from sam2_3dmed_jax.training.parts import frozen_patterns, partition
from sam2_3dmed_jax.training.sharding import batch_sharding, make_mesh, place, weight_shardings
from sam2_3dmed_jax.training.step import Step, TrainState, init_state, make_step


@dataclass(frozen=True, eq=False)
class Setup:
    """A run before its first step."""

    config: ExperimentConfig  # complete
    sharding: NamedSharding  # of batches
    state: TrainState
    frozen: Weights
    step: Step


def set_up(config: ExperimentConfig, devices: Sequence[jax.Device] | None = None) -> Setup:
    """Make the mesh (over all devices, or those given), the weights and the step of an experiment.

    Raises:
        UserError: settings that do not fit this machine or each other, or a checkpoint that does not fit them.
    """
    # The slice context sees at prediction as many slices at once as it was trained on.
    srpp = replace(config.model.slice_position, window=config.data.slices)
    config = config.replace(model=replace(config.model, slice_position=srpp))
    mesh = make_mesh(config.mesh, devices)
    sharding = batch_sharding(mesh, config.training.batch_size, config.training.accumulation)
    graphdef, _ = abstract_model(config.model)
    weights = initial(config)
    trained, frozen = partition(weights, frozen_patterns(config.training.frozen, bool(config.model.init)))
    state = init_state(config, trained, mesh)
    placed = {path: place(frozen[path], where) for path, where in weight_shardings(mesh, frozen).items()}
    return Setup(config, sharding, state, placed, make_step(config, graphdef, state.weights, mesh))


def compile_ahead(config: ExperimentConfig) -> Setup:
    """Set a run up and compile its train step, while data are still being made.

    Returns:
        For `train`, once: its state is donated to the first step.

    Raises:
        UserError: as `set_up`.
    """
    setup = set_up(config)
    assert isinstance(setup.step, jax.stages.Wrapped)
    size = preset_config(config.model.preset, config.model.image_size).image_size
    batch = {
        name: jax.ShapeDtypeStruct((config.training.batch_size, *shape), dtype, sharding=setup.sharding)
        for name, (shape, dtype) in clip_shapes(config.data, size).items()
    }
    return replace(setup, step=setup.step.lower(setup.state, setup.frozen, batch).compile())


def initial(config: ExperimentConfig) -> Weights:
    """The weights to start from: those of `model.init`, completed at random where it lacks SRPP or BD.

    Raises:
        UserError: `model.init` is of another preset, or was made with another preprocessing.
    """
    weights = random_weights(config.model, config.training.seed)
    if not config.model.init:
        return weights
    source = read_info(config.model.init)
    if source.model.preset != config.model.preset:
        raise UserError(
            f"model.init: {config.model.init} is of preset {source.model.preset}, the experiment of "
            f"{config.model.preset}; set model.preset to {source.model.preset}"
        )
    for path, value in load_weights(config.model.init, source.model).items():
        if path in weights and weights[path].shape == value.shape:
            weights[path] = value
    return weights
