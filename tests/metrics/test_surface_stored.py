"""Surface metrics equal the results of surface-distance, MONAI and MedPy: stored, and live if they are installed."""

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam2_3dmed_jax.evaluation import surface_metrics
from tests.helpers.surface_cases import DEFINITIONS, PACKAGE_METRICS, Case, blobs, make_cases

DATA = Path(__file__).parent / "data"
STORED = json.loads((DATA / "surface.json").read_text())
# MONAI interpolates between ranks in float32, whose digits thousands of ranks mostly use up. The others compute as this
# package does, and only the order of sums of areas differs.
TOLERANCE = {"surface-distance": 1e-12, "monai": 1e-5, "medpy": 1e-12}
PACKAGES = {"surface-distance": "surface_distance", "monai": "monai", "medpy": "medpy"}


def load(name: str, stored: dict[str, Any]) -> Case:
    shape = stored["shape"]
    with np.load(DATA / "surface.npz") as file:
        masks = np.unpackbits(file[name], count=2 * int(np.prod(shape))).reshape(2, *shape).astype(bool)
    return Case(*masks, tuple(stored["spacing"]), stored["tolerance"])


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("name", STORED["cases"])
def test_metrics_equal_the_stored_results_of_the_packages(name: str, definition: str):
    stored = STORED["cases"][name]
    metrics = surface_metrics(*load(name, stored), definition)
    expected = stored["metrics"][definition]
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=TOLERANCE[definition])


def test_the_stored_masks_have_the_recorded_hash_and_names():
    assert hashlib.sha256((DATA / "surface.npz").read_bytes()).hexdigest() == STORED["sha256"]
    assert set(STORED["upstream"]) >= {"surface-distance", "monai", "MedPy", "numpy", "scipy"}
    assert list(make_cases()) == list(STORED["cases"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("definition", DEFINITIONS)
def test_metrics_equal_the_installed_package(definition: str):
    try:
        importlib.import_module(PACKAGES[definition])
    except ModuleNotFoundError:
        # CI installs the light one of the three.
        if os.environ.get("SAM2_3DMED_REQUIRE_PARITY") == "1" and definition == "surface-distance":
            pytest.fail("surface-distance is not installed: pip install -r tests/metrics/requirements.txt")
        pytest.skip(f"the live comparison needs {PACKAGES[definition]}: see make_surface_references.py")
    rng = np.random.default_rng(3)
    cases = list(make_cases().values())
    for seed in range(20):
        spacing = tuple(rng.uniform(0.5, 5, 3).tolist())
        masks = blobs(100 + seed, tuple(rng.integers(8, 30, 3).tolist()))
        if all(mask.any() for mask in masks):
            cases.append(Case(*masks, spacing, float(rng.integers(1, 4)) * spacing[seed % 3]))
    for case in cases:
        expected = PACKAGE_METRICS[definition](case)
        metrics = surface_metrics(*case, definition)
        assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=TOLERANCE[definition])
