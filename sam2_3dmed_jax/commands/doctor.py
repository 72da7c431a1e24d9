"""`sam2-3dmed doctor`: devices, versions, caches and optional parts of this installation, and its problems."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sam2_3dmed_jax.commands.command_line import Parser
from sam2_3dmed_jax.errors import UserError

HELP = "show devices, versions, caches, optional parts, and what is wrong"

REQUIRED = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "nibabel", "numpy", "scipy", "safetensors", "tyro")
OPTIONAL = {
    "torch": "torch",
    "SimpleITK": "dicom",
    "highdicom": "dicom",
    "huggingface_hub": "hub",
    "starlette": "serve",
    "anywidget": "notebook",
    "libtpu": "plan",
    "jax_cuda12_plugin": "plan-gpu",
}  # module to extra
LOW_DISK = 1 << 30  # bytes


@dataclass(frozen=True)
class Options:
    """`doctor` has no arguments of its own."""


def add_arguments(parser: Parser) -> None:
    """Define no arguments."""


def run(options: Options) -> None:
    """Print the facts, and raise the problems as one error."""
    facts, problems = examine()
    print("\n".join(facts))
    if problems:
        raise UserError("; ".join(problems))
    print("nothing is wrong")


def examine() -> tuple[list[str], list[str]]:
    """Return lines of facts, and lines of problems (empty when there are none)."""
    facts, problems = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"], []
    for package in REQUIRED:
        try:
            facts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            problems.append(f"{package} is missing: pip install '{package}'")
    try:
        import jax

        facts += [f"device: {device.device_kind} ({device.platform}:{device.id})" for device in jax.devices()]
    except Exception as error:  # a broken accelerator installation raises many kinds
        problems.append(f"JAX finds no device ({error}): check JAX_PLATFORMS and the driver of the accelerator")
    for module, extra in OPTIONAL.items():
        installed = importlib.util.find_spec(module) is not None
        state = "installed" if installed else f"not installed (pip install 'sam2-3dmed-jax[{extra}]')"
        facts.append(f"{module}: {state}")
    if Path("/proc/meminfo").exists():
        sizes = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(sizes[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
        facts.append(f"host memory: {available:.1f} of {total:.1f} GiB available, {os.cpu_count()} CPU cores")
    facts.append(_compilation_cache())
    free = shutil.disk_usage(Path.cwd()).free
    facts.append(f"disk of this folder: {free / 2**30:.1f} GiB free")
    if free < LOW_DISK:
        problems.append(f"only {free / 2**20:.0f} MiB of disk are free in {Path.cwd()}: checkpoints need more")
    return facts, problems


def _compilation_cache() -> str:
    from sam2_3dmed_jax.runtime import compilation_cache

    folder = compilation_cache.folder()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0
    return f"compilation cache: {folder} ({size / 2**20:.0f} MiB)"
