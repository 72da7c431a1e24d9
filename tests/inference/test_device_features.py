"""Features on the device, spilled features, and launches ahead of results, on a CPU that passes for another device."""

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from sam2_3dmed_jax import Prompt, VolumePredictor, new_model
from sam2_3dmed_jax.config import PreprocessingConfig
from sam2_3dmed_jax.inference import device_memory, feature_store, propagation
from sam2_3dmed_jax.inference.device_slices import prepare_block
from sam2_3dmed_jax.inference.feature_blocks import gather_rows
from sam2_3dmed_jax.inference.feature_store import BLOCK, encode_block
from sam2_3dmed_jax.inference.launches import launched_ahead
from sam2_3dmed_jax.inference.predictor import Result, Session
from sam2_3dmed_jax.sam2.parameters import split
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.volume.intensity import PreparedSlices
from sam2_3dmed_jax.volume.io import read_volume

SIZE, DEPTH = 64, 37  # three blocks of propagation
PROMPTS = [Prompt(1, 18, [(30.0, 30.0)], [1]), Prompt(2, 5, box=(10.0, 12.0, 40.0, 44.0))]


@pytest.fixture(scope="module")
def predictor() -> VolumePredictor:
    return VolumePredictor(new_model("nano", SIZE, with_3dmed=True))


