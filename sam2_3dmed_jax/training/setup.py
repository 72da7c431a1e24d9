"""Setup of a run before its data: mesh, weights, optimizer state and train step."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from sam2_3dmed_jax.config import AnyModelConfig, ExperimentConfig, ModelConfig
from sam2_3dmed_jax.data.case_reader import TYPICAL_SLICES, StoredSlices
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.hub.resolve import checkpoint_folder
from sam2_3dmed_jax.model.adapters import adapted_kernels, adapter_shapes, initial_adapters, is_adapter
from sam2_3dmed_jax.model.build import abstract_model, random_weights
from sam2_3dmed_jax.model.checkpoint import load_weights, read_info
from sam2_3dmed_jax.sam2.parameters import Weights, digest
from sam2_3dmed_jax.sam2.presets import preset_config
from sam2_3dmed_jax.training.features.choice import separate_encoder, trains_from_features
from sam2_3dmed_jax.training.features.encoder import FrozenEncoder
from sam2_3dmed_jax.training.methods import method_of
from sam2_3dmed_jax.training.parameter_groups import frozen_patterns, partition, stage_paths
from sam2_3dmed_jax.training.sharding import batch_sharding, make_mesh, place, weight_shardings
from sam2_3dmed_jax.training.step import Step, TrainState, abstract_state, final_weights, init_state, make_step


class Base(NamedTuple):
    """The loaded weights that the adapters of a run belong to."""

    sha256: str  # `sam2.parameters.digest` of all of them
    paths: frozenset[str]  # parameters of the run's model that start from them


@dataclass(frozen=True, eq=False)
class Setup:
    """A run before its first step. `train` uses it once, because the step donates its state."""

    config: ExperimentConfig  # complete
    sharding: NamedSharding  # of batches
    state: TrainState
    frozen: Weights  # on the devices
    step: Step
    encoder: FrozenEncoder | None = None  # on the host, if the run trains from cached features
    base: Base | None = None  # of a run with adapters

    @property
    def devices(self) -> list[jax.Device]:
        """The devices of the mesh, of all processes."""
        return list(self.sharding.mesh.devices.flat)

    def weights(self, state: TrainState) -> Weights:
        """Return all weights and adapters of the model at a state, averaged ones with `training.ema`."""
        return {**(self.encoder.weights if self.encoder else {}), **self.frozen, **final_weights(state)}


def set_up(config: ExperimentConfig, devices: Sequence[jax.Device] | None = None) -> Setup:
    """Return the setup of an experiment, over all devices by default.

    Raises:
        UserError: settings that do not fit this machine or each other, or a checkpoint that does not fit them.
    """
    config = complete_config(config)
    mesh = make_mesh(config.mesh, devices)
    sharding = batch_sharding(mesh, config.training.batch_size, config.training.accumulation)
    weights, base = starting_weights(config)
    parts = split_weights(config, weights)
    encoder = None
    if parts.encoder and isinstance(config.model, ModelConfig):  # a U-Net has no frozen encoder
        encoder = FrozenEncoder(config.model, parts.encoder)
    state = init_state(config, parts.trained, mesh)
    frozen = {path: place(parts.frozen[path], where) for path, where in weight_shardings(mesh, parts.frozen).items()}
    step = make_step(config, parts.graphdef, state.weights, mesh)
    return Setup(config, sharding, state, frozen, step, encoder, base)


class AbstractRun(NamedTuple):
    """A run's step, with the shapes, dtypes and shardings of its arguments."""

    step: jax.stages.Wrapped
    state: TrainState
    frozen: Weights
    batch: dict[str, jax.ShapeDtypeStruct]


def abstract_run(config: ExperimentConfig, mesh: Mesh, stored: StoredSlices = TYPICAL_SLICES) -> AbstractRun:
    """Return the step of `set_up` with abstract arguments, over a mesh whose devices need not exist.

    Nothing is computed or read: `model.init` only decides which parameters are frozen, and need not exist.

    Args:
        config: the experiment.
        mesh: of the devices.
        stored: form of the stored slices of the dataset (`CaseReader.stored_slices`).

    Raises:
        UserError: settings that do not fit the mesh or each other.
    """
    config = complete_config(config)
    sharding = batch_sharding(mesh, config.training.batch_size, config.training.accumulation)
    batch = abstract_batch(config, sharding, stored)
    shapes: Any = abstract_model(config.model)[1]  # in the place of arrays
    parts = split_weights(config, shapes | _adapters(config, shapes))
    frozen: Any = {
        path: jax.ShapeDtypeStruct(parts.frozen[path].shape, parts.frozen[path].dtype, sharding=where)
        for path, where in weight_shardings(mesh, parts.frozen).items()
    }
    step = make_step(config, parts.graphdef, parts.trained, mesh)
    return AbstractRun(step, abstract_state(config, parts.trained, mesh), frozen, batch)


