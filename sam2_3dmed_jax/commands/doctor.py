"""What this machine has: devices, versions, caches, optional parts, and what is wrong."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from sam2_3dmed_jax.runtime import compilation_cache

REQUIRED = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "nibabel", "numpy", "scipy", "safetensors", "tyro")
OPTIONAL = {
    "torch": "torch",
    "SimpleITK": "dicom",
    "highdicom": "dicom",
    "libtpu": "plan",
    "jax_cuda12_plugin": "plan-gpu",
}  # module to extra


def report() -> tuple[list[str], list[str]]:
    """Lines of facts, and lines of what is wrong (empty when all is well)."""
    facts, wrong = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"], []
    for package in REQUIRED:
        try:
            facts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            wrong.append(f"{package} is missing: pip install '{package}'")
    try:
        import jax

        facts += [f"device: {device.device_kind} ({device.platform}:{device.id})" for device in jax.devices()]
    except Exception as error:  # any broken accelerator installation
        wrong.append(f"JAX finds no device ({error}): check JAX_PLATFORMS and the accelerator's driver")
    for module, extra in OPTIONAL.items():
        there = importlib.util.find_spec(module) is not None
        facts.append(f"{module}: " + ("there" if there else f"not there (pip install 'sam2-3dmed-jax[{extra}]')"))
    if Path("/proc/meminfo").exists():
        sizes = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(sizes[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
        facts.append(f"host memory: {free:.1f} of {total:.1f} GiB free, {os.cpu_count()} CPU cores")
    cache = compilation_cache.folder()
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) if cache.exists() else 0
    facts.append(f"compilation cache: {cache} ({size / 2**20:.0f} MiB)")
    free = shutil.disk_usage(Path.cwd()).free
    facts.append(f"disk here: {free / 2**30:.1f} GiB free")
    if free < 1 << 30:
        wrong.append(f"only {free / 2**20:.0f} MiB of disk are free in {Path.cwd()}: checkpoints need more")
    return facts, wrong
