"""What the backward pass computes again instead of keeping it: memory for time, in one place for trunk and walk."""

from __future__ import annotations

from collections.abc import Callable

import jax

from sam2_3dmed_jax.config import Remat

POLICIES: dict[Remat, Callable] = {
    # Products without a batch dimension are those with weights: dear to repeat. Attention's scores are not among them.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "all": jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(f: Callable, remat: Remat) -> Callable:
    """`f`, of whose intermediate values the backward pass keeps those that the policy `remat` names."""
    # Inside a scan or map nothing can be merged with the first computation, so nothing needs to prevent it; outside,
    # the barriers that do cost nothing either.
    return f if remat == "none" else jax.checkpoint(f, policy=POLICIES[remat])
