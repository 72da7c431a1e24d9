"""The chip that programs are traced and lowered for, which need not be in this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from sam2_3dmed_jax.runtime.chips import Chip
from sam2_3dmed_jax.sam2.attention_choice import target_gpu


@contextlib.contextmanager
def target_chip(chip: Chip) -> Iterator[None]:
    """Trace and lower programs for a chip.

    A GPU determines the implementation of attention, and with jax >= 0.12 its kernels are lowered only where the mesh
    of the context names a GPU.
    """
    if chip.platform != "cuda":
        with target_gpu(None):
            yield
        return
    mesh = AbstractMesh((), (), abstract_device=AbstractDevice(chip.kind, None, "gpu"))
    with target_gpu(chip.capability), use_abstract_mesh(mesh):
        yield
