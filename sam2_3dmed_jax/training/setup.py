"""All of a run that needs no data: mesh, weights, optimizer state and the train step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.checkpoint import load_weights, read_info
from sam2_3dmed_jax.model.sam2_3dmed import abstract_model, random_weights
from sam2_3dmed_jax.sam2.parameters import Weights
from sam2_3dmed_jax.training.features.choice import trains_from_features, without_encoder
from sam2_3dmed_jax.training.features.encoder import FrozenEncoder
from sam2_3dmed_jax.training.methods import method_of
from sam2_3dmed_jax.training.parameter_groups import frozen_patterns, partition
from sam2_3dmed_jax.training.sharding import batch_sharding, make_mesh, place, weight_shardings
from sam2_3dmed_jax.training.step import Step, TrainState, abstract_state, init_state, make_step, result


@dataclass(frozen=True, eq=False)
class Setup:
    """A run before its first step."""

    config: ExperimentConfig  # complete
    sharding: NamedSharding  # of batches
    state: TrainState
    frozen: Weights  # on the devices
    step: Step
    encoder: FrozenEncoder | None = None  # on the host, of a run that trains from cached features

    @property
    def devices(self) -> list[jax.Device]:
        """Of the mesh, those of all processes."""
        return list(self.sharding.mesh.devices.flat)

    def weights(self, state: TrainState) -> Weights:
        """All weights of the model at a state, averaged ones if there are; the encoder's may lie on the host."""
        return {**(self.encoder.weights if self.encoder else {}), **self.frozen, **result(state)}


def set_up(config: ExperimentConfig, devices: Sequence[jax.Device] | None = None) -> Setup:
    """Make the mesh (over all devices, or those given), the weights and the step of an experiment.

    Raises:
        UserError: settings that do not fit this machine or each other, or a checkpoint that does not fit them.
    """
    config = complete(config)
    mesh = make_mesh(config.mesh, devices)
    sharding = batch_sharding(mesh, config.training.batch_size, config.training.accumulation)
    graphdef, trained, frozen, of_encoder = divided(config, initial(config))
    encoder = FrozenEncoder(config.model, of_encoder) if of_encoder else None
    state = init_state(config, trained, mesh)
    placed = {path: place(frozen[path], where) for path, where in weight_shardings(mesh, frozen).items()}
    return Setup(config, sharding, state, placed, make_step(config, graphdef, state.weights, mesh), encoder)


class AbstractRun(NamedTuple):
    """A run's step and the shapes, dtypes and shardings of its arguments."""

    step: jax.stages.Wrapped
    state: TrainState
    frozen: Weights
    batch: dict[str, jax.ShapeDtypeStruct]


def abstract_run(config: ExperimentConfig, mesh: Mesh) -> AbstractRun:
    """The same step as `set_up`'s with abstract arguments, over a mesh whose devices need not be there.

    Nothing is computed or read: `model.init` only says that the run starts from loaded weights, and need not exist.

    Raises:
        UserError: settings that do not fit the mesh or each other.
    """
    config = complete(config)
    batch = abstract_batch(config, batch_sharding(mesh, config.training.batch_size, config.training.accumulation))
    weights: Any = abstract_model(config.model)[1]  # in the place of arrays
    graphdef, trained, frozen, _ = divided(config, weights)
    placed: Any = {
        path: jax.ShapeDtypeStruct(frozen[path].shape, frozen[path].dtype, sharding=where)
        for path, where in weight_shardings(mesh, frozen).items()
    }
    return AbstractRun(make_step(config, graphdef, trained, mesh), abstract_state(config, trained, mesh), placed, batch)


def complete(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment with the fields set that follow from others.

    Raises:
        UserError: fields that do not fit the kind of model.
    """
    return method_of(config.model).complete(config)


def divided(config: ExperimentConfig, weights: Weights) -> tuple[nnx.GraphDef, Weights, Weights, Weights]:
    """The structure that the step walks, and weights that train, that are frozen, and that made cached features.

    Raises:
        UserError: patterns that fit no parameter, or features of an encoder that trains.
    """
    graphdef, _ = abstract_model(config.model, encoder=not trains_from_features(config))
    trained, frozen = partition(weights, _frozen(config))
    if not config.data.features:
        return graphdef, trained, frozen, {}
    rest, encoder = without_encoder(trained, frozen)
    return (graphdef, trained, rest, encoder) if trains_from_features(config) else (graphdef, trained, frozen, {})


def _frozen(config: ExperimentConfig) -> tuple[str, ...]:
    return frozen_patterns(config.training.frozen, bool(config.model.init), method_of(config.model).frozen)


def abstract_batch(config: ExperimentConfig, sharding: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and sharding of a batch."""
    return {
        name: jax.ShapeDtypeStruct((config.training.batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in method_of(config.model).item_shapes(config).items()
    }


def initial(config: ExperimentConfig) -> Weights:
    """The weights to start from: those of `model.init`, completed at random where it lacks SRPP or BD.

    Raises:
        UserError: `model.init` is of another preset, or was made with another preprocessing.
    """
    weights = random_weights(config.model, config.training.seed)
    if not config.model.init:
        return weights
    source = read_info(config.model.init)
    if source.model.kind != config.model.kind:
        raise UserError(
            f"model.init: {config.model.init} is of kind {source.model.kind}, the experiment of {config.model.kind}; "
            "give a checkpoint of its kind"
        )
    if source.model.preset != config.model.preset:
        raise UserError(
            f"model.init: {config.model.init} is of preset {source.model.preset}, the experiment of "
            f"{config.model.preset}; set model.preset to {source.model.preset}"
        )
    for path, value in load_weights(config.model.init, source.model).items():
        if path in weights and weights[path].shape == value.shape:
            weights[path] = value
    return weights
