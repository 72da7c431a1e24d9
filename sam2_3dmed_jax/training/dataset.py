"""Cases of a run: the dataset, prepared first if necessary, and the training and inner cases of its split."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from sam2_3dmed_jax.config import ExperimentConfig, PrepareConfig
from sam2_3dmed_jax.data.case_reader import CaseReader, targets_to_segment
from sam2_3dmed_jax.data.datasets import dataset_files, read_dataset
from sam2_3dmed_jax.data.prepare.folder import SHARDS
from sam2_3dmed_jax.data.prepare.prepare import prepare_dataset
from sam2_3dmed_jax.data.prepared import INDEX, PreparedCase, PreparedDataset, is_prepared, read_prepared
from sam2_3dmed_jax.data.proposed_settings import differing_settings
from sam2_3dmed_jax.data.split_choice import SPLIT_FILE, choose_split
from sam2_3dmed_jax.data.split_files import read_splits
from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime import distributed
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.training.data_changes import PREPARED, prepare_settings, record_data
from sam2_3dmed_jax.training.methods import method_of

log = logging.getLogger(__name__)


class TrainingCases(NamedTuple):
    """The cases of a run, and the split that they come from."""

    train: list[PreparedCase]  # with a class to segment, and those without one that `prepare --keep-empty` kept
    inner: list[PreparedCase]  # for validation in the run, with a class to segment
    split: Split

    @property
    def all(self) -> list[PreparedCase]:
        """Training and inner cases."""
        return [*self.train, *self.inner]


def check_data(config: ExperimentConfig) -> tuple[CaseReader, list[PreparedCase]] | None:
    """Find mistakes in `data` before the run's folder is created.

    Returns:
        The reader and the cases of the run, or None if the dataset is not prepared yet.

    Raises:
        UserError: a dataset that cannot be read, classes that it does not have, or a split or window that does not
            exist.
    """
    path = config.data.path
    if is_prepared(path):
        reader = open_case_reader(read_prepared(path), config)
        return reader, split_cases(reader, config).all
    raw = read_dataset(path)
    targets_to_segment(config.data, raw.labels, path)
    choose_split([case.id for case in raw.cases], config.data)
    return None


def data_files(path: str) -> list[Path | str]:
    """Return the files that `data.path` is read from.

    Raises:
        UserError: it is not a dataset.
    """
    if is_prepared(path):
        return [Path(path, INDEX), *Path(path, SHARDS).glob("*")]
    return [*dataset_files(read_dataset(path), path)]


def open_training_cases(
    config: ExperimentConfig, run: Path, progress: Progress | None = None, accept_changed_data: bool = False
) -> tuple[CaseReader, TrainingCases]:
    """Return the reader and the cases of a run; the dataset is prepared first if necessary, and its contents recorded.

    Raises:
        UserError: as `check_data`; no case can be prepared; or the run had other data or another split.
    """
    dataset = prepared_dataset(config, run, progress)
    reader = open_case_reader(dataset, config)
    split_cases(reader, config)
    if distributed.is_first_process():
        for sentence in differing_settings(config, reader):
            log.warning("note: %s", sentence)
    distributed.run_on_first_process(lambda: record_data(config, run, dataset, accept_changed_data))
    (split,) = read_splits(run / SPLIT_FILE)
    return reader, split_cases(reader, config, split)


def prepared_dataset(config: ExperimentConfig, run: Path, progress: Progress | None = None) -> PreparedDataset:
    """Return the dataset at `data.path` if it is prepared; otherwise prepare it into `run/data`.

    Raises:
        UserError: no case can be prepared.
    """
    path = config.data.path
    if is_prepared(path):
        return read_prepared(path)
    settings = prepare_settings(config)
    distributed.run_on_first_process(lambda: _prepare(path, settings, run, progress))
    return read_prepared(str(run / PREPARED))


def _prepare(path: str, settings: PrepareConfig, run: Path, progress: Progress | None) -> None:
    # In this process, because worker processes import the main module, which a script that calls `train` may lack.
    report = prepare_dataset(read_dataset(path), run / PREPARED, settings, workers=1, progress=progress)
    for warning in report.warnings:
        log.warning("%s", warning)
    for case_id, reason in report.refused.items():
        log.warning("%s is left out: %s", case_id, reason)
    if not report.dataset.cases:
        raise UserError(f"data.path: no case of {path} can be prepared; see {run / PREPARED / 'refused.csv'}")


def open_case_reader(dataset: PreparedDataset, config: ExperimentConfig) -> CaseReader:
    """Return the reader of a dataset for the experiment's model.

    Raises:
        UserError: `data.classes` or the window do not fit, or the dataset was prepared at another spacing than the
            model's.
    """
    method = method_of(config.model)
    for case in dataset.cases:
        for model_mm, case_mm in zip(method.spacing, case.spacing, strict=True):
            if model_mm is not None and abs(case_mm - model_mm) > 1e-3 * model_mm:
                spacing = ",".join(f"{mm:g}" for mm in method.spacing if mm)
                raise UserError(
                    f"data.path: {case.id} has voxels of {' x '.join(f'{mm:g}' for mm in case.spacing)} mm, the "
                    f"model of {spacing}; prepare the dataset with --spacing {spacing}, or set the model's spacing"
                )
    return CaseReader(dataset, config.data, method.image_size)


def split_cases(reader: CaseReader, config: ExperimentConfig, split: Split | None = None) -> TrainingCases:
    """Return the training and inner cases of the split.

    The split is over all cases of the source, refused ones too, so that other tools and `evaluate` have the same one.

    Args:
        reader: of the dataset.
        config: the experiment.
        split: of the run; None: the one that the settings give.

    Raises:
        UserError: no case to train on, or a split that does not exist.
    """
    split = split or choose_split(reader.dataset.ids, config.data)
    labelled = {case.id: case for case in reader.dataset.cases if reader.areas(case)}
    usable = {case.id: case for case in reader.dataset.cases} if reader.keeps_empty else labelled
    if labelled.keys().isdisjoint(split.train):
        raise UserError(f"{config.data.path}: no training case holds a class to segment; check data.classes")
    train = [usable[name] for name in split.train if name in usable]
    inner = [labelled[name] for name in split.val if name in labelled]
    return TrainingCases(train, inner, split)
