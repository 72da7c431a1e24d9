"""Files next to exported programs: `run.py`, its `manifest.json`, and a README that explains their inputs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from sam2_3dmed_jax.export.folder import describe_preprocessing, write_hashes
from sam2_3dmed_jax.export.programs import POINTS
from sam2_3dmed_jax.runtime.imagenet import IMAGENET_MEAN, IMAGENET_STD
from sam2_3dmed_jax.sam2.memory_selection import memory_rule, ring_sizes
from sam2_3dmed_jax.sam2.model import SAM2

PACKAGES = {"stablehlo": "jax flatbuffers", "onnx": "onnxruntime"}

_README = """# {preset} at {size} px as {format} programs

For research use only. Not for diagnosis or treatment.

`run.py` segments one object of a prepared volume from a click, with `pip install numpy {packages}` and nothing else:

```sh
python run.py SLICES.npy SLICE X Y LOGITS.npy
```

- `SLICES.npy`: float32 `[D, {size}, {size}, 3]`. The input of the model is {preprocessing}: map this window to
  [0, 1], resize each slice to {size} x {size} pixels, repeat it three times, subtract {mean} and divide by {std}.
- `LOGITS.npy`: float32 `[D, {quarter}, {quarter}]`, positive inside the object.

`run.py` propagates up, then down, from one prompted slice with at most {points} points, of which a box takes two. Call
it once per object. `manifest.json` describes the programs, and `SHA256SUMS` has the hash of each file.
"""


def write_runner(
    model: SAM2,
    folder: Path,
    kind: Literal["stablehlo", "onnx"],
    programs: Iterable[str],
    steps: int,
    context_slices: int,
) -> None:
    """Write `run.py`, `manifest.json`, `README.md` and `SHA256SUMS` into a folder of exported programs.

    Args:
        model: the exported model.
        folder: the folder.
        kind: format of the programs.
        programs: their names.
        steps: slices that one call of `propagate` takes.
        context_slices: slices to which the input of `context` is padded at least.
    """
    info, sizes = model.info, ring_sizes(model.config)
    bounded = memory_rule(model.config.memory_selection).bounded
    manifest = {
        "format": kind,
        "programs": list(programs),
        "preset": info.sam2.preset,
        "image_size": model.config.image_size,
        "points": POINTS,
        "steps": steps,
        "context_slices": context_slices,
        "recent": {"memory": sizes.memories, "pointer": sizes.pointers},
        "memory_selection": model.config.memory_selection,
        "remembered_slices": max(sizes) if bounded else None,
        "preprocessing": {"window": info.preprocessing.window, "modality": info.preprocessing.modality},
        "provenance": info.provenance,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    (folder / "run.py").write_text(Path(__file__).with_name("run.py").read_text(encoding="utf-8"), encoding="utf-8")
    text = _README.format(
        preset=info.sam2.preset,
        size=model.config.image_size,
        quarter=model.config.image_size // 4,
        format=kind,
        packages=PACKAGES[kind],
        preprocessing=describe_preprocessing(info.preprocessing),
        mean=list(IMAGENET_MEAN),
        std=list(IMAGENET_STD),
        points=POINTS,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    write_hashes(folder)
