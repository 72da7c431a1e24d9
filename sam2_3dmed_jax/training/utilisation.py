"""Model FLOPs utilisation: what share of the chips' peak the step's own arithmetic makes up (Chowdhery et al. 2022).

Products and convolutions of forward and backward pass count once, however often rematerialisation repeats them (but
attention in blocks, which repeats its scores in the backward pass, counts as it is traced).
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
    """FLOPs of a train step on a global batch; traced, neither compiled nor run."""
    training = replace(config.training, remat_trunk="none", remat_slices="none", accumulation=1)
    plain = config.replace(training=training, mesh=MeshConfig(1, 1))
    run = abstract_run(plain, make_mesh(plain.mesh, jax.local_devices()[:1]))
    return flops(run.step.trace(run.state, run.frozen, run.batch).jaxpr)


def utilisation(config: ExperimentConfig, devices: Sequence[jax.Device]) -> Callable[[float], float] | None:
    """The function (seconds a step) -> share of the devices' peak in `model.compute_dtype`.

    None where the peak is not known, as on a CPU.
    """
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        return None
    peak = chip.bf16_flops if config.model.compute_dtype == "bfloat16" else chip.float32_flops
    share = step_flops(config) / (peak * len(devices))
    return lambda seconds: share / seconds
