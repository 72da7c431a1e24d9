"""An evaluation as one HTML page that needs no network: tables, plots, and the worst cases as pictures."""

from sam2_3dmed_jax.evaluation.report.page import report_page

__all__ = ["report_page"]
