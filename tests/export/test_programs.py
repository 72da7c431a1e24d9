"""Exported programs: StableHLO and ONNX agree with `VolumePredictor` and with stored outputs of Meta's predictor."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sam2_3dmed_jax import Prompt, VolumePredictor, new_model
from sam2_3dmed_jax.export.onnx import write_onnx
from sam2_3dmed_jax.export.stablehlo import PLATFORMS, write_stablehlo
from sam2_3dmed_jax.model.checkpoint import assemble, read_info, with_memory_selection
from sam2_3dmed_jax.sam2.parameters import split
from tests.parity import compare, generated, ours, stored
from weights_conversion.convert import convert_checkpoint

pytestmark = pytest.mark.slow  # each program is compiled

WRITERS: dict[str, Callable[..., None]] = {"stablehlo": write_stablehlo, "onnx": write_onnx}
# Largest difference of logits to `VolumePredictor`, relative to the largest logit: rounding of float32 products in
# another order. Measured with the model below: at most 1.1e-6 in both formats.
TOLERANCE = 1e-5
SIZE, SLICES, CLICKED, CLICK = 64, 20, 12, (25.0, 33.0)


def model_with_context() -> Any:
    """Return a nano SAM2-3dMed whose zero-initialised weights have other values, so that SRPP and BD have an effect."""
    model = new_model("nano", image_size=SIZE, with_3dmed=True)
    weights = {name: np.array(value) for name, value in split(model)[1].items()}
    for name, value in weights.items():
        if not value.any():
            weights[name] = 0.05 * generated.uniform(name, value.shape, 0)
    return assemble(weights, model.info)


def load_runner(folder: Path) -> ModuleType:
    """Import `run.py` of an exported folder."""
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> Any:
    return model_with_context()


@pytest.fixture(scope="module")
def slices() -> np.ndarray:
    return generated.slices(SLICES, SIZE, 0)


@pytest.fixture(scope="module")
def expected(model: Any, slices: np.ndarray) -> np.ndarray:
    """Return the logits of `VolumePredictor`."""
    result = VolumePredictor(model).predict(slices, [Prompt(1, CLICKED, (CLICK,), (1,))])
    return result.mask_logits[0]


@pytest.fixture(scope="module", params=WRITERS)
def exported(request: pytest.FixtureRequest, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](model, folder)
    return folder


def test_the_runner_without_this_package_gives_the_logits_of_the_predictor(
    exported: Path, slices: np.ndarray, expected: np.ndarray, tmp_path: Path
):
    np.save(tmp_path / "slices.npy", slices)
    # `-I` and a blocked import: the runner may not use this package, even where it is installed.
    code = (
        "import sys, runpy; sys.modules['sam2_3dmed_jax'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    words = [exported / "run.py", tmp_path / "slices.npy", CLICKED, *CLICK, tmp_path / "logits.npy"]
    subprocess.run([sys.executable, "-I", "-c", code, *map(str, words)], check=True)
    logits = np.load(tmp_path / "logits.npy")
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_the_context_of_slices_changes_the_exported_masks(exported: Path, slices: np.ndarray, expected: np.ndarray):
    runner = load_runner(exported)
    programs = runner.load_programs()
    zero_context = programs | {
        "context": lambda inputs: {"context": np.zeros_like(programs["context"](inputs)["context"])}
    }
    logits = runner.segment(zero_context, slices[: CLICKED + 1], CLICKED, [CLICK], [1])
    assert np.abs(logits[-1] - expected[CLICKED]).max() > 100 * TOLERANCE * np.abs(expected).max()


def test_programs_exist_for_cpu_cuda_and_tpu(model: Any, exported: Path):
    manifest = json.loads((exported / "manifest.json").read_text())
    ends = [f".{platform}.stablehlo" for platform in PLATFORMS] if manifest["format"] == "stablehlo" else [".onnx"]
    files = {f"{name}{end}" for name in ("encode", "prompt", "propagate", "context") for end in ends}
    assert files == {path.name for path in exported.iterdir() if path.suffix in (".stablehlo", ".onnx")}


@pytest.mark.long  # by hand: compiles the predictor's and the exported programs of one more model
def test_stablehlo_programs_choose_memories_as_the_predictor_does(slices: np.ndarray, tmp_path: Path):
    plain = new_model("nano", image_size=SIZE)
    weights = {name: np.array(value) for name, value in split(plain)[1].items()}
    weights["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += 2
    weights["sam_mask_decoder.iou_prediction_head.layers.2.bias"] += 1  # above and below the limit of admission
    logits = {}
    for rule in ("recent", "self-sorting"):
        model = with_memory_selection(assemble(weights, plain.info), rule)
        logits[rule] = VolumePredictor(model).predict(slices, [Prompt(1, CLICKED, (CLICK,), (1,))]).mask_logits[0]
    write_stablehlo(model, tmp_path)
    runner = load_runner(tmp_path)
    found = runner.segment(runner.load_programs(), slices, CLICKED, [CLICK], [1])
    largest = np.abs(logits["self-sorting"]).max()
    assert np.abs(found - logits["self-sorting"]).max() <= TOLERANCE * largest
    assert np.abs(found - logits["recent"]).max() > 100 * TOLERANCE * largest


def stored_model(preset: str, presence: float, folder: Path) -> Any:
    """Return the model of the stored outputs."""
    provenance = json.loads((stored.DATA / f"{preset}.json").read_text())
    source, checkpoint = folder / "official.safetensors", folder / preset
    save_file(generated.weights(provenance["tensors"], stored.SEED, presence), source)
    convert_checkpoint(source, checkpoint, image_size=stored.SIZE)
    model = ours.load(checkpoint, stored.SIZE)
    model.info = read_info(checkpoint)
    return model


@pytest.mark.parametrize("kind", WRITERS)
def test_exported_programs_agree_with_stored_outputs_of_meta(kind: str, tmp_path: Path):
    preset, name, size = "sam2.1_hiera_tiny", "three_objects_and_a_correction", stored.SIZE
    case = stored.CASES[name]
    folder = tmp_path / kind
    folder.mkdir()
    WRITERS[kind](stored_model(preset, case.presence, tmp_path), folder)
    runner = load_runner(folder)
    programs = runner.load_programs()
    volume = generated.slices(stored.DEPTH, size, stored.SEED)
    logits = []
    for ask in case.scenario[0]:  # one click, two clicks, and a box with a click
        corners = ask.corners(size)
        box = [corners[:2], corners[2:]] if corners else []
        labels = [2, 3][: len(box)] + ask.labels()
        logits.append(runner.segment(programs, volume, ask.slice, box + ask.coords(size), labels))
    result = np.stack(logits)
    with np.load(stored.DATA / f"{preset}.npz") as arrays:
        theirs, largest = arrays[f"{name}/logits"][0], arrays[f"{name}/largest"][0]
        both_rounds = (2, *result.shape)
        inside = np.unpackbits(arrays[f"{name}/inside"], count=np.prod(both_rounds)).reshape(both_rounds)[0]
    error = (np.abs(result[..., ::4, ::4] - theirs) / largest[..., None, None]).max()
    same_sign = ((result > 0) == inside).mean()
    print(f"\n{kind}: error {error:.1e} of the largest logit, same sign {100 * same_sign:.4f} %")
    assert error <= compare.LOGITS
    assert same_sign >= compare.SAME_SIGN
