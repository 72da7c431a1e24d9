"""Rule for the dtype in which a loaded model predicts: bfloat16 on devices that multiply in it, else float32.

Meta's reference predicts in bfloat16 on GPUs, too. Training does not use the rule: its dtype is `model.compute_dtype`,
so that a run resumes to the same numbers on any machine.
"""

from __future__ import annotations

from typing import Literal, get_args

from sam2_3dmed_jax.errors import CHOICES, UserError, listed
from sam2_3dmed_jax.runtime import cpu_bfloat16

ComputeDtype = Literal["float32", "bfloat16"]
ComputeDtypeChoice = Literal["auto", "float32", "bfloat16"]
COMPUTE_DTYPES: tuple[str, ...] = get_args(ComputeDtypeChoice)
AMPERE = 8  # major CUDA compute capability of the first NVIDIA GPUs with bfloat16 matrix units


def resolve_compute_dtype(choice: ComputeDtypeChoice) -> ComputeDtype:
    """Return the dtype in which to predict; "auto" decides by the devices of JAX.

    Args:
        choice: "auto", or the dtype itself.

    Raises:
        UserError: another word.
    """
    if choice not in COMPUTE_DTYPES:
        raise UserError(f"compute_dtype: '{choice}' does not exist; choose from {listed(COMPUTE_DTYPES, CHOICES)}")
    if choice != "auto":
        return choice
    import jax  # here, because commands name the choices in their help, which loads no JAX

    backend = jax.default_backend()
    if backend == "cpu":
        return "bfloat16" if cpu_bfloat16.is_faster() else "float32"
    has_bfloat16 = backend in ("gpu", "tpu") and not _is_before_ampere(jax.local_devices()[0])
    return "bfloat16" if has_bfloat16 else "float32"


def _is_before_ampere(device: object) -> bool:
    """Return whether a device is an NVIDIA GPU without bfloat16; others report no compute capability, or a name."""
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return major.isdigit() and int(major) < AMPERE
