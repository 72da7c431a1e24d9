"""The checkpoints of a sweep: paths with folds and seeds filled in, each with the cases that it may be scored on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.data.datasets import Dataset, fingerprint
from sam2_3dmed_jax.data.split_choice import run_of, split_to_score
from sam2_3dmed_jax.data.split_files import sha256
from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, read_info


@dataclass(frozen=True, eq=False)
class Entry:
    """One checkpoint on one fold."""

    model: str  # as the spec names it, {fold} and {seed} unfilled: results of one model are averaged
    checkpoint: str  # its folder
    fold: int | str
    seed: int | str
    trained: str  # on these cases: 'no', or 'unknown' where no run on this dataset lies beside it
    cases: tuple[str, ...]  # ids, of held-out cases
    info: CheckpointInfo
    digest: str  # SHA-256 of its config.json, which another time of writing changes

    @property
    def has_boundary(self) -> bool:
        """Whether BD can be switched off."""
        return self.info.model.bd


def read_entries(spec: SweepSpec, dataset: Dataset) -> list[Entry]:
    """The checkpoints of a sweep, in the order of the spec, folds and seeds.

    Raises:
        UserError: a folder that is no checkpoint, a field in a path that nothing fills, a fold that does not exist, or
            a checkpoint that was trained on cases that it would be scored on.
    """
    known = fingerprint(dataset)
    ids = [case.id for case in dataset.cases]
    entries = []
    for model in spec.checkpoints:
        fields = set(re.findall(r"\{(.*?)\}", model))
        for name, given in (("fold", spec.folds), ("seed", spec.seeds)):
            if name in fields and not given:
                raise UserError(f"{name}s: checkpoints has {{{name}}} in {model}, and there are none; give some")
        if other := sorted(fields - {"fold", "seed"}):
            raise UserError(f"checkpoints: {model} has {{{other[0]}}}; only {{fold}} and {{seed}} are filled in")
        folds: Sequence[int | None] = spec.folds or [None]
        seeds: Sequence[int | None] = spec.seeds if "seed" in fields else [None]
        for fold in folds:
            for seed in seeds:
                path = model.replace("{fold}", str(fold)).replace("{seed}", str(seed))
                entries.append(_entry(model, path, fold, seed, ids, known))
    return entries


def _entry(model: str, path: str, fold: int | None, seed: int | None, ids: list[str], known: str) -> Entry:
    with naming("checkpoints"):
        info = read_info(path)
    given: dict[str, Any] = {} if fold is None else {"fold": fold}
    split = split_to_score(ids, known, path, given)
    run = run_of(path, known)
    how = {"split": "kfold", "fold": 0, **run, **given}
    return Entry(
        model=model,
        checkpoint=path,
        fold=how["fold"] if how["split"] == "kfold" else "",
        seed=run.get("seed", "") if seed is None else seed,
        trained="no" if run else "unknown",
        cases=tuple(split.test),
        info=info,
        digest=sha256(epath.Path(path) / "config.json"),
    )
