"""Rematerialisation: what the backward pass computes again instead of keeping it, to trade time for memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

from sam2_3dmed_jax.config import Remat
from sam2_3dmed_jax.sam2.layers import PRODUCT

P = ParamSpec("P")
R = TypeVar("R")

POLICIES: dict[Remat, Callable[..., Any]] = {
    # Products without a batch dimension are those with weights, which are expensive to repeat. The scores of attention
    # are not among them. Products in 16 bits are known by name, because their form depends on the platform.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(PRODUCT),
    ),
    "all": jax.checkpoint_policies.nothing_saveable,
}


def remat(function: Callable[P, R], policy: Remat) -> Callable[P, R]:
    """Return `function` with its intermediate values saved for the backward pass as `policy` says."""
    if policy == "none":
        return function
    # `prevent_cse` keeps its default: inside a scan or map there is nothing to merge with the first computation, and
    # outside, the barriers that prevent it cost nothing.
    checkpointed: Callable[P, R] = jax.checkpoint(function, policy=POLICIES[policy])
    return checkpointed