def complete_config(config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with the fields set that follow from others.

    Raises:
        UserError: fields that do not fit the kind of model.
    """
    return method_of(config.model).complete(config)


class ModelParts(NamedTuple):
    """The structure that the step runs, and the model's weights by their part in training."""

    graphdef: nnx.GraphDef
    trained: Weights  # with the adapters
    frozen: Weights
    encoder: Weights  # of a run that trains from cached features; otherwise empty


def split_weights(config: ExperimentConfig, weights: Weights) -> ModelParts:
    """Split the weights and adapters of an experiment's model.

    Raises:
        UserError: settings without a matching parameter, or cached features of an encoder that trains.
    """
    from_features = trains_from_features(config)
    graphdef, _ = abstract_model(config.model, encoder=not from_features)
    training = config.training
    adapters, unfrozen = {path for path in weights if is_adapter(path)}, _unfrozen(config, weights)
    patterns = frozen_patterns(
        training.frozen, bool(config.model.init), method_of(config.model).frozen, bool(training.lora.rank)
    )
    if unfrozen and not any(re.search(pattern, path) for path in unfrozen for pattern in patterns):
        raise UserError("training.unfreeze_stages: these stages are not frozen and train anyway; leave it out")
    exact = tuple(f"^{re.escape(path)}$" for path in adapted_kernels(weights))
    trained, frozen = partition(weights, (*patterns, *exact), adapters | unfrozen)
    if not config.data.features:
        return ModelParts(graphdef, trained, frozen, {})
    others, encoder = separate_encoder(trained, frozen, unfrozen)
    return (
        ModelParts(graphdef, trained, others, encoder) if from_features else ModelParts(graphdef, trained, frozen, {})
    )


def abstract_batch(
    config: ExperimentConfig, sharding: NamedSharding, stored: StoredSlices, slices: int | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes, dtypes and sharding of a batch; `slices` is D, `data.slices` by default."""
    data = replace(config.data, slices=slices or config.data.slices)
    return {
        name: jax.ShapeDtypeStruct((config.training.batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in method_of(config.model).item_shapes(config.replace(data=data), stored).items()
    }


def starting_weights(config: ExperimentConfig) -> tuple[Weights, Base | None]:
    """Return random weights, replaced by those of `model.init` where it has them: it may lack SRPP or BD.

    Returns:
        The weights with the initial adapters of `training.lora`, and what these belong to; None without adapters.

    Raises:
        UserError: `model.init` is of another kind or preset, or cannot be read; or settings of adapters that do not
            fit the model.
    """
    weights = random_weights(config.model, config.training.seed)
    adapters = initial_adapters(_adapters(config, weights), config.training.seed)
    if not config.model.init:
        return weights, None
    folder = checkpoint_folder(config.model.init)
    source = read_info(folder).model
    _check_same_architecture(config.model, source)
    loaded = load_weights(folder, source)
    fitting = {path: x for path, x in loaded.items() if path in weights and weights[path].shape == x.shape}
    base = Base(digest(loaded), frozenset(fitting)) if adapters else None
    return {**weights, **fitting, **adapters}, base


def _adapters(config: ExperimentConfig, weights: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the adapters of an experiment, from its model's weights or their shapes."""
    lora = config.training.lora
    if lora.rank and not config.model.init:
        raise UserError("training.lora.rank: adapters change loaded weights; give model.init, or leave it out")
    return adapter_shapes(weights, lora, _unfrozen(config, weights))


def _unfrozen(config: ExperimentConfig, paths: Collection[str]) -> set[str]:
    """Return the parameters that `training.unfreeze_stages` trains."""
    if not isinstance(config.model, ModelConfig):
        return set()
    unfrozen = stage_paths(paths, preset_config(config.model.preset).trunk, config.training.unfreeze_stages)
    return {path for path in unfrozen if not is_adapter(path)}


def _check_same_architecture(model: AnyModelConfig, source: AnyModelConfig) -> None:
    if source.kind != model.kind:
        raise UserError(
            f"model.init: {model.init} is of kind {source.kind}, the experiment of {model.kind}; give a checkpoint of "
            "the same kind"
        )
    if isinstance(source, ModelConfig) and isinstance(model, ModelConfig) and source.preset != model.preset:
        raise UserError(
            f"model.init: {model.init} is of preset {source.preset}, the experiment of {model.preset}; set "
            f"model.preset to {source.preset}"
        )
