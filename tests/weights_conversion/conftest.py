"""Small random checkpoints in every layout, and a check that a conversion is refused in one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sam2_3dmed_jax import new_model, save_model
from weights_conversion.__main__ import main
from weights_conversion.mapping import Layout
from weights_conversion.presets import fit, native_shapes, plain

Tensors = dict[str, np.ndarray]
NAMES = Path(__file__).parent / "data" / "official_names_and_shapes.json.gz"


@pytest.fixture(scope="session")
def official() -> dict[str, dict[str, dict[str, tuple[int, ...]]]]:
    """Names and shapes of the official checkpoints: layout, preset, name."""
    stored = json.loads(gzip.decompress(NAMES.read_bytes()))
    return {
        layout: {preset: {name: tuple(shape) for name, shape in names.items()} for preset, names in presets.items()}
        for layout, presets in stored.items()
    }


def random_tensors(layout: Layout, seed: int = 0) -> Tensors:
    """Return random values for every tensor of nano in a foreign layout, without the transforms of the converter."""
    rng = np.random.default_rng(seed)
    shapes = fit({}, plain("nano"), layout).mapping.foreign_shapes(native_shapes(plain("nano")))
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    if layout == "transformers":
        shared = tensors["shared_image_embedding.positional_embedding"]
        tensors["prompt_encoder.shared_embedding.positional_embedding"] = shared
    return tensors


@pytest.fixture(scope="session")
def meta_tensors() -> Tensors:
    return random_tensors("meta")


@pytest.fixture(scope="session")
def transformers_tensors() -> Tensors:
    return random_tensors("transformers")


@pytest.fixture
def meta_file(meta_tensors: Tensors, tmp_path: Path) -> Path:
    save_file(meta_tensors, tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors"


@pytest.fixture
def transformers_folder(transformers_tensors: Tensors, tmp_path: Path) -> Path:
    folder = tmp_path / "transformers"
    folder.mkdir()
    save_file(transformers_tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "sam2_video", "image_size": 128}))
    return folder


@pytest.fixture(scope="session")
def with_3dmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native folder with SRPP and BD."""
    folder = tmp_path_factory.mktemp("native") / "fine_tuned"
    save_model(new_model("nano", 64, with_3dmed=True, seed=3), folder)
    return folder


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a conversion, checks that it fails and leaves no file, and returns the error."""

    def check(source: Path, *words: str, to: str = "out/result") -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(["convert", str(source), str(tmp_path / to), *words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]

    return check
