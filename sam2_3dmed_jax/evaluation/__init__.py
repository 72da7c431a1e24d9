"""From masks to numbers, tables and pictures."""

from sam2_3dmed_jax.evaluation.overlap import overlap_metrics

__all__ = ["overlap_metrics"]
