"""The cases that a run trains on: the dataset, prepared first where it is not, and the training side of its split."""

from __future__ import annotations

import logging
from pathlib import Path

from sam2_3dmed_jax.config import ExperimentConfig, PrepareConfig
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.data.prepare.prepare import prepare
from sam2_3dmed_jax.data.prepare.source import Progress
from sam2_3dmed_jax.data.prepared import CaseEntry, PreparedDataset, is_prepared, read_prepared
from sam2_3dmed_jax.data.split_choice import choose_split
from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.data.view import ModelView, classes_of
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime import distributed
from sam2_3dmed_jax.training.methods import method_of

log = logging.getLogger(__name__)


def check_data(config: ExperimentConfig) -> None:
    """Find mistakes in `data` before the run's folder is made.

    Raises:
        UserError: a dataset that cannot be read, classes that it lacks, no such split, or a window that is none.
    """
    path = config.data.path
    if is_prepared(path):
        split_cases(open_view(read_prepared(path), config), config)
        return
    raw = read_dataset(path)
    classes_of(config.data, raw.labels, path)
    choose_split([case.id for case in raw.cases], config.data)


def prepared_dataset(config: ExperimentConfig, run: Path, progress: Progress | None = None) -> PreparedDataset:
    """The dataset at `data.path` if it is prepared; any other is prepared first, into `run/data`.

    Raises:
        UserError: no case can be prepared.
    """
    path = config.data.path
    if is_prepared(path):
        return read_prepared(path)
    settings = PrepareConfig(method_of(config.model).spacing)
    distributed.first(lambda: _prepare(path, settings, run, progress))
    return read_prepared(str(run / "data"))


def _prepare(path: str, settings: PrepareConfig, run: Path, progress: Progress | None) -> None:
    # In this process: a script that calls `train` may have no main module that others can import.
    report = prepare(read_dataset(path), run / "data", settings, workers=1, progress=progress)
    for case_id, reason in report.refused.items():
        log.warning("%s is left out: %s", case_id, reason)
    if not report.dataset.cases:
        raise UserError(f"data.path: no case of {path} can be prepared; see {run / 'data' / 'refused.csv'}")


def open_view(dataset: PreparedDataset, config: ExperimentConfig) -> ModelView:
    """The dataset as the experiment's model sees it.

    Raises:
        UserError: `data.classes` or the window do not fit, or it was prepared at another spacing than the model's.
    """
    method = method_of(config.model)
    for case in dataset.cases:
        for wanted, mm in zip(method.spacing, case.spacing, strict=True):
            if wanted is not None and abs(mm - wanted) > 1e-3 * wanted:
                given = ",".join(f"{each:g}" for each in method.spacing if each)
                raise UserError(
                    f"data.path: {case.id} has voxels of {' x '.join(f'{each:g}' for each in case.spacing)} mm, the "
                    f"model of {given}; prepare the dataset with --spacing {given}, or set the model's spacing"
                )
    return ModelView(dataset, config.data, method.image_size)


def split_cases(view: ModelView, config: ExperimentConfig) -> tuple[list[CaseEntry], list[CaseEntry], Split]:
    """The training and the inner validation cases of the split that hold a class to segment, and the split.

    The split is of all cases of the source, refused ones too, so that it is that of other tools and of `evaluate`.

    Raises:
        UserError: there are none to train on, or no such split.
    """
    split = choose_split(view.dataset.ids, config.data)
    there = {case.id: case for case in view.dataset.cases if view.areas(case)}
    cases, inner = ([there[name] for name in part if name in there] for part in (split.train, split.val))
    if not cases:
        raise UserError(f"{config.data.path}: no training case holds a class to segment; check data.classes")
    return cases, inner, split
