"""`sam2-3dmed doctor`: devices, versions, caches and optional parts of this installation, and its problems."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.commands.command_line import Parser
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime import nvidia

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
ATTENTION = {"triton": "a fused kernel (triton)", "wide": "plain XLA (wide)", "blocked": "blocks (blocked)"}
EXTRA_FOR_GPUS = "sam2-3dmed-jax[cuda12]"  # runs with the drivers of CUDA 12 and of CUDA 13
NEEDED_DRIVERS = "CUDA 12 needs driver 525 or newer, CUDA 13 driver 580"


@dataclass(frozen=True)
class Options:
    """`doctor` has no arguments of its own."""


def add_arguments(parser: Parser) -> None:
    """Define no arguments."""


def run(options: Options) -> None:
    """Print the facts and warnings, and raise the problems as one error."""
    found = examine()
    print("\n".join([*found.facts, *(f"warning: {warning}" for warning in found.warnings)]))
    if found.problems:
        raise UserError("; ".join(found.problems))
    print("nothing else is wrong" if found.warnings else "nothing is wrong")


@dataclass(frozen=True)
class Findings:
    """Lines about an installation."""

    facts: list[str]
    warnings: list[str]  # everything works, but slower than it could
    problems: list[str]  # something does not work


def examine() -> Findings:
    """Return what is installed, what is slow, and what is wrong."""
    facts = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    slow: list[str] = []
    problems: list[str] = []
    for package in REQUIRED:
        try:
            facts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            problems.append(f"{package} is missing: pip install '{package}'")
    try:
        import jax

        devices = jax.devices()
        facts += [f"device: {device.device_kind} ({device.platform}:{device.id})" for device in devices]
        facts.append(_prediction_dtype())
        gpu_facts, slow = _gpus(devices)
        facts += gpu_facts
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
    return Findings(facts, slow, problems)


def _prediction_dtype() -> str:
    from sam2_3dmed_jax.runtime.compute_dtype import resolve_compute_dtype

    return f"prediction computes in {resolve_compute_dtype('auto')} by default (--compute-dtype)"


def _gpus(devices: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Return facts about the NVIDIA GPUs of the machine, and warnings if JAX does not use them.

    Args:
        devices: all devices of JAX.
    """
    gpus, plugins = nvidia.find_gpus(), nvidia.installed_plugins()
    facts = [f"GPU: {gpu}" for gpu in gpus]
    if gpus or plugins:
        installed = ", ".join(f"{name} {version}" for name, version in plugins.items())
        facts.append(f"CUDA plugin of JAX: {installed or 'not installed'}")
    if any(device.platform == "gpu" for device in devices):
        attention_facts, slow = _attention()
        return facts + attention_facts, slow
    return facts, [_unused_gpu(gpus[0], plugins, devices[0].platform)] if gpus else []


def _attention() -> tuple[list[str], list[str]]:
    """Return which attention runs on the GPU that JAX uses and why, by dtype; warnings if its kernel is broken."""
    from sam2_3dmed_jax.sam2.attention_choice import AttentionWarning, local_capability, local_gpu_attention

    capability = local_capability()
    facts = [f"compute capability: {'.'.join(map(str, capability)) if capability else 'unknown'}"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for dtype in ("bfloat16", "float32"):
            choice = local_gpu_attention(dtype)
            facts.append(f"attention in {dtype}: {ATTENTION[choice.path]} ({choice.reason})")
    return facts, [str(one.message) for one in caught if issubclass(one.category, AttentionWarning)]


def _unused_gpu(gpu: nvidia.NvidiaGpu, plugins: Mapping[str, str], platform_in_use: str) -> str:
    """Return why JAX may not use a GPU, and what to do."""
    start = f"{gpu.name} is present, but JAX runs on {platform_in_use}: "
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked and not {"cuda", "gpu"} & set(asked.split(",")):
        return f"{start}JAX_PLATFORMS={asked} asks for that; unset it"
    if not plugins:
        return f"{start}pip install '{EXTRA_FOR_GPUS}'"
    return (
        f"{start}{next(iter(plugins))} is installed but did not start; {NEEDED_DRIVERS}; install its libraries and "
        f"versions that fit: pip install --upgrade '{EXTRA_FOR_GPUS}'"
    )


def _compilation_cache() -> str:
    from sam2_3dmed_jax.runtime import compilation_cache

    folder = compilation_cache.folder()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0
    return f"compilation cache: {folder} ({size / 2**20:.0f} MiB)"
