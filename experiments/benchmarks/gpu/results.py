"""Results of a GPU benchmark: one JSON file that grows with each entry, from which an interrupted run resumes."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.gpu.check import Outcome
from experiments.benchmarks.pytorch import rows
from sam2_3dmed_jax.runtime import nvidia
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.sam2.attention_choice import local_gpu_attention

FORMAT = 1
FAILED, REFUSED, LEFT_OUT = "failed", "refused", "left out"  # keys of entries without figures
Entry = dict[str, Any]  # figures by name, or one of the keys above with the reason


def machine_facts() -> dict[str, str]:
    """Return what the figures depend on: hardware, driver, versions, flags, and the choice of attention."""
    choice = local_gpu_attention("bfloat16")
    return {
        "device": jax.devices()[0].device_kind,
        "GPUs": "; ".join(map(str, nvidia.find_gpus())) or "none",
        **rows.machine(),
        **nvidia.installed_plugins(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").strip(),
        "attention in bfloat16": f"{choice.path} ({choice.reason})",
    }


class Results:
    """The file of a run."""

    def __init__(self, path: Path, smoke: bool):
        """Start the file, or resume it.

        Raises:
            SystemExit: the file is of another machine, version or kind of run.
        """
        self._path = path
        facts = machine_facts()
        self._record: dict[str, Any] = {
            "format": FORMAT,
            "smoke": smoke,
            "machine": facts,
            "checks": {},
            "sections": {},
        }
        if path.exists():
            stored = json.loads(path.read_text())
            found = {"format": stored.get("format"), "smoke": stored.get("smoke"), **stored.get("machine", {})}
            wanted = {"format": FORMAT, "smoke": smoke, **facts}
            if differing := sorted(
                name for name in {*found, *wanted} - {"date"} if found.get(name) != wanted.get(name)
            ):
                sys.exit(f"{path} is of another run (it differs in {', '.join(differing)}); give another --out")
            self._record = stored

    @property
    def checks(self) -> dict[str, Outcome]:
        """The outcomes of the checks."""
        return {name: Outcome(**outcome) for name, outcome in self._record["checks"].items()}

    @property
    def record(self) -> dict[str, Any]:
        """The content of the file."""
        return self._record

    def entry(self, section: str, name: str) -> Entry | None:
        """Return an entry, or None."""
        found: Entry | None = self._record["sections"].get(section, {}).get(name)
        return found

    def add_check(self, name: str, outcome: Outcome) -> None:
        """Store the outcome of a check."""
        self._record["checks"][name] = asdict(outcome)
        self._write()

    def add(self, section: str, name: str, entry: Entry) -> None:
        """Store an entry."""
        self._record["sections"].setdefault(section, {})[name] = entry
        self._write()

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._record, indent=1) + "\n")


def has_figures(entry: Entry | None) -> bool:
    """Return whether an entry was measured; others are tried again by the next run."""
    return entry is not None and not {FAILED, REFUSED, LEFT_OUT} & entry.keys()
