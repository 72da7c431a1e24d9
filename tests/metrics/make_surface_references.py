"""Generator of the stored references: results of surface-distance, MONAI and MedPy for `surface_cases`, and the masks.

    python -m tests.metrics.make_surface_references

It needs `surface-distance==0.1`, `MedPy==0.5.2`, `monai==1.6.1`, torch, NumPy and SciPy, but not JAX.
"""

import datetime
import hashlib
import io
import json
import platform
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tests.helpers.surface_cases import PACKAGE_METRICS, make_cases

DATA = Path(__file__).parent / "data"


def main() -> None:
    cases = make_cases()
    masks = {name: np.packbits(np.stack([case.prediction, case.reference])) for name, case in cases.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **masks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = {
            name: {
                "shape": case.reference.shape,
                "spacing": case.spacing,
                "tolerance": case.tolerance,
                "metrics": {definition: ask(case) for definition, ask in PACKAGE_METRICS.items()},
            }
            for name, case in cases.items()
        }
    packages = ("surface-distance", "monai", "MedPy", "torch", "scipy", "numpy")
    content = {
        "upstream": {package: version(package) for package in packages} | {"python": platform.python_version()},
        "seed": "in surface_cases.make_cases",
        "command": "python -m tests.metrics.make_surface_references",
        "date": datetime.date.today().isoformat(),
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "cases": results,
    }
    DATA.mkdir(exist_ok=True)
    (DATA / "surface.npz").write_bytes(buffer.getvalue())
    (DATA / "surface.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
