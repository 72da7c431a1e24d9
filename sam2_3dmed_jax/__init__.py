"""SAM2-3dMed in JAX: promptable segmentation of 3D medical images with SAM 2. For research use only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam2_3dmed_jax.hub.resolve import load_model
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.model.checkpoint import new_model, save_model
    from sam2_3dmed_jax.prompts.prompt import Prompt
    from sam2_3dmed_jax.scan.scan import Scan
    from sam2_3dmed_jax.scan.segment import segment

    __version__: str

__all__ = ["Prompt", "Scan", "VolumePredictor", "__version__", "load_model", "new_model", "save_model", "segment"]

# Modules of the public names; imported on first use, so that `import sam2_3dmed_jax` and `--help` stay fast.
_MODULES = {
    "Prompt": "sam2_3dmed_jax.prompts.prompt",
    "Scan": "sam2_3dmed_jax.scan.scan",
    "VolumePredictor": "sam2_3dmed_jax.inference.predictor",
    "load_model": "sam2_3dmed_jax.hub.resolve",
    "new_model": "sam2_3dmed_jax.model.checkpoint",
    "save_model": "sam2_3dmed_jax.model.checkpoint",
    "segment": "sam2_3dmed_jax.scan.segment",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("sam2-3dmed-jax")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
