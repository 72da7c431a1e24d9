"""The choice between the implementations of attention on GPUs, with its reason in words.

On a CPU attention runs in blocks that fit the cache, and on a TPU as a Pallas kernel; `attention.py` selects them when
the program is lowered. On a GPU the choice also depends on the dtype and on the GPU, and is made when the program is
traced: for the GPU of this machine, or for the one that `target_gpu` names.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Path = Literal["triton", "wide", "blocked"]
Capability = tuple[int, int]  # CUDA compute capability

LEAST_CAPABILITY = (8, 0)  # Ampere: the first GPUs with products of bfloat16
MAX_CHANNELS = 256  # of a head; wider blocks do not fit the shared memory


class Choice(NamedTuple):
    """An implementation of attention on GPUs."""

    path: Path
    reason: str  # a clause without a full stop
    capability: Capability | None = None  # of the GPU that "triton" is compiled for; None runs its interpreter
    forced: bool = False  # on all platforms


class Target(NamedTuple):
    """The GPU that programs are compiled for."""

    capability: Capability | None


_target: ContextVar[Target | None] = ContextVar("_target", default=None)
_forced: ContextVar[Path | None] = ContextVar("_forced", default=None)


_clear_caches: Callable[[], None] = jax.clear_caches  # JAX leaves it without annotations


class AttentionWarning(UserWarning):
    """Attention runs slower than the GPU allows."""


def gpu_attention(capability: Capability | None, dtype: DTypeLike, channels: int = 0) -> Choice:
    """Return the implementation of attention for a GPU.

    Args:
        capability: CUDA compute capability; None for a GPU that is unknown or not from NVIDIA.
        dtype: dtype of queries, keys and values.
        channels: the most channels of a head; 0 for a head of an official preset.
    """
    if capability is None:
        return Choice("wide", "no NVIDIA GPU is known")
    if jnp.dtype(dtype) != jnp.bfloat16:
        return Choice("wide", f"the kernel computes in bfloat16, not in {jnp.dtype(dtype).name}")
    if capability < LEAST_CAPABILITY:
        version, least = (".".join(map(str, numbers)) for numbers in (capability, LEAST_CAPABILITY))
        return Choice("wide", f"the GPU's compute capability {version} is below {least}")
    if channels > MAX_CHANNELS:
        return Choice("wide", f"heads of {channels} channels are wider than the kernel's {MAX_CHANNELS}")
    if not _has_pallas_triton():
        return Choice("wide", f"JAX {jax.__version__} has no Pallas-Triton")
    return Choice("triton", "the GPU computes in bfloat16, and JAX has Pallas-Triton", capability)


def local_gpu_attention(dtype: DTypeLike, channels: int = 0) -> Choice:
    """Return the implementation of attention for the GPU of this machine, after a self-check of the kernel.

    The self-check runs once per process. If it fails, `AttentionWarning` is issued and plain XLA is chosen.
    """
    choice = gpu_attention(local_capability(), dtype, channels)
    if choice.path == "triton" and (fault := _kernel_fault(choice.capability)):
        return Choice("wide", f"the kernel failed its self-check ({fault})")
    return choice


def chosen_attention(dtype: DTypeLike, channels: int = 0) -> Choice:
    """Return the implementation of attention on GPUs for the program that is traced."""
    target, forced = _target.get(), _forced.get()
    if forced is not None:
        capability = local_capability() if target is None else target.capability
        return Choice(forced, "a benchmark or test forces it", capability, forced=True)
    if target is None:
        return local_gpu_attention(dtype, channels)
    return gpu_attention(target.capability, dtype, channels)


def local_capability() -> Capability | None:
    """Return the CUDA compute capability of JAX's default device, or None if it is not an NVIDIA GPU."""
    default = getattr(jax.config, "jax_default_device", None)  # a device, a platform, or None
    device = default if isinstance(default, jax.Device) else jax.local_devices(backend=default)[0]
    version = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return (int(version[1]), int(version[2])) if device.platform == "gpu" and version else None


@contextlib.contextmanager
def target_gpu(capability: Capability | None) -> Iterator[None]:
    """Trace programs for a GPU that need not be in this machine; None for any GPU."""
    token = _target.set(Target(capability))
    try:
        yield
    finally:
        _target.reset(token)


@contextlib.contextmanager
def force_attention(path: Path) -> Iterator[None]:
    """Use one implementation of attention on all platforms, for benchmarks and tests.

    "triton" runs in Pallas' interpreter, slowly, where no NVIDIA GPU is known. JAX's caches are cleared before and
    after, so that functions are traced again; a program that was compiled ahead of time keeps its implementation.
    """
    token = _forced.set(path)
    _clear_caches()
    try:
        yield
    finally:
        _forced.reset(token)
        _clear_caches()


def _has_pallas_triton() -> bool:
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


@functools.cache
def _kernel_fault(capability: Capability) -> str | None:
    """Return why the kernel must not be used on this machine's GPU, or None."""
    from sam2_3dmed_jax.sam2.triton_self_check import kernel_fault

    fault = kernel_fault(capability)
    if fault is not None:
        warnings.warn(
            f"Attention runs as plain XLA, several times slower, because its GPU kernel failed its self-check: {fault}",
            AttentionWarning,
            stacklevel=2,
        )
    return fault
