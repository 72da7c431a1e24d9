"""A hub on loopback with one small model, and empty caches for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.hub import resolve
from tests.helpers.hub_server import Hub, serve
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
    # Not $SAM2_3DMED_CACHE, so that the tests keep sharing their compiled programs.
    monkeypatch.setattr(resolve, "cache_folder", lambda: tmp_path / "cache")
    with serve(tmp_path / "hub") as running:
        # The client has read its environment already, when it was imported.
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "client"))
        yield running
