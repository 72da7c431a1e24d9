"""Models of a scan: a name or folder, which is loaded when a mask is first needed, a loaded model, or a predictor."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.config import MemorySelection
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.hub.resolve import checkpoint_folder
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.inference.propagation import PropagationOrder, check_order
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, load_model, read_info
from sam2_3dmed_jax.runtime import compilation_cache
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice
from sam2_3dmed_jax.sam2.memory_selection import memory_rule

DEFAULT_MODEL = "sam2.1_hiera_tiny"


@dataclass(frozen=True)
class ModelSource:
    """A model that may not be loaded yet.

    Attributes:
        name: in messages.
        info: its description, which is read without its weights.
        folder: of its checkpoint; None for a model that was passed.
        load: returns its predictor.
    """

    name: str
    info: CheckpointInfo
    folder: Path | None
    load: Callable[[], VolumePredictor]


def model_source(
    model: Any,
    order: PropagationOrder,
    compute_dtype: ComputeDtypeChoice = "auto",
    memory_selection: MemorySelection | None = None,
) -> ModelSource:
    """Return what is known of a model before its weights are loaded.

    Args:
        model: the name of published weights, the folder of a checkpoint, a model, or a predictor or source, which
            have their own order and memory selection.
        order: order of the two directions of propagation.
        compute_dtype: as in `load_model`; a model that is loaded already has its own.
        memory_selection: which memories a slice sees; None: as the model was trained.

    Raises:
        UserError: the checkpoint does not exist, is damaged, or takes no prompts; or the order or the memory selection
            does not exist.
    """
    compilation_cache.enable_by_default()
    check_order(order)
    if memory_selection is not None:
        memory_rule(memory_selection)
    if isinstance(model, ModelSource):
        return model
    if isinstance(model, VolumePredictor):
        return ModelSource("the model", model.model.info, None, lambda: model)
    if not isinstance(model, str | os.PathLike):
        predictor = VolumePredictor(model, order, memory_selection=memory_selection)
        return ModelSource("the model", predictor.model.info, None, lambda: predictor)
    folder = checkpoint_folder(model)
    info = read_info(folder)
    try:
        _ = info.sam2
    except UserError as error:
        raise UserError(f"{model}: {error}") from None
    load = functools.partial(load_model, folder, compute_dtype=compute_dtype, memory_selection=memory_selection)
    return ModelSource(str(model), info, folder, lambda: VolumePredictor(load(), order))
