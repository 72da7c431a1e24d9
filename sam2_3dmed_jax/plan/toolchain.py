"""Installation check of the compilers of a plan: libtpu for TPUs, JAX's CUDA plugin and NVIDIA's tools for GPUs."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.plan.topologies import Topology

# Keeps the compilers from searching for hardware or Google's metadata server, and from logging to the console.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # plans hold no hardware, so several may run at once
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
CUDA_VERSIONS = ("12", "13")


def check(topology: Topology) -> None:
    """Check that the compiler of a topology is installed in this environment.

    Raises:
        UserError: the compiler is not installed, or its version differs from jaxlib's.
    """
    if topology.chip.platform == "tpu":
        if not _is_installed("libtpu"):
            raise UserError(
                f"--topology {topology}: the TPU compiler, libtpu, is not installed; pip install 'sam2-3dmed-jax[plan]'"
            )
        return
    plugins = [cuda for cuda in CUDA_VERSIONS if _is_installed(f"jax_plugins.xla_cuda{cuda}")]
    if not plugins or not (_is_installed("nvidia.cuda_nvcc") or _is_installed("nvidia.cu13")):
        missing = "libdevice and ptxas (nvidia-cuda-nvcc)" if plugins else "JAX's CUDA plugin"
        raise UserError(
            f"--topology {topology}: the GPU compiler, {missing}, is not installed; pip install "
            "'sam2-3dmed-jax[plan-gpu]', best in a separate environment, because the plugin warns without a GPU"
        )
    plugin, jaxlib = metadata.version(f"jax-cuda{plugins[0]}-plugin"), metadata.version("jaxlib")
    if plugin != jaxlib:
        raise UserError(
            f"--topology {topology}: jax-cuda{plugins[0]}-plugin is {plugin}, but jaxlib is {jaxlib}; make them equal: "
            f"pip install 'jax-cuda{plugins[0]}-plugin=={jaxlib}' 'jax-cuda{plugins[0]}-pjrt=={jaxlib}'"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is not installed
        return False
