"""NVIDIA GPUs and their driver, as `nvidia-smi` and the files of the driver report them; JAX is not asked.

A machine may have GPUs that JAX does not use. All facts are optional: containers often have the devices and neither the
program nor the files.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
_QUERIES = ("name,driver_version,memory.total,compute_cap", "name,driver_version,memory.total")  # old: no compute_cap
_SECONDS = 20.0  # for `nvidia-smi`, which takes some seconds where the driver is not kept loaded


@dataclass(frozen=True)
class NvidiaGpu:
    """One GPU; "" where a fact is unknown."""

    name: str
    driver: str = ""
    memory: str = ""  # as `nvidia-smi` prints it, such as "81559 MiB"
    capability: str = ""  # CUDA compute capability, such as "9.0"

    def __str__(self) -> str:
        facts = (
            self.name,
            self.driver and f"driver {self.driver}",
            self.memory,
            self.capability and f"compute capability {self.capability}",
        )
        return ", ".join(filter(None, facts))


def find_gpus(root: Path = Path("/")) -> list[NvidiaGpu]:
    """Return the NVIDIA GPUs of this machine; [] if there are none.

    Args:
        root: folder of `proc` and `dev`.
    """
    return _of_program() or _of_files(root)


def _of_program() -> list[NvidiaGpu]:
    """Return the GPUs that `nvidia-smi` lists, or [] if it is absent, fails or hangs."""
    for query in _QUERIES:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
        except (OSError, subprocess.SubprocessError):
            return []
        if done.returncode == 0:
            rows = ([cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip())
            return [NvidiaGpu(*("" if cell.startswith("[") else cell for cell in row[:4])) for row in rows]
    return []


def _of_files(root: Path) -> list[NvidiaGpu]:
    """Return the GPUs in the files of the driver; only one without a name if there are devices alone."""
    folder = root / "proc/driver/nvidia"
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _text(folder / "version"))
    driver = found[1] if found else ""
    models = [re.search(r"^Model:\s*(.+)$", _text(file), re.MULTILINE) for file in folder.glob("gpus/*/information")]
    if gpus := [NvidiaGpu(model[1].strip(), driver) for model in models if model]:
        return gpus
    return [NvidiaGpu("an NVIDIA GPU", driver)] if folder.exists() or (root / "dev/nvidia0").exists() else []


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def installed_plugins() -> dict[str, str]:
    """Return the versions of JAX's CUDA plugins that are installed, by package."""
    versions = {}
    for package in PLUGINS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
