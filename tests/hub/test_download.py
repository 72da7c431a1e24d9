"""Weights by name from a hub: ranges, damage, pinned revisions, offline use, and what is never fetched."""

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, hf_hub_download
from safetensors.numpy import load_file, save_file

from sam2_3dmed_jax import load_model
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.hub import catalog, resolve
from sam2_3dmed_jax.hub.catalog import Weights, WeightsFile
from sam2_3dmed_jax.hub.resolve import checkpoint_folder
from sam2_3dmed_jax.model.checkpoint import read_info
from sam2_3dmed_jax.sam2.parameters import split
from tests.helpers.hub_server import Hub
from tests.hub.conftest import ADDRESS, REPOSITORY

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def weights_file(hub: Hub) -> Path:
    return hub.folder / REPOSITORY / "model.safetensors"


def change(file: Path) -> None:
    """Replace a file of weights by other weights of the same model."""
    tensors = load_file(file)
    name = next(name for name, value in tensors.items() if value.ndim)
    save_file({**tensors, name: tensors[name] + np.float32(1)}, file, {"format": "pt"})


def forget_files(tmp_path: Path) -> None:
    """Delete what was downloaded and converted, but not the records of the first downloads."""
    shutil.rmtree(tmp_path / "client")
    for folder in (tmp_path / "cache" / "weights").glob("*/*/*/"):
        shutil.rmtree(folder)


