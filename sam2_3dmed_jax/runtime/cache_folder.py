"""The folder of everything that is kept between runs and can be made again: compiled programs, converted weights."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return `$SAM2_3DMED_CACHE`, or `~/.cache/sam2-3dmed`."""
    return Path(os.environ.get("SAM2_3DMED_CACHE") or Path.home() / ".cache" / "sam2-3dmed")
