"""The compilers that plans need, which are not JAX's own: libtpu for TPUs, the CUDA plugin and its tools for GPUs."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.plan.topologies import Topology

# What keeps the compilers from looking for hardware, or for a machine of Google's, and from logging to the console.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is held here that two plans could not share
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
CUDA = ("12", "13")


def check(topology: Topology) -> None:
    """See that the compiler of a topology is installed, in this environment.

    Raises:
        UserError: it is not, or it is of another version than jaxlib.
    """
    if topology.chip.platform == "tpu":
        if not _there("libtpu"):
            raise UserError(
                f"--topology {topology}: the TPU compiler, libtpu, is not installed; pip install 'sam2-3dmed-jax[plan]'"
            )
        return
    found = [cuda for cuda in CUDA if _there(f"jax_plugins.xla_cuda{cuda}")]
    if not found or not (_there("nvidia.cuda_nvcc") or _there("nvidia.cu13")):
        missing = "libdevice and ptxas (nvidia-cuda-nvcc)" if found else "JAX's CUDA plugin"
        raise UserError(
            f"--topology {topology}: the GPU compiler, {missing}, is not installed; make an environment of its own, "
            "since the plugin warns wherever there is no GPU, and pip install 'sam2-3dmed-jax[plan-gpu]' there"
        )
    plugin, jaxlib = metadata.version(f"jax-cuda{found[0]}-plugin"), metadata.version("jaxlib")
    if plugin != jaxlib:
        raise UserError(
            f"--topology {topology}: jax-cuda{found[0]}-plugin is {plugin} and jaxlib {jaxlib}, which must be equal; "
            f"pip install 'jax-cuda{found[0]}-plugin=={jaxlib}' 'jax-cuda{found[0]}-pjrt=={jaxlib}'"
        )


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False