def publish(monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    """Put an entry for the repository into the table of names."""
    entry = Weights("our_nano", REPOSITORY, **{"files": (WeightsFile("model.safetensors"),), **fields})
    monkeypatch.setattr(catalog, "CATALOG", (entry,))


def test_a_model_loaded_by_name_has_the_published_weights_and_image_size(hub: Hub, native: Path):
    loaded, expected = load_model(ADDRESS), load_model(native)
    assert loaded.config == expected.config
    weights = split(loaded)[1]
    for name, value in split(expected)[1].items():
        np.testing.assert_array_equal(weights[name], value)


def test_weights_are_downloaded_and_converted_once_and_then_need_no_hub(hub: Hub, capsys: pytest.CaptureFixture[str]):
    folder = checkpoint_folder(ADDRESS)
    assert "licence" in capsys.readouterr().err
    hub.requests.clear()
    assert checkpoint_folder(ADDRESS) == folder
    assert not hub.requests and not capsys.readouterr().err


def test_the_source_its_hash_and_the_licence_are_in_the_provenance(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    publish(monkeypatch, licence="BSD-3-Clause", revision=COMMIT)
    provenance = read_info(checkpoint_folder("our_nano")).provenance
    assert provenance["source"] == f"hf://{REPOSITORY}@{COMMIT}/model.safetensors"
    assert provenance["licence"] == "BSD-3-Clause"
    digest = hashlib.sha256(weights_file(hub).read_bytes()).hexdigest()
    assert provenance["sha256"] == {"model.safetensors": digest}


def test_a_broken_connection_resumes_where_it_stopped(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.break_after = 5 << 16
    checkpoint_folder(ADDRESS)
    ranges = [range_ for method, path, range_ in hub.downloads() if path.endswith("model.safetensors")]
    assert ranges == ["", f"bytes={5 << 16}-"]


def test_a_damaged_download_is_refused_and_deleted_so_that_the_next_one_works(hub: Hub, tmp_path: Path):
    hub.damaged = True
    with pytest.raises(UserError, match="was damaged or changed, and was deleted: run the same command again"):
        checkpoint_folder(ADDRESS)
    assert not list((tmp_path / "cache").rglob("config.json"))
    hub.damaged = False
    assert read_info(checkpoint_folder(ADDRESS)).sam2.preset == "nano"


def test_a_file_without_the_hash_of_the_table_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    publish(monkeypatch, files=(WeightsFile("model.safetensors", "ab" * 32),))
    digest = hashlib.sha256(weights_file(hub).read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"SHA-256 {digest[:12]}..., expected abababababab"):
        checkpoint_folder("our_nano")


def test_the_first_download_records_the_hash_and_a_later_one_must_have_it(hub: Hub, tmp_path: Path):
    checkpoint_folder(ADDRESS)
    (record,) = (tmp_path / "cache" / "weights").rglob("nano.json")
    assert json.loads(record.read_text())["sha256"] == hashlib.sha256(weights_file(hub).read_bytes()).hexdigest()
    forget_files(tmp_path)
    change(weights_file(hub))
    with pytest.raises(UserError, match="was damaged or changed"):
        checkpoint_folder(ADDRESS)


def test_the_first_download_records_the_commit_that_later_ones_ask_for(hub: Hub, tmp_path: Path):
    hub.commits[REPOSITORY] = COMMIT
    checkpoint_folder(ADDRESS)
    forget_files(tmp_path)
    hub.commits[REPOSITORY] = "f" * 40  # main has moved
    hub.requests.clear()
    checkpoint_folder(ADDRESS)
    asked = {path.split("/resolve/")[1].split("/")[0] for _, path, _ in hub.requests if "/resolve/" in path}
    assert asked == {COMMIT}


def test_the_revision_of_the_table_is_the_one_that_is_downloaded(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    publish(monkeypatch, revision=COMMIT)
    checkpoint_folder("our_nano")
    assert {path for _, path, _ in hub.requests if "/resolve/" in path} == {
        f"/{REPOSITORY}/resolve/{COMMIT}/{file}" for file in ("model.safetensors", "config.json")
    }


def test_what_the_client_has_downloaded_is_used_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for file in ("model.safetensors", "config.json"):
        hf_hub_download(REPOSITORY, file)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert read_info(checkpoint_folder(ADDRESS)).sam2.preset == "nano"
    assert not hub.requests


def test_without_a_network_the_error_names_the_fix_in_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="connect, set HF_ENDPOINT to a mirror, or use 'sam2-3dmed"):
        checkpoint_folder("sam2.1_hiera_tiny")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://lab/other", "the repository does not exist, or needs a login"),
        ("hf://lab/nano@v9", "the revision does not exist; give a commit, branch or tag"),
        ("hf://lab/nano/other.safetensors", "hf://lab/nano has no other.safetensors; name one of its files"),
        ("hf://lab", "it is not an address of weights"),
        ("hf://lab/nano@../../..", "it is not an address of weights"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_sentence(address: str, message: str, hub: Hub, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        checkpoint_folder(address)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_that_moves_it(hub: Hub, tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(resolve, "cache_folder", lambda: tmp_path / "file")
    with pytest.raises(UserError, match="set SAM2_3DMED_CACHE to a folder with room and write access"):
        checkpoint_folder(ADDRESS)


def test_a_local_folder_with_the_name_of_weights_wins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("sam2.1_hiera_tiny", "facebook/sam2.1-hiera-tiny"):
        Path(name).mkdir(parents=True)
        assert checkpoint_folder(name) == Path(name)
    assert not hub.requests


@pytest.mark.parametrize("path", ["runs/final", "lab/nano", "sam2.1_hiera_tyni", "facebook/sam2.1-hiera-tiny/x"])
def test_a_mistyped_path_is_never_looked_up_on_the_network(path: str, hub: Hub):
    with pytest.raises(UserError, match="or a name that 'sam2-3dmed download' lists"):
        load_model(path)
    assert not hub.requests


def test_the_message_about_the_missing_client_has_the_line_that_installs_it(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sam2-3dmed-jax\[hub\]'"):
        checkpoint_folder("sam2.1_hiera_tiny")


def test_weights_that_need_torch_are_refused_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    with pytest.raises(UserError, match=r"MedSAM2_latest.pt needs PyTorch .* pip install 'sam2-3dmed-jax\[torch\]'"):
        checkpoint_folder("MedSAM2")
    assert not hub.requests
