"""Held-out cases of a checkpoint: the split of its training run, and refusal of cases that the run was trained on.

Cases are compared with the run's record (`run_data`) by id, by the bytes of their files and, if those differ, by their
decoded content, so that renamed, compressed, converted or moved files are recognised. Runs of version 0.1 have no
record; their cases are compared by id. A scan that was both changed and renamed is not recognised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.case_content import CaseContent, RecordedCase, case_content
from sam2_3dmed_jax.data.datasets import Dataset, LabelledCase, dataset_fingerprint
from sam2_3dmed_jax.data.run_data import DATA_FILE, RunData, data_of_split, read_run_data
from sam2_3dmed_jax.data.split_choice import (
    SPLIT_FILE,
    absolute_path,
    checked_settings,
    choose_split,
    split_settings,
    with_split,
)
from sam2_3dmed_jax.data.split_files import first_ids, read_split_description, read_splits
from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.errors import UserError, number_of
from sam2_3dmed_jax.runtime.hashing import sha256_of_file
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.runtime.user_files import read_json, typed
from sam2_3dmed_jax.volume.io import read_labels, read_volume
from sam2_3dmed_jax.volume.modality import CT


class HeldOut(NamedTuple):
    """The cases that a checkpoint may be scored on."""

    split: Split  # `test` are the cases to score
    run: dict[str, Any]  # description of the run's split, and its `seed`; {}: no run, or a run on another dataset
    trained: str  # whether the checkpoint was trained on these cases: "no" or "unknown"
    notes: tuple[str, ...]  # one sentence each


class CaseSource(Protocol):
    """Ids and contents of the cases of a dataset."""

    @property
    def ids(self) -> Sequence[str]:
        """Return the ids of all cases."""

    @property
    def fingerprint(self) -> str:
        """Return `datasets.dataset_fingerprint`."""

    def files(self, case_id: str) -> RecordedCase:
        """Return the SHA-256 of the files of a case, without content."""

    def content(self, case_id: str, modality: str) -> CaseContent:
        """Decode a case, and return its content."""


@dataclass
class DatasetCases:
    """Ids and contents of the cases of a folder; each case is read at most once."""

    dataset: Dataset
    progress: Progress | None = None
    _files: dict[str, RecordedCase] = field(default_factory=dict)
    _contents: dict[tuple[str, str], CaseContent] = field(default_factory=dict)

    @cached_property
    def ids(self) -> list[str]:
        """Return the ids of all cases."""
        return [case.id for case in self.dataset.cases]

    @cached_property
    def fingerprint(self) -> str:
        """Return `datasets.dataset_fingerprint`."""
        return dataset_fingerprint(self.dataset)

    def files(self, case_id: str) -> RecordedCase:
        """Return the SHA-256 of the files of a case."""
        if case_id not in self._files:
            case = self._case(case_id)
            try:
                self._files[case_id] = RecordedCase(None, sha256_of_file(case.image), sha256_of_file(case.label))
            except OSError as error:
                raise UserError(f"{error.filename} cannot be read ({error.strerror}); check the file") from error
        return self._files[case_id]

    def content(self, case_id: str, modality: str) -> CaseContent:
        """Decode a case, and return its content."""
        key = case_id, modality
        if key not in self._contents:
            case = self._case(case_id)
            volume = read_volume(case.image, modality=modality or CT)
            self._contents[key] = case_content(volume, read_labels(case.label, volume))
            if self.progress:
                self.progress("comparing cases with the training run", len(self._contents), len(self.ids))
        return self._contents[key]

    def _case(self, case_id: str) -> LabelledCase:
        return self.dataset.cases[self.ids.index(case_id)]


def held_out_cases(cases: CaseSource, checkpoint: str, settings: Mapping[str, Any]) -> HeldOut:
    """Return the cases that a checkpoint is scored on.

    The split is the one that the run stored, without cases that the dataset lacks, unless `settings` differ from the
    run's. A dataset that has no case id of the run is split by `settings` alone.

    Args:
        cases: the cases of the dataset.
        checkpoint: folder of the checkpoint; `split.json` and `data.json` of its run are next to it, if available.
        settings: settings that the user passes, under the names of `SPLIT_FIELDS`. The others come from the run if the
            dataset has cases of the run; otherwise, or if `split` or `splits` is passed, they have their defaults.

    Raises:
        UserError: as `choose_split`; a case to score was used for training or inner validation; or files of a case
            cannot be read.
    """
    run = read_run(checkpoint)
    if run is None:
        return HeldOut(choose_split(cases.ids, with_split(settings)), {}, "unknown", ())
    same_files = run.description.get("fingerprint") == cases.fingerprint
    shared = same_files or bool(run.data.cases.keys() & set(cases.ids))
    split, notes = _split(cases.ids, run, settings) if shared else (choose_split(cases.ids, with_split(settings)), [])
    comparison = _Comparison(run, cases, same_files)
    for case_id in split.test:
        comparison.add(case_id)
    comparison.settle()
    if comparison.trained:
        hint = "leave out the flags of the split" if settings else "give --splits FILE without them"
        raise UserError(
            f"{checkpoint} was trained on {len(comparison.trained)} of {len(split.test)} cases to score "
            f"({first_ids(list(comparison.trained))}{comparison.renamed()}), according to {run.file}; {hint}"
        )
    description = run.description if shared else {}
    return HeldOut(split, description, comparison.answer, (*notes, *comparison.notes(checkpoint)))


@dataclass(frozen=True)
class TrainingRun:
    """The data of a run, from the files in its folder."""

    file: Path  # `split.json`
    description: dict[str, Any]  # of the split, and the run's `seed`
    split: Split
    data: RunData  # of a run of version 0.1: only ids

    @cached_property
    def trained(self) -> list[tuple[str, RecordedCase]]:
        """Ids and contents of all cases that the weights were fitted to, in each state that they had."""
        now = [(name, self.data.cases.get(name)) for name in (*self.split.train, *self.split.val)]
        earlier = [pair for change in self.data.accepted for pair in change.before.items()]
        return [(name, case) for name, case in (*now, *earlier) if case]

    @cached_property
    def modality(self) -> str:
        """Modality of the cases, which their files may not store."""
        contents = (case.content for case in self.data.cases.values() if case and case.content)
        return next((content.modality for content in contents), "")


def read_run(checkpoint: str) -> TrainingRun | None:
    """Return the run that trained a checkpoint; None if the checkpoint is not in the folder of a run.

    Raises:
        UserError: a file of the run cannot be read.
    """
    folder = Path(absolute_path(checkpoint)).parent
    file = folder / SPLIT_FILE
    if not file.exists():
        return None
    description, (split,) = read_split_description(file), read_splits(file)
    with contextlib.suppress(UserError, KeyError, TypeError):
        description["seed"] = typed(read_json(folder / "config.json", "")["training"]["seed"], int, "", "")
    return TrainingRun(file, description, split, read_run_data(folder / DATA_FILE) or data_of_split(split))


def _split(ids: Sequence[str], run: TrainingRun, settings: Mapping[str, Any]) -> tuple[Split, list[str]]:
    """Return the split of a dataset that has cases of the run, and notes."""
    of_run = checked_settings(run.description, run.file)
    wanted = {**({} if {"split", "splits"} & settings.keys() else of_run), **settings}
    defaults = split_settings(DataConfig())
    if {**defaults, **wanted} != {**defaults, **of_run}:
        return choose_split(ids, with_split(wanted)), []
    present = set(ids)
    train, val, test = (
        tuple(name for name in part if name in present) for part in (run.split.train, run.split.val, run.split.test)
    )
    if not test:
        return choose_split(ids, with_split(settings)), []
    new = sorted(present - run.data.cases.keys())
    notes = [f"{number_of(len(new), 'case')} left out, not in the training run: {first_ids(new)}"] if new else []
    return Split(train, val, test), notes


class _Comparison:
    """Comparison of the cases to score with the record of a run."""

    def __init__(self, run: TrainingRun, cases: CaseSource, same_files: bool):
        self._run, self._cases, self._same_files = run, cases, same_files
        self._images = {case.content.image: name for name, case in run.trained if case.content}
        self._files = {case.image_file: name for name, case in run.trained if case.image_file}
        self._held_out = {
            case.image_file: case
            for name, case in run.data.cases.items()
            if case and case.image_file and name in run.split.test
        }
        self._by_id: dict[str, list[RecordedCase]] = {}
        for name, case in run.trained:
            self._by_id.setdefault(name, []).append(case)
        self._has_contents = all(case.content for _, case in run.trained)
        self.trained: dict[str, str] = {}  # cases to score that were trained on, and their ids in the run
        self._other: list[str] = []  # cases to score with the id of a training case, but other image and labels
        self._unknown: list[str] = []  # cases to score whose content could not be compared
        self._changed: list[str] = []  # held-out cases that have changed since the run

    def add(self, case_id: str) -> None:
        """Compare a case to score."""
        same_id = self._by_id.get(case_id, [])
        if any(case.content is None for case in same_id):
            self.trained[case_id] = case_id
            return
        if not (self._images or self._files):  # a run of version 0.1 has no record
            if not self._same_files:
                self._unknown.append(case_id)
            return
        files = self._cases.files(case_id)
        if files.image_file in self._files:
            self.trained[case_id] = self._files[files.image_file]
            return
        before = self._held_out.get(files.image_file)
        content = before.content if before else None
        if content is None and self._images:
            content = self._cases.content(case_id, self._run.modality)
        if content and content.image in self._images:
            self.trained[case_id] = self._images[content.image]
        elif same_id and self._labels_equal(case_id, same_id):
            self.trained[case_id] = case_id
        elif same_id:
            self._other.append(case_id)
        elif not self._has_contents and before is None:
            self._unknown.append(case_id)
        if content and case_id in self._run.split.test and self._differs(case_id, files):
            self._changed.append(case_id)

    def settle(self) -> None:
        """Decide about cases with the id of a training case but other content: another dataset has no equal case."""
        if self._other and any(map(self._is_recorded, self._cases.ids)):
            self.trained |= {name: name for name in self._other}
            self._other = []

    @property
    def answer(self) -> str:
        """Whether the checkpoint was trained on the cases that were added."""
        return "unknown" if self._other or self._unknown else "no"

    def renamed(self) -> str:
        """Return an example of a training case with another id, for the message."""
        example = next(((new, old) for new, old in self.trained.items() if new != old), None)
        return f"; {example[0]!r} is {example[1]!r} of the run" if example else ""

    def notes(self, checkpoint: str) -> list[str]:
        """Return what could not be decided, and held-out cases that have changed."""
        notes = []
        if self._unknown:
            notes.append(
                f"cannot tell whether {checkpoint} was trained on {first_ids(self._unknown)} under another id: its "
                "run recorded no contents"
            )
        if self._other:
            notes.append(
                f"cannot tell whether {checkpoint} was trained on {first_ids(self._other)}: cases of its run have "
                "these ids, but other images and labels"
            )
        if self._changed:
            notes.append(f"{len(self._changed)} held-out cases have changed since training: {first_ids(self._changed)}")
        return notes

    def _labels_equal(self, case_id: str, recorded: Sequence[RecordedCase]) -> bool:
        labels = self._cases.content(case_id, self._run.modality).labels
        return any(case.content and case.content.labels == labels for case in recorded)

    def _differs(self, case_id: str, files: RecordedCase) -> bool:
        """Return whether a held-out case has another content than the run recorded."""
        before = self._run.data.cases.get(case_id)
        if before is None or before.content is None or before.same_files(files):
            return False
        now = self._cases.content(case_id, self._run.modality)
        return (now.image, now.labels) != (before.content.image, before.content.labels)

    def _is_recorded(self, case_id: str) -> bool:
        """Return whether a case of the dataset has the image or the labels of the run's case with the same id."""
        before = self._run.data.cases.get(case_id)
        if before is None or before.content is None:
            return False
        if before.same_files(self._cases.files(case_id)):
            return True
        now = self._cases.content(case_id, self._run.modality)
        return now.image == before.content.image or now.labels == before.content.labels
