"""Segment a prepared volume from one click, with the exported programs next to this file.

    python run.py SLICES.npy SLICE X Y LOGITS.npy

SLICES.npy: float32 [D, S, S, 3], prepared as README.md says. X and Y: pixels of slice SLICE. LOGITS.npy: float32
[D, S/4, S/4], positive inside the object. Needs NumPy, and `jax` and `flatbuffers` (StableHLO) or `onnxruntime` (ONNX).
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
POINTS, STEPS, EMPTY = MANIFEST["points"], MANIFEST["steps"], -(1 << 20)


def load_programs():
    """Return the programs by name; each maps a dictionary of arrays to a dictionary of arrays."""
    load = load_onnx if MANIFEST["format"] == "onnx" else load_stablehlo
    return {name: load(name) for name in MANIFEST["programs"]}


def load_onnx(name):
    """Return a program that ONNX Runtime runs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(FOLDER / f"{name}.onnx")
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def load_stablehlo(name):
    """Return a program that JAX runs on its default device; it is compiled at its first call."""
    import jax
    import jax.export

    platform = jax.default_backend().replace("gpu", "cuda")
    file = FOLDER / f"{name}.{platform}.stablehlo"
    call = jax.jit(jax.export.deserialize(bytearray(file.read_bytes())).call)
    return lambda inputs: jax.device_get(call(weights_on_device(), inputs))


@functools.cache
def weights_on_device():
    """Return the weights, which all programs share."""
    import jax

    with np.load(FOLDER / "weights.npz") as arrays:
        return jax.device_put(dict(arrays))


def segment(programs, slices, index, points, labels):
    """Return logits float32 [D, S/4, S/4] of the object that points show on slice `index`.

    Args:
        programs: result of `load_programs`.
        slices: float32 [D, S, S, 3], prepared.
        index: the prompted slice.
        points: (x, y) in pixels, at most `POINTS`; the corners of a box come first.
        labels: per point 1 inside, 0 outside, 2 and 3 the top left and bottom right corner of a box.
    """
    depth, unused = len(slices), POINTS - len(labels)
    encoded = [programs["encode"]({"images": image[None]}) for image in slices]
    features = {name: np.concatenate([arrays[name] for arrays in encoded]) for name in encoded[0]}
    if "context" in programs:
        position = features.pop("position")
        position = np.pad(position, [(0, max(0, MANIFEST["context_slices"] - depth)), (0, 0)])
        features |= programs["context"]({"position": position, "depth": np.array(depth, np.int32)})

    result = programs["prompt"](
        {name: array[index : index + 1] for name, array in features.items()}
        | {"points": np.pad(np.array(points, np.float32), [(0, unused), (0, 0)])[None]}
        | {"labels": np.pad(np.array(labels, np.int32), (0, unused), constant_values=-1)[None]}
    )
    memory, pointer = result["memory"], result["pointer"]
    results = {index: {name: array[0] for name, array in result.items()}}
    for direction, path in ((1, np.arange(index + 1, depth)), (-1, np.arange(index)[::-1])):
        bank = {"prompted_memory": memory[:, None], "prompted_pointer": pointer[:, None]}
        bank |= {"prompted_slice": np.full((1, 1), index, np.int32)} | empty_slots(memory, pointer)
        # The pass down also sees the slices above the prompted one; the nearest is stored last.
        highest = min(index + (MANIFEST["remembered_slices"] or depth), max(results))
        for above in range(highest, index, -1):
            remember(programs, bank, above, results[above])
        for start in range(0, len(path), STEPS):
            block = path[start : start + STEPS]
            padded = np.pad(block, (0, STEPS - len(block)), constant_values=-1).astype(np.int32)
            steps = {"slice_index": padded, "direction": np.array([direction], np.int32)}
            steps |= {"depth": np.array(depth, np.int32)} | bank
            out = programs["propagate"]({name: array[padded] for name, array in features.items()} | steps)
            for step, slice_index in enumerate(block.tolist()):
                results[slice_index] = {name: array[step] for name, array in out.items()}
                remember(programs, bank, slice_index, results[slice_index])
    return np.stack([results[slice_index]["mask_logits"] for slice_index in range(depth)])


def empty_slots(memory, pointer):
    """Return the slots of unprompted slices, which are empty; `memory` and `pointer` are of one slice."""
    bank = {}
    for name, array in (("memory", memory), ("pointer", pointer)):
        slots = MANIFEST["recent"][name]
        bank[f"recent_{name}"] = np.zeros((1, slots, *array.shape[1:]), array.dtype)
        bank[f"recent_{name}_slice"] = np.full((1, slots), EMPTY, np.int32)
    if MANIFEST["memory_selection"] != "recent":
        bank["recent_memory_score"] = np.zeros((1, MANIFEST["recent"]["memory"]), np.float32)
    return bank


def remember(programs, bank, slice_index, result):
    """Store a slice: in rings in place of the oldest one, or as the program `remember` chooses."""
    if "remember" in programs:
        names = ("memory", "pointer", "predicted_iou", "object_score_logits")
        inputs = {name: np.asarray(result[name])[None] for name in names}
        stored = programs["remember"](bank | inputs | {"slice_index": np.array([slice_index], np.int32)})
        bank |= {name: np.array(array) for name, array in stored.items()}
        return
    for name in ("memory", "pointer"):
        slot = slice_index % MANIFEST["recent"][name]
        bank[f"recent_{name}"][0, slot], bank[f"recent_{name}_slice"][0, slot] = result[name], slice_index


if __name__ == "__main__":
    slices_file, index, x, y, logits_file = sys.argv[1:]
    point = (float(x), float(y))
    np.save(logits_file, segment(load_programs(), np.load(slices_file), int(index), [point], [1]))
