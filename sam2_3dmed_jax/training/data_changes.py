"""Changed data of a run: comparison of the dataset with the run's record, before anything of the run is changed.

A run that is not finished stops if its data has changed, unless the user accepts that. A finished run reports it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sam2_3dmed_jax.config import ExperimentConfig, PrepareConfig
from sam2_3dmed_jax.data.archive import unpack_case
from sam2_3dmed_jax.data.case_content import RecordedCase, case_content
from sam2_3dmed_jax.data.case_reader import MODALITY_FIELD
from sam2_3dmed_jax.data.datasets import Dataset, LabelledCase, dataset_fingerprint, read_dataset, scan_modality
from sam2_3dmed_jax.data.prepare.folder import read_case_state
from sam2_3dmed_jax.data.prepare.validate import read_case
from sam2_3dmed_jax.data.prepared import PreparedDataset, is_prepared, read_prepared
from sam2_3dmed_jax.data.run_data import (
    DATA_FILE,
    RunData,
    changes_between,
    continued_split,
    data_of,
    data_of_split,
    read_run_data,
    with_accepted,
    write_run_data,
)
from sam2_3dmed_jax.data.split_choice import SPLIT_FILE, choose_split, split_description
from sam2_3dmed_jax.data.split_files import (
    read_patients,
    read_split_description,
    read_splits,
    replace_run_split,
    write_run_split,
)
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime import distributed
from sam2_3dmed_jax.runtime.hashing import sha256_of_file
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.training.methods import method_of
from sam2_3dmed_jax.training.run_folder import CONFIG, checkpoint_steps, read_record
from sam2_3dmed_jax.volume.modality import parse_modality

PREPARED = "data"  # folder in a run's folder, for a dataset that the run prepares
_SIZES_CHANGED = "the files have other sizes than the ones that version 0.1 recorded"

log = logging.getLogger(__name__)


def prepare_settings(config: ExperimentConfig) -> PrepareConfig:
    """Return the settings with which a run prepares its dataset."""
    modality = parse_modality(config.data.preprocessing.modality, MODALITY_FIELD)
    return PrepareConfig(method_of(config.model).spacing, modality)


def finished_with_changed_data(config: ExperimentConfig, run: Path, accept: bool, progress: Progress | None) -> bool:
    """Compare the data with the record of a run that resumes; the first process compares for all.

    Cases whose files have the recorded sizes and times are not read.

    Args:
        config: the experiment.
        run: the run's folder.
        accept: a run that is not finished may resume with changed data.
        progress: called after each case that is read.

    Returns:
        Whether the run is finished and its data has changed, which is reported as a warning.

    Raises:
        UserError: the data of a run that is not finished has changed, or cannot be read.
    """
    finished = [False]

    def check() -> None:
        finished[0] = _check(config, run, accept, progress)

    distributed.run_on_first_process(check)
    return bool(distributed.broadcast_from_first(float(finished[0])))


def record_data(config: ExperimentConfig, run: Path, dataset: PreparedDataset, accept: bool) -> None:
    """Write split and contents of a run's data, or check them against the record; call it on the first process.

    Args:
        config: the experiment.
        run: the run's folder.
        dataset: its prepared data.
        accept: as `finished_with_changed_data`; the change is then added to `data.json`.

    Raises:
        UserError: the data or the split has changed, or a file cannot be read or written.
    """
    drawn = choose_split(dataset.ids, config.data)
    description, now = split_description(config.data, dataset.fingerprint), data_of(dataset)
    split_file, data_file = run / SPLIT_FILE, run / DATA_FILE
    if not split_file.exists():
        write_run_split(split_file, drawn, description)
        write_run_data(data_file, now)
        return
    (stored,) = read_splits(split_file)
    recorded = read_run_data(data_file)
    before = recorded or data_of_split(stored, now.cases)
    changes = changes_between(before, now)
    what = str(changes) or ("" if recorded else _other_sizes(run, dataset.fingerprint))
    if what and not accept:
        raise UserError(_refusal(run, what))
    if what:
        log.warning("%s resumes with changed data (%s), which %s records", run, what, data_file)
        now = with_accepted(before, now, changes, what, stored, _newest_step(run))
    else:
        now = RunData(now.labels, now.cases, before.accepted)
    if not now.accepted:
        write_run_split(split_file, drawn, description)
    write_run_data(data_file, now)  # before the split, which a run that was killed in between repairs
    if now.accepted:
        patients = read_patients(config.data.split.patients, dataset.ids) if config.data.split.patients else {}
        split = continued_split(stored, drawn, changes.renamed, patients)
        if split != stored:
            replace_run_split(split_file, split, description)


def _check(config: ExperimentConfig, run: Path, accept: bool, progress: Progress | None) -> bool:
    """Do the work of `finished_with_changed_data` on the first process."""
    if not (run / SPLIT_FILE).exists() or not _has_data_path(run, config.data.path):
        return False  # a new run, or one that is refused because of its settings
    finished = (run / "final" / CONFIG).exists()
    recorded = read_run_data(run / DATA_FILE)
    if recorded:
        what = str(changes_between(recorded, _present_data(config, run, recorded, progress)))
    else:
        what = _other_sizes(run, _fingerprint(config.data.path))
        if not what and not finished:
            log.warning(
                "%s was begun by an earlier version, which recorded no contents of cases: cannot tell whether its data "
                "has changed; from now on %s records them",
                run,
                run / DATA_FILE,
            )
    if what and finished:
        log.warning(
            "%s is finished, and its data has changed since: %s; it is left as it is, choose another --out to train on "
            "the present data",
            run,
            what,
        )
    elif what and not accept:
        raise UserError(_refusal(run, what))
    return bool(what) and finished


def _refusal(run: Path, what: str) -> str:
    return (
        f"{run}: its data has changed since the run began: {what}; restore the data, choose another --out, or resume "
        "with --accept-changed-data"
    )


def _has_data_path(run: Path, path: str) -> bool:
    try:
        return bool(read_record(run / CONFIG, "")["data"]["path"] == path)
    except UserError:  # `claim_folder` reports it
        return False


def _other_sizes(run: Path, fingerprint: str) -> str:
    """Return what has changed since version 0.1 recorded ids and sizes of files, or ""."""
    recorded = read_split_description(run / SPLIT_FILE).get("fingerprint")
    return _SIZES_CHANGED if recorded not in (None, fingerprint) else ""


def _fingerprint(path: str) -> str:
    return read_prepared(path).fingerprint if is_prepared(path) else dataset_fingerprint(read_dataset(path))


def _newest_step(run: Path) -> int:
    return max(checkpoint_steps(run / "checkpoints"), default=0)


def _present_data(config: ExperimentConfig, run: Path, recorded: RunData, progress: Progress | None) -> RunData:
    """Return the data of a run as it is now; of image files, only those that have changed are read."""
    path = config.data.path
    if is_prepared(path):
        return data_of(read_prepared(path))
    dataset, folder = read_dataset(path), run / PREPARED
    modality = scan_modality(dataset, prepare_settings(config).modality)
    cases: dict[str, RecordedCase | None] = {}
    read = 0
    for case in dataset.cases:
        state = read_case_state(folder, dataset, case, modality)
        if state.entry:
            cases[case.id] = state.entry.recorded
            continue
        cases[case.id] = _read(dataset, case, modality, folder, recorded.cases.get(case.id))
        read += 1
        if progress:
            progress("comparing changed files with the run", read, len(dataset.cases))
    return RunData(tuple(sorted(dataset.labels)) if dataset.labels else recorded.labels, cases)


def _read(
    dataset: Dataset, case: LabelledCase, modality: str, folder: Path, recorded: RecordedCase | None
) -> RecordedCase | None:
    """Return the files and, unless the files have the recorded bytes, the content of a case; None: it is refused."""
    with unpack_case(dataset, case, folder) as files:
        try:
            now = RecordedCase(None, sha256_of_file(files.image), sha256_of_file(files.label))
            if recorded and recorded.same_files(now) and recorded.content and recorded.content.modality == modality:
                return recorded
            volume, labels = read_case(files, dataset.labels, modality)
        except (UserError, OSError):  # `prepare` reports the reason
            return None
        return RecordedCase(case_content(volume, labels), now.image_file, now.label_file)
