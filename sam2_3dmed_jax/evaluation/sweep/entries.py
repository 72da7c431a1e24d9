"""Checkpoints of a sweep: paths with folds and seeds filled in, each with the cases that it may be scored on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.config import SweepSpec, UNetConfig
from sam2_3dmed_jax.data.datasets import Dataset
from sam2_3dmed_jax.data.held_out import DatasetCases, held_out_cases
from sam2_3dmed_jax.data.split_files import small_file_sha256
from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.hub.resolve import checkpoint_folder
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, read_info


@dataclass(frozen=True, eq=False)
class Entry:
    """One checkpoint on one fold."""

    model: str  # name in the spec, with {fold} and {seed} not filled in: results of one model are averaged
    checkpoint: str  # its folder
    fold: int | str
    seed: int | str
    trained: str  # on these cases: 'no', or 'unknown' if that cannot be decided
    cases: tuple[str, ...]  # ids of the held-out cases
    notes: tuple[str, ...]  # about the choice of these cases
    info: CheckpointInfo
    digest: str  # SHA-256 of its config.json, which changes whenever the checkpoint is written

    @property
    def has_boundary(self) -> bool:
        """Whether the model has boundary detection, which can be switched off."""
        return self.info.sam2.bd


def read_entries(spec: SweepSpec, dataset: Dataset) -> list[Entry]:
    """Read the checkpoints of a sweep, in the order of the spec, folds and seeds.

    Raises:
        UserError: a folder is not a checkpoint of SAM 2, a field in a path cannot be filled in, a fold does not exist,
            or a checkpoint was trained on cases that it would be scored on.
    """
    cases = DatasetCases(dataset)
    entries = []
    for model in spec.checkpoints:
        fields = set(re.findall(r"\{(.*?)\}", model))
        for name, values in (("fold", spec.folds), ("seed", spec.seeds)):
            if name in fields and not values:
                raise UserError(f"{name}s: checkpoints has {{{name}}} in {model}, but {name}s is empty; give some")
        if other := sorted(fields - {"fold", "seed"}):
            raise UserError(f"checkpoints: {model} has {{{other[0]}}}; only {{fold}} and {{seed}} are filled in")
        folds: Sequence[int | None] = spec.folds or [None]
        seeds: Sequence[int | None] = spec.seeds if "seed" in fields else [None]
        for fold in folds:
            for seed in seeds:
                path = model.replace("{fold}", str(fold)).replace("{seed}", str(seed))
                entries.append(_entry(model, path, fold, seed, cases))
    return entries


def _entry(model: str, path: str, fold: int | None, seed: int | None, cases: DatasetCases) -> Entry:
    with naming("checkpoints"):
        path = str(checkpoint_folder(path))
        info = read_info(path)
        if isinstance(info.model, UNetConfig):
            raise UserError(f"{path} is a U-Net, which takes no prompts; leave it out")
    requested: dict[str, Any] = {} if fold is None else {"fold": fold}
    held_out = held_out_cases(cases, path, requested)
    fields = {"split": "kfold", "fold": 0, **held_out.run, **requested}
    return Entry(
        model=model,
        checkpoint=path,
        fold=fields["fold"] if fields["split"] == "kfold" else "",
        seed=held_out.run.get("seed", "") if seed is None else seed,
        trained=held_out.trained,
        cases=held_out.split.test,
        info=info,
        notes=held_out.notes,
        digest=small_file_sha256(Path(path) / "config.json"),
    )
