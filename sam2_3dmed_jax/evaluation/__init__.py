"""Evaluation: from predictions to scores, summaries, comparisons and reports."""

from sam2_3dmed_jax.metrics.overlap import overlap_metrics
from sam2_3dmed_jax.metrics.surface import surface_metrics

__all__ = ["overlap_metrics", "surface_metrics"]
