"""Report of a run of `prepare`: `refused.csv`, and the lines that the command prints."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

from sam2_3dmed_jax.data.prepare.folder import NEW, REFUSED
from sam2_3dmed_jax.data.prepared import PreparedDataset
from sam2_3dmed_jax.errors import listed, number_of
from sam2_3dmed_jax.runtime.atomic_files import write_text

_MAX_IDS = 8  # ids in a line; further cases are counted


@dataclass
class PreparedReport:
    """Result of a run. Every case of the source is in `dataset.cases` or in `refused`."""

    dataset: PreparedDataset
    refused: dict[str, str] = field(default_factory=dict)  # case id to the reason, one sentence
    done: dict[str, str] = field(default_factory=dict)  # id of each case prepared in this run to the reason
    removed: list[str] = field(default_factory=list)  # ids of cases that are no longer in the source
    warnings: list[str] = field(default_factory=list)  # one sentence each
    tracebacks: dict[str, str] = field(default_factory=dict)  # of cases refused because of a bug

    @property
    def lines(self) -> list[str]:
        """Return the printed report: changes, contents and refused cases."""
        lines = [f"note: {warning}" for warning in self.warnings] + self._changes()
        if self.dataset.cases:
            lines += _contents(self.dataset)
        if self.refused:
            total = len(self.refused) + len(self.dataset.cases)
            width = max(map(len, self.refused))
            lines.append(f"refused {len(self.refused)} of {total} cases ({Path(self.dataset.path) / REFUSED}):")
            lines += [f"  {case_id:<{width}}  {reason}" for case_id, reason in self.refused.items()]
        return lines

    def _changes(self) -> list[str]:
        """Return what this run changed; [] for a first run, where all cases are new."""
        unchanged = len(self.dataset.cases) - len(self.done)
        if self.dataset.cases and not (self.done or self.removed):
            return [
                f"nothing to do: {number_of(unchanged, 'case')} in {self.dataset.path}, and "
                f"{'its' if unchanged == 1 else 'their'} sources have not changed"
            ]
        lines = [f"{number_of(unchanged, 'case')} unchanged"] if unchanged else []
        for reason in sorted(set(self.done.values())):
            ids = [case_id for case_id, each in self.done.items() if each == reason]
            if reason != NEW or unchanged:
                lines.append(f"{number_of(len(ids), 'case')} prepared, {reason}: {_names(ids)}")
        if self.removed:
            removed = number_of(len(self.removed), "case")
            lines.append(f"{removed} removed, no longer in the dataset: {_names(self.removed)}")
        return lines


def write_refused(out: Path, refused: dict[str, str]) -> None:
    """Write `refused.csv`, the id and reason of each refused case."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("id", "reason"), *refused.items()])
    write_text(out / REFUSED, text.getvalue(), keep_unchanged=True)


def _contents(dataset: PreparedDataset) -> list[str]:
    cases = dataset.cases
    size, slices = sum(case.bytes for case in cases), sum(case.shape[0] for case in cases)
    amount = f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
    ranges = [_range([case.spacing[axis] for case in cases]) for axis in range(3)]
    lines = [
        f"{dataset.path}: {number_of(len(cases), 'case')}, {slices} slices, {amount}",
        f"spacing (dz, dy, dx): {' x '.join(ranges)} mm",
    ]
    for value, name in sorted(dataset.labels.items()):
        lines.append(f"label {value} ({name}): {number_of(sum(value in case.areas for case in cases), 'case')}")
    if negatives := sum(not case.areas for case in cases):
        lines.append(f"without an object: {number_of(negatives, 'case')}")
    return lines


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low}-{high}"


def _names(ids: list[str]) -> str:
    return listed(sorted(ids), _MAX_IDS)