@pytest.fixture(scope="module")
def slices() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(DEPTH, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def on_host(predictor: VolumePredictor, slices: np.ndarray) -> Result:
    return predictor.predict(slices, PROMPTS)


@pytest.fixture
def separate_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let CPU be a device with room for a number of blocks; each has 4 slices."""
    monkeypatch.setattr(feature_store, "slices_per_encoding", lambda size: 4)

    def limit(blocks: int) -> None:
        room = iter([True] * blocks)
        monkeypatch.setattr(device_memory, "is_separate", lambda array: True)
        monkeypatch.setattr(device_memory, "has_room", lambda array: next(room, False))

    return limit


def volume(height: int, width: int, depth: int = 3) -> Volume:
    hu = np.random.default_rng(1).normal(0, 300, (depth, height, width)).astype(np.float32)
    return Volume(hu, Grid((width, height, depth), np.diag([-1.0, -1.0, 1.0, 1.0])))


@pytest.mark.parametrize("blocks", [0, 3, 100])
def test_features_on_the_device_and_beyond_its_limit_give_the_same_masks(
    predictor, slices, on_host, separate_device, blocks
):
    separate_device(blocks)
    session = predictor.start(slices)
    session.add(PROMPTS)
    result = session.result()
    stored = session._store._blocks
    assert len(stored._on_device) == min(blocks, 10)
    # The order of float32 sums in the encoder depends on the slices per block; logits are of order 5.
    np.testing.assert_allclose(result.mask_logits, on_host.mask_logits, rtol=0, atol=2e-4)


def test_host_arrays_are_as_large_as_what_does_not_fit_on_the_device(predictor, slices, separate_device):
    separate_device(3)
    embedding = predictor.encode(slices)._blocks._on_host.embedding
    assert len(embedding) == DEPTH - 3 * 4


def test_features_stay_on_the_device_between_encoding_and_propagation(predictor, slices, separate_device, monkeypatch):
    separate_device(100)
    fetched = []
    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(tree) or device_get(tree))
    store = predictor.encode(slices)
    features, _ = store.gather(np.arange(8).reshape(4, 2))
    assert isinstance(features.embedding, jax.Array) and features.stride4.shape[:2] == (4, 2)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(fetched))
    assert largest < features.embedding[:1, :1].nbytes  # position embeddings of the slices only


def test_gathers_of_volumes_of_different_depth_share_one_compilation(predictor, slices, separate_device):
    separate_device(100)
    predictor.encode(slices).gather(np.arange(BLOCK)[:, None])
    compilations = gather_rows._cache_size()
    predictor.encode(slices[:21]).gather(np.arange(3, 3 + BLOCK)[:, None])
    assert gather_rows._cache_size() == compilations


def test_slices_of_another_size_compile_their_preparation_and_not_the_encoder(predictor):
    def encode(height: int, width: int) -> None:
        predictor.encode(PreparedSlices(volume(height, width), PreprocessingConfig("lung"), SIZE))

    encode(50, 40)
    encoders, preparations = encode_block._cache_size(), prepare_block._cache_size()
    encode(33, 70)
    assert (encode_block._cache_size(), prepare_block._cache_size()) == (encoders, preparations + 1)


def test_a_dropped_store_frees_its_device_memory(predictor, slices, separate_device):
    separate_device(100)
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    store = predictor.encode(slices)
    session = Session(predictor, store)
    assert sum(array.nbytes for array in jax.live_arrays()) > before
    del store, session
    gc.collect()
    assert sum(array.nbytes for array in jax.live_arrays()) == before


def test_the_context_of_another_model_is_made_from_features_on_the_device(predictor, slices, separate_device):
    other = new_model("nano", SIZE, with_3dmed=True, seed=1)
    host = predictor.encode(slices).with_context_of(*split(other), other)
    separate_device(3)
    device = predictor.encode(slices).with_context_of(*split(other), other)
    # Sums of float32 in another order; contexts are of order 1.
    np.testing.assert_allclose(device.context, host.context, rtol=0, atol=1e-5)


def test_a_block_is_propagated_before_the_result_of_the_block_before_it_is_fetched(
    predictor, slices, separate_device, monkeypatch
):
    separate_device(100)
    session = predictor.start(slices)
    session.add([Prompt(1, 0, [(30.0, 30.0)], [1])])
    session.preview()
    events = record_launches(monkeypatch)
    session.result()
    assert events == ["launch", "launch", "fetch", "launch", "fetch", "fetch"]


def test_on_cpu_each_result_is_fetched_before_the_next_launch(predictor, slices, monkeypatch):
    session = predictor.start(slices)
    session.add([Prompt(1, 0, [(30.0, 30.0)], [1])])
    session.preview()
    events = record_launches(monkeypatch)
    session.result()
    assert events == ["launch", "fetch"] * 3


def record_launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record launches of `propagate_block` and fetches of its results."""
    events: list[str] = []
    launch, fetch = propagation.propagate_block, jax.device_get

    def launched(*arguments: Any) -> Any:
        events.append("launch")
        return launch(*arguments)

    def fetched(tree: Any) -> Any:
        events.append("fetch")
        return fetch(tree)

    monkeypatch.setattr(propagation, "propagate_block", launched)
    monkeypatch.setattr(jax, "device_get", fetched)
    return events


def test_a_propagation_that_is_stopped_has_launched_one_more_block_at_most(
    predictor, slices, separate_device, monkeypatch
):
    separate_device(100)

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        raise KeyboardInterrupt

    session = Session(predictor, predictor.encode(slices), stop, block=4)
    session.add([Prompt(1, 0, [(30.0, 30.0)], [1])])
    session.preview()
    events = record_launches(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        session.result()
    assert events == ["launch", "launch", "fetch"]


def test_an_encoding_that_is_stopped_keeps_the_reported_blocks(predictor, slices, separate_device, monkeypatch):
    separate_device(100)
    launches = []
    monkeypatch.setattr(feature_store, "encode_block", lambda *given: launches.append(0) or encode_block(*given))

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if done == 8 and len(launches) <= 3:
            raise KeyboardInterrupt

    store = predictor.open(slices, stop)
    with pytest.raises(KeyboardInterrupt):
        store.encode()
    assert len(launches) == 3 and len(store._position_embeddings) == 2
    store.encode()
    assert len(launches) == 3 + 8  # the third block was dropped with its launch


def test_launches_are_yielded_in_order_one_behind(monkeypatch):
    monkeypatch.setattr(device_memory, "is_separate", lambda array: True)
    launched = []

    def launch(number: int) -> jax.Array:
        launched.append(number)
        return jax.numpy.asarray(number)

    seen = [(int(item), len(launched)) for item in launched_ahead(map(launch, range(4)))]
    assert seen == [(0, 2), (1, 3), (2, 4), (3, 4)]


@pytest.mark.parametrize(
    ("platform", "in_use", "fits"), [("gpu", 40, True), ("gpu", 60, False), ("gpu", None, False), ("cpu", 0, False)]
)
def test_features_may_fill_half_of_a_device(platform, in_use, fits):
    statistics = None if in_use is None else {"bytes_limit": 100, "bytes_in_use": in_use}
    device = SimpleNamespace(id=0, platform=platform, memory_stats=lambda: statistics)
    assert device_memory.has_room(SimpleNamespace(devices=lambda: [device])) == fits


@pytest.mark.slow
def test_masks_of_a_real_ct_are_those_of_slices_prepared_on_the_host(realdata):
    scan = read_volume(realdata / "abdomen" / "ct.nii.gz")
    array = scan.array[40:52]
    depth, height, width = array.shape
    scan = Volume(array, Grid((width, height, depth), np.diag([-1.0, -1.0, 1.0, 1.0])))
    predictor = VolumePredictor(new_model("nano", 128))
    prepared = PreparedSlices(scan, PreprocessingConfig(), 128)
    prompts = [Prompt(1, 6, box=(30.0, 30.0, 90.0, 90.0))]
    on_device, on_host = predictor.predict(prepared, prompts), predictor.predict(prepared[:], prompts)
    # Pixels differ by 1e-6; logits of random weights are of order 1.
    np.testing.assert_allclose(on_device.mask_logits, on_host.mask_logits, rtol=0, atol=1e-4)
    assert np.mean((on_device.mask_logits > 0) != (on_host.mask_logits > 0)) < 1e-4
