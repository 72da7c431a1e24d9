"""What the page must know about an image: its grid, intensity windows, and the formats of its segmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.scan.scan import Scan
from sam2_3dmed_jax.server.page.display_grid import DisplayGrid
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import PERCENTILES, WINDOWS, window_of
from sam2_3dmed_jax.volume.io import prepare_segmentation
from sam2_3dmed_jax.volume.modality import CT

_CT_WINDOWS = ("soft_tissue", "lung", "mediastinum", "liver", "bone")
_OTHER_WINDOWS = {"Usual": PERCENTILES, "Wide": "0%,100%", "Bright": "50%,99.9%", "Dark": "0.5%,80%"}


@dataclass(frozen=True)
class SaveFormat:
    """A kind of file that the page can save.

    Attributes:
        label: on the button.
        file_name: of the download.
        write: takes a scan with complete masks, and the path.
        companions: other files next to it belong to it.
    """

    label: str
    file_name: str
    write: Callable[[Scan, Path], None]
    companions: bool = False


SAVE_FORMATS = {
    "nifti": SaveFormat("NIfTI", "segmentation.nii.gz", Scan.save),
    "dicom-seg": SaveFormat("DICOM-SEG", "segmentation.dcm", Scan.save),
    "prompts": SaveFormat("Prompts (JSON)", "prompts.json", Scan.save_prompts, companions=True),
}


def image_description(name: str, session_id: str, volume: Volume) -> dict[str, Any]:
    """Return the fields of the message `opened` about the image.

    Args:
        name: of the image on the page.
        session_id: of its session.
        volume: the image.
    """
    return {
        "name": name,
        "url": f"page/sessions/{session_id}/image.nii",
        **volume_description(volume),
        "formats": [
            {"id": key, "label": entry.label} for key, entry in SAVE_FORMATS.items() if _can_write(entry, volume)
        ],
    }


def volume_description(volume: Volume) -> dict[str, Any]:
    """Return what is needed to show a volume: its grid on the page, modality, millilitres per voxel, and windows."""
    grid = DisplayGrid(volume.grid)
    return {
        "shape": list(grid.shape),
        "spacing": list(grid.spacing),
        "modality": volume.modality,
        "voxelMl": volume.voxel_volume_ml,
        "windows": _windows(volume),
    }


def _windows(volume: Volume) -> list[dict[str, Any]]:
    if volume.modality == CT:
        named = {name.replace("_", " ").capitalize(): WINDOWS[name] for name in _CT_WINDOWS}
    else:
        named = {name: window_of(volume, window) for name, window in _OTHER_WINDOWS.items()}
    return [{"name": name, "level": level, "width": width} for name, (level, width) in named.items()]


def _can_write(save_format: SaveFormat, volume: Volume) -> bool:
    """Return whether the files of the image allow a format: DICOM-SEG needs a DICOM series."""
    if save_format.file_name.endswith(".json"):
        return True
    try:
        prepare_segmentation(save_format.file_name, volume, {})
    except UserError:
        return False
    return True
