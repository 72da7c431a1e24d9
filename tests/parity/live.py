"""Live comparisons: they run if the reference is installed; otherwise they skip, or fail if CI requires them."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest

REQUIRE = "SAM2_3DMED_REQUIRE_PARITY"
SEED = 0
FAST = ("sam2_hiera_tiny", "sam2.1_hiera_tiny")
OTHERS = tuple(f"{family}_hiera_{name}" for name in ("small", "base_plus", "large") for family in ("sam2", "sam2.1"))


def reference(name: str) -> ModuleType:
    """Import a module that needs a reference: `torch`, `transformers` or one of `tests.parity`."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        reason = f"the live comparison needs {error.name}: install torch, transformers and Meta's sam2 1.1.0"
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{REQUIRE}=1, but {reason}")
        pytest.skip(reason, allow_module_level=True)
