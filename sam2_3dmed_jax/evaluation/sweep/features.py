"""Models of a sweep on one device, and features of a case, encoded once for all checkpoints with one encoder."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

from sam2_3dmed_jax.config import BdConfig, MemorySelection, ModelConfig, SrppConfig
from sam2_3dmed_jax.evaluation.sweep.entries import Entry
from sam2_3dmed_jax.evaluation.sweep.factors import STORED, Setting
from sam2_3dmed_jax.inference.feature_store import FeatureStore
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.inference.propagation import PropagationOrder
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble, load_weights, with_compute_dtype
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtype
from sam2_3dmed_jax.sam2.parameters import Weights, digest
from sam2_3dmed_jax.training.parameter_groups import ENCODER, partition
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import PreparedSlices

KEPT = 2  # checkpoints on a device at the same time
_HEADS = ("slice_position.", "boundary.")  # the modules that SAM2-3dMed adds to SAM 2


class Loaded:
    """A checkpoint on the default device: predictors of different settings, which share its weights."""

    def __init__(self, entry: Entry, compute_dtype: ComputeDtype):
        self._info = with_compute_dtype(entry.info, compute_dtype)
        self._weights: Weights = load_weights(entry.checkpoint, entry.info.model)
        self._predictors: dict[Any, VolumePredictor] = {}
        self.encoder = (
            _structure(self._info.sam2, srpp=False, bd=False, memory_selection="recent"),
            entry.info.preprocessing,
            digest(partition(self._weights, ENCODER)[1]),
        )

    def predictor(self, setting: Setting, bd: bool) -> VolumePredictor:
        """Return the predictor with the order and memory selection of a setting, with or without BD."""
        stored: Any = self._info.sam2.memory_selection
        chosen: Any = stored if setting.memory_selection == STORED else setting.memory_selection
        return self._predictor(setting.order, self._info.sam2.srpp, bd, chosen)

    def encode(self, volume: Volume) -> FeatureStore:
        """Encode a volume with SAM 2's encoder, without the context of SRPP, which differs between checkpoints."""
        sam2 = self._predictor("sequential", False, False, "recent")
        size = sam2.model.config.image_size
        return sam2.encode(PreparedSlices(volume, self._info.preprocessing, size))

    def with_context(self, features: FeatureStore) -> FeatureStore:
        """Return the features of a volume with this checkpoint's context."""
        predictor = self.predictor(Setting(), self._info.sam2.bd)
        return features.with_context_of(predictor.graphdef, predictor.weights, predictor.model)

    def _predictor(
        self, order: PropagationOrder, srpp: bool, bd: bool, memory_selection: MemorySelection
    ) -> VolumePredictor:
        key = order, srpp, bd, memory_selection
        if key not in self._predictors:
            left_out = tuple(head for head, kept in zip(_HEADS, (srpp, bd), strict=True) if not kept)
            weights = {path: w for path, w in self._weights.items() if not path.startswith(left_out or ("\0",))}
            structure = _structure(self._info.sam2, srpp, bd, memory_selection)
            model = assemble(weights, CheckpointInfo(structure, self._info.preprocessing))
            self._predictors[key] = VolumePredictor(model, order)
        return self._predictors[key]


class Models:
    """The checkpoints on a device: the last `KEPT` that were used."""

    def __init__(self, compute_dtype: ComputeDtype) -> None:
        self._compute_dtype = compute_dtype
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()

    def get(self, entry: Entry) -> Loaded:
        """Return a checkpoint, and load it if it is not on the device."""
        if entry.checkpoint not in self._loaded:
            while len(self._loaded) >= KEPT:
                self._loaded.popitem(last=False)
            self._loaded[entry.checkpoint] = Loaded(entry, self._compute_dtype)
        self._loaded.move_to_end(entry.checkpoint)
        return self._loaded[entry.checkpoint]


class CaseFeatures:
    """The features of one case, by encoder."""

    def __init__(self, volume: Volume):
        self._volume = volume
        self._features: dict[Any, FeatureStore] = {}

    def of(self, loaded: Loaded) -> FeatureStore:
        """Return the features with the context of a checkpoint."""
        if loaded.encoder not in self._features:
            self._features[loaded.encoder] = loaded.encode(self._volume)
        return loaded.with_context(self._features[loaded.encoder])


def _structure(model: ModelConfig, srpp: bool, bd: bool, memory_selection: MemorySelection) -> ModelConfig:
    """Return the part of a configuration that determines compiled programs.

    It is equal for checkpoints that differ only in their initial weights or in modules that are left out.
    """
    return replace(
        model,
        init="",
        srpp=srpp,
        bd=bd,
        memory_selection=memory_selection,
        slice_position=model.slice_position if srpp else SrppConfig(),
        boundary=model.boundary if bd else BdConfig(),
    )
