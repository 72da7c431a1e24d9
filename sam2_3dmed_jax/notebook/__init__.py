"""Widget for notebooks: segmentation by clicks in Jupyter, on the same core as the server."""

from sam2_3dmed_jax.errors import UserError

try:
    from sam2_3dmed_jax.notebook.volume_widget import VolumeWidget
except ModuleNotFoundError as error:
    if error.name not in ("anywidget", "ipywidgets", "traitlets"):
        raise
    raise UserError(f"VolumeWidget needs {error.name}; pip install 'sam2-3dmed-jax[notebook]'") from error

__all__ = ["VolumeWidget"]
