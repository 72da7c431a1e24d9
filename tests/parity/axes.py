"""Axis orders: the references have channels first, or tokens before the batch."""

from __future__ import annotations

import torch


def channels_first(x: torch.Tensor) -> torch.Tensor:
    """Transpose `[B, H, W, C]` to `[B, C, H, W]`."""
    return x.permute(0, 3, 1, 2).contiguous()


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Transpose `[B, C, H, W]` to `[B, H, W, C]`."""
    return x.permute(0, 2, 3, 1)


def tokens_first(x: torch.Tensor) -> torch.Tensor:
    """Transpose `[B, H, W, C]` to the predictor's `[N, B, C]`."""
    return x.flatten(1, 2).transpose(0, 1)


def tokens_last(x: torch.Tensor, side: int) -> torch.Tensor:
    """Transpose `[N, B, C]` to `[B, H, W, C]`."""
    return x.transpose(0, 1).unflatten(1, (side, side))
