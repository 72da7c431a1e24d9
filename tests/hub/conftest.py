"""A hub on loopback with one small model, and empty caches for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sam2_3dmed_jax import new_model, save_model
from tests.helpers.hub_server import Hub
from tests.helpers.local_hub import local_hub
from weights_conversion.convert import convert_checkpoint

REPOSITORY = "lab/nano"
ADDRESS = f"hf://{REPOSITORY}"


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native checkpoint that the repository on the hub has in the layout of transformers."""
    folder = tmp_path_factory.mktemp("native") / "nano"
    save_model(new_model("nano", 64, seed=7), folder)
    return folder


@pytest.fixture(scope="session")
def transformers_folder(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformers") / "nano"
    convert_checkpoint(native, folder, to="transformers")
    return folder


@pytest.fixture
def hub(transformers_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that `huggingface_hub` uses, as it would with `HF_ENDPOINT`, with an empty cache of its own and of ours."""
    repository = tmp_path / "hub" / REPOSITORY
    repository.mkdir(parents=True)
    for file in transformers_folder.iterdir():
        (repository / file.name).write_bytes(file.read_bytes())
    with local_hub(tmp_path / "hub", tmp_path, monkeypatch) as running:
        yield running
