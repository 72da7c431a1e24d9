"""What a run of `prepare` tells: `refused.csv`, and the lines at its end."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

from sam2_3dmed_jax.data.prepare.folder import NEW, write_whole
from sam2_3dmed_jax.data.prepared import PreparedDataset

REFUSED = "refused.csv"
_NAMED = 8  # cases named in a line; further ones are counted


@dataclass
class PreparedReport:
    """What a run found and did: every case of the source is in `dataset.cases` or in `refused`."""

    dataset: PreparedDataset
    refused: dict[str, str] = field(default_factory=dict)  # case id to the one sentence why
    done: dict[str, str] = field(default_factory=dict)  # cases prepared in this run, to why
    removed: list[str] = field(default_factory=list)  # cases that are no longer in the source
    warnings: list[str] = field(default_factory=list)  # a sentence each
    tracebacks: dict[str, str] = field(default_factory=dict)  # of bugs

    @property
    def lines(self) -> list[str]:
        """For people: what changed, what there is, and what was refused."""
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
        """Nothing on a first run, which has nothing but new cases."""
        there = len(self.dataset.cases) - len(self.done)
        if self.dataset.cases and not (self.done or self.removed):
            return [
                f"nothing to do: {_cases(there)} in {self.dataset.path}, and {'its' if there == 1 else 'their'} "
                "sources have not changed"
            ]
        lines = [f"{_cases(there)} there already"] if there else []
        for why in sorted(set(self.done.values())):
            ids = [case_id for case_id, reason in self.done.items() if reason == why]
            if why != NEW or there:
                lines.append(f"{_cases(len(ids))} prepared, {why}: {_names(ids)}")
        if self.removed:
            lines.append(
                f"{_cases(len(self.removed))} removed, as the dataset has them no more: {_names(self.removed)}"
            )
        return lines


def write_refused(out: Path, refused: dict[str, str]) -> None:
    """Write `refused.csv`: id and reason."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("id", "reason"), *refused.items()])
    write_whole(out / REFUSED, text.getvalue())


def _contents(dataset: PreparedDataset) -> list[str]:
    cases = dataset.cases
    size, slices = sum(case.bytes for case in cases), sum(case.shape[0] for case in cases)
    amount = f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
    ranges = [_range([case.spacing[axis] for case in cases]) for axis in range(3)]
    lines = [
        f"{dataset.path}: {_cases(len(cases))}, {slices} slices, {amount}",
        f"spacing (dz, dy, dx): {' x '.join(ranges)} mm",
    ]
    for value, name in sorted(dataset.labels.items()):
        lines.append(f"label {value} ({name}): {_cases(sum(value in case.areas for case in cases))}")
    return lines


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low}-{high}"


def _cases(count: int) -> str:
    return f"{count} case" if count == 1 else f"{count} cases"


def _names(ids: list[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(sorted(ids)[:_NAMED]) + more
