"""What all exported folders contain: hashes of their files, and preprocessing in words."""

from __future__ import annotations

from pathlib import Path

from sam2_3dmed_jax.config import PreprocessingConfig
from sam2_3dmed_jax.runtime.hashing import sha256_of_file
from sam2_3dmed_jax.volume.intensity import WINDOWS

HASHES = "SHA256SUMS"


def write_hashes(folder: Path) -> None:
    """Write the SHA-256 of all files of a folder, as `sha256sum -c SHA256SUMS` reads them."""
    lines = [f"{sha256_of_file(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.is_file()]
    (folder / HASHES).write_text("".join(lines), encoding="utf-8")


def describe_preprocessing(preprocessing: PreprocessingConfig) -> str:
    """Return modality and window in words, such as "CT with the window soft_tissue (level 40, width 400 HU)"."""
    window = preprocessing.window
    text = f"{preprocessing.modality or 'CT'} with the window {window}"
    if window in WINDOWS:
        level, width = WINDOWS[window]
        text += f" (level {level:g}, width {width:g} HU)"
    elif "%" in window:
        text += " (percentiles of each scan)"
    else:
        text += " (level, width in HU)"
    return text
