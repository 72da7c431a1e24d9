"""The cache of features: the same masks, bounded, and harmless when it is damaged or cannot be written."""

from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.segfm3d.feature_cache import FeatureCache, _read
from experiments.segfm3d.segment import GREY_WINDOW
from sam2_3dmed_jax import VolumePredictor
from sam2_3dmed_jax.errors import FileWarning
from sam2_3dmed_jax.inference import device_memory, feature_store
from sam2_3dmed_jax.inference.feature_store import EncodedSlices, FeatureStore
from sam2_3dmed_jax.sam2.model import SliceFeatures
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.intensity import PreparedSlices
from tests.helpers.scans import small_model

SIZE = 64


@pytest.fixture(scope="module")
def predictor() -> VolumePredictor:
    return VolumePredictor(small_model())


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per call of the encoder."""
    calls: list[int] = []
    encode = feature_store.encode_block

    def counted(*arguments):
        calls.append(1)
        return encode(*arguments)

    monkeypatch.setattr(feature_store, "encode_block", counted)
    return calls


def slices(seed: int = 0, depth: int = 18) -> PreparedSlices:
    images = np.random.default_rng(seed).integers(0, 256, (depth, 20, 24), dtype=np.uint8)
    return PreparedSlices(Volume(images, Grid(images.shape, np.eye(4), is_canonical=True)), GREY_WINDOW, SIZE)


def features(store: FeatureStore) -> list[np.ndarray]:
    found, context = store.gather(range(store.depth))
    return [*map(np.asarray, found), context]


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("on_device", [False, True])
def test_a_second_call_on_an_image_encodes_nothing_and_has_the_same_features(
    on_device: bool, predictor, encodings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(device_memory, "has_room", lambda array: on_device)
    first = features(FeatureCache(tmp_path, "weights").encoded(predictor, slices(), None))
    assert len(encodings) == 2  # blocks of 16 slices
    second = features(FeatureCache(tmp_path, "weights").encoded(predictor, slices(), None))
    assert len(encodings) == 2 and len(entries(tmp_path)) == 1
    direct = features(predictor.encode(slices()))
    for one, other, expected in zip(first, second, direct, strict=True):
        np.testing.assert_array_equal(one, expected)
        np.testing.assert_array_equal(other, expected)


def test_another_image_or_model_has_another_entry(predictor, tmp_path: Path):
    for seed, model in ((0, "weights"), (1, "weights"), (0, "other")):
        FeatureCache(tmp_path, model).encoded(predictor, slices(seed), None)
    assert len(entries(tmp_path)) == 3


def test_the_least_recently_used_entry_is_deleted_when_the_limit_is_reached(predictor, encodings, tmp_path: Path):
    FeatureCache(tmp_path, "weights").encoded(predictor, slices(0, 2), None)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.npy"))
    (tmp_path / "file of a user").touch()
    cache = FeatureCache(tmp_path, "weights", 2.5 * size / 2**30)
    for seed in (1, 0, 2):  # 0 is used again before 2 makes the cache full
        cache.encoded(predictor, slices(seed, 2), None)
    assert len(entries(tmp_path)) == 3 and len(encodings) == 3
    cache.encoded(predictor, slices(0, 2), None)
    assert len(encodings) == 3
    cache.encoded(predictor, slices(1, 2), None)
    assert len(encodings) == 4


def test_an_image_larger_than_the_limit_is_encoded_with_a_warning(predictor, tmp_path: Path):
    cache = FeatureCache(tmp_path / "cache", "weights", 1e-6)
    with pytest.warns(FileWarning, match="allow more with --cache-gib"):
        store = cache.encoded(predictor, slices(0, 2), None)
    np.testing.assert_array_equal(features(store)[0], features(predictor.encode(slices(0, 2)))[0])
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_a_damaged_entry_is_encoded_again_and_replaced(damage, predictor, encodings, tmp_path: Path):
    cache = FeatureCache(tmp_path, "weights")
    cache.encoded(predictor, slices(0, 2), None)
    (entry,) = tmp_path.iterdir()
    (entry / "1.npy").unlink() if damage is None else (entry / "1.npy").write_bytes(damage)
    cache.encoded(predictor, slices(0, 2), None)
    cache.encoded(predictor, slices(0, 2), None)
    assert len(encodings) == 2


def test_a_folder_that_cannot_be_written_costs_a_warning_only(predictor, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.warns(FileWarning, match="features are not kept"):
        FeatureCache(tmp_path / "file" / "cache", "weights").encoded(predictor, slices(0, 2), None)


def test_features_in_bfloat16_are_kept_bit_for_bit(tmp_path: Path):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(5, 2, 3)).astype(jnp.bfloat16) for _ in range(3)]
    blocks = [
        EncodedSlices(SliceFeatures(*(x[at] for x in parts)), np.zeros((len(parts[0][at]), 0), np.float32))
        for at in (slice(0, 4), slice(4, 5))
    ]
    FeatureCache(tmp_path, "weights")._keep(tmp_path / "entry", SimpleNamespace(encoded=lambda: blocks, depth=5))
    found = _read(
        tmp_path / "entry", SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(compute_dtype="bfloat16"))), 5
    )
    for one, other in zip(found.features, parts, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_array_equal(one.view(np.uint16), other.view(np.uint16))
    assert found.position_embeddings.shape == (5, 0)
