"""Report of an evaluation: one HTML page, readable offline, with tables, plots and pictures of the worst cases."""

from sam2_3dmed_jax.evaluation.report.page import report_page

__all__ = ["report_page"]
