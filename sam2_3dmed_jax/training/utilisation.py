"""Model FLOPs utilisation: the train step's arithmetic as a share of the chips' peak (Chowdhery et al. 2022).

Matrix products and convolutions of the forward and backward pass count once, even if rematerialisation repeats them.
Blocked attention is the exception: it recomputes its scores in the backward pass, and both computations count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax

from sam2_3dmed_jax.config import ExperimentConfig, MeshConfig
from sam2_3dmed_jax.runtime.chips import chip_of
from sam2_3dmed_jax.runtime.jaxpr_flops import flops
from sam2_3dmed_jax.training.setup import abstract_run
from sam2_3dmed_jax.training.sharding import make_mesh


def step_flops(config: ExperimentConfig) -> int:
    """Return the FLOPs of a train step on a global batch. The step is traced, not compiled."""
    training = replace(config.training, remat_trunk="none", remat_slices="none", accumulation=1)
    plain = config.replace(training=training, mesh=MeshConfig(1, 1))
    run = abstract_run(plain, make_mesh(plain.mesh, jax.local_devices()[:1]))
    return flops(run.step.trace(run.state, run.frozen, run.batch).jaxpr)


def utilisation(config: ExperimentConfig, devices: Sequence[jax.Device]) -> Callable[[float], float] | None:
    """Return the function from seconds per step to the share of the devices' peak in `model.compute_dtype`.

    Returns:
        The function, or None if the peak is not known, as on a CPU.
    """
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        return None
    peak = chip.bf16_flops if config.model.compute_dtype == "bfloat16" else chip.float32_flops
    share = step_flops(config) / (peak * len(devices))
    return lambda seconds: share / seconds
