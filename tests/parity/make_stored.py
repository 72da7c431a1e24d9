"""Write `data/PRESET.npz` and `data/PRESET.json` (provenance) from Meta's predictor; needs torch and `sam2`.

Run from the repository's root: `python -m tests.parity.make_stored`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time

import numpy as np

from tests.parity import compare, generated, meta, stored

COMMAND = "python -m tests.parity.make_stored"


def make(preset: str) -> None:
    """Run the reference and store what `test_stored` compares."""
    slices = generated.slices(stored.DEPTH, stored.SIZE, stored.SEED)
    model = meta.with_generated_weights(preset, stored.SIZE, stored.SEED)
    shapes = {name: list(shape) for name, shape in meta.shapes(model).items()}
    arrays: dict[str, np.ndarray] = {}
    for name, value in meta.stages(model, stored.SEED).items():
        arrays[f"stage/{name}"] = stored.sample(value)
        arrays[f"stage/{name}/largest"] = np.abs(value).max()
    for name, case in stored.CASES.items():
        model = meta.with_generated_weights(preset, stored.SIZE, stored.SEED, case.presence)
        tracked = meta.Video(model, slices).track(case.scenario)
        if case.presence == 1.0:
            assert compare.assert_informative(tracked) > compare.FAR * compare.LOGITS, "memory has no say"
        gated = (tracked.mask_logits[..., 0, 0] < compare.GATED).mean()
        print(
            f"{preset} {name}: absent on {gated:.0%} of slices, scores {tracked.object_score_logits.round(3).ravel()}"
        )
        arrays |= stored.pack(name, tracked)
    file = stored.DATA / f"{preset}.npz"
    np.savez_compressed(file, **arrays)
    provenance = {
        "preset": preset,
        "image_size": stored.SIZE,
        "slices": stored.DEPTH,
        "seed": stored.SEED,
        "upstream": meta.versions() | {"python": platform.python_version(), "numpy": np.__version__},
        "device": f"CPU, float32, {platform.machine()}",
        "command": COMMAND,
        "date": time.strftime("%Y-%m-%d"),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "inputs_sha256": stored.inputs_digest(shapes),
        "tolerance": {
            "stages": compare.FEATURES,
            "mask_logits": compare.LOGITS,
            "object_scores": compare.SCORES,
            "same_sign": compare.SAME_SIGN,
        },
        "tensors": shapes,
    }
    text = json.dumps(provenance, indent=1)
    (stored.DATA / f"{preset}.json").write_text(text + "\n")


if __name__ == "__main__":
    stored.DATA.mkdir(exist_ok=True)
    for preset in stored.PRESETS:
        make(preset)
