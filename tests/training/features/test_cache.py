"""Shards and folder of the feature cache: exact round trip, and errors for damaged or other features."""

import pickle
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.data.case_content import CaseContent
from sam2_3dmed_jax.data.prepared import PreparedCase
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.sam2.model import SliceFeatures
from sam2_3dmed_jax.training.features.cache import NEW, FeatureCache, FeatureKey
from sam2_3dmed_jax.training.features.encoder import feature_shapes
from sam2_3dmed_jax.training.features.shards import slice_bytes, write_features

DEPTH = 5
SHAPES = feature_shapes(ModelConfig("nano", 64))
KEY = FeatureKey("ab" * 32, "nano", 64, "float32", "soft_tissue", "Spleen", {"spacing": [None, None, None]})


def case(name="a", depth=DEPTH):
    affine = ((1.0, 0.0, 0.0, 0.0),) * 4
    return PreparedCase(
        name, "x", 9, (depth, 8, 8), (1.0, 1.0, 1.0), affine, "LPS", "CT", 1.0, 0.0, {1: (1,) * depth}, {}
    )


def features(seed=0):
    rng = np.random.default_rng(seed)
    return SliceFeatures(*(rng.normal(size=(DEPTH, *shape)).astype(ml_dtypes.bfloat16) for shape in SHAPES.values()))


@pytest.fixture
def cache(tmp_path):
    """A folder with the features of one case, written in two blocks."""
    cache = FeatureCache(str(tmp_path / "features"), KEY, SHAPES)
    cache.check()
    cache.claim()
    whole = features()
    blocks = (SliceFeatures(*(field[part] for field in whole)) for part in (slice(0, 3), slice(3, None)))
    cache.finish(case(), write_features(cache.shard(case()), blocks))
    return cache


def test_features_are_read_back_exactly_in_any_order_padded_with_zeros(cache):
    written = features()
    for values, field in zip(cache.read(case(), [4, 0, 4], 5), written, strict=True):
        assert values.dtype == ml_dtypes.bfloat16 and values.shape == (5, *field.shape[1:])
        np.testing.assert_array_equal(values[:3].view(np.uint16), field[[4, 0, 4]].view(np.uint16))
        assert not values[3:].astype(np.float32).any()


def test_the_size_of_a_shard_is_the_predicted_one(cache):
    size = cache.shard(case()).stat().st_size
    assert slice_bytes(feature_shapes(ModelConfig("sam2.1_hiera_large"))) == 8 * 1024 * 1024  # 8.4 MB
    assert 0 <= size - DEPTH * slice_bytes(SHAPES) < 2 * 65536  # ArrayRecord's blocks


def test_a_pickled_cache_reads_the_same_features(cache):
    before = cache.read(case(), [2], 1)
    copy = pickle.loads(pickle.dumps(cache))
    assert copy == cache
    for one, two in zip(copy.read(case(), [2], 1), before, strict=True):
        np.testing.assert_array_equal(one.view(np.uint16), two.view(np.uint16))


def test_the_features_of_a_changed_case_are_missing(cache):
    assert not cache.missing_reason(case())
    assert cache.missing_reason(case("b")) == NEW
    assert cache.missing_reason(replace(case(), source={"image": {"sha256": "other"}})) == NEW
    content = CaseContent("image", "labels", (DEPTH, 8, 8), case().affine, "CT")
    cache.finish(replace(case(), content=content), cache.shard(case()).stat().st_size)
    assert not cache.missing_reason(replace(case(), content=content))
    assert cache.missing_reason(replace(case(), content=replace(content, image="changed"))) == NEW


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_truncated_or_missing_shard_is_reported(cache, damage):
    shard = cache.shard(case())
    content = shard.read_bytes()
    shard.unlink() if damage == "missing" else shard.write_bytes(content[:1000])
    size = 0 if damage == "missing" else 1000
    assert cache.missing_reason(case()) == f"{shard} has {size} bytes of {len(content)}"


def test_a_flipped_bit_is_found_at_the_read_and_reported_with_a_fix(cache):
    shard = cache.shard(case())
    content = bytearray(shard.read_bytes())
    for at in range(1000, DEPTH * slice_bytes(SHAPES), slice_bytes(SHAPES) // 3):
        content[at] ^= 1
    shard.write_bytes(content)
    assert not cache.missing_reason(case())  # its size is unchanged
    with pytest.raises(UserError) as caught:
        for d in range(DEPTH):
            cache.read(case(), [d], 1)
    assert str(caught.value).startswith(f"{shard} is damaged (")
    assert str(caught.value).endswith("delete it and run `sam2-3dmed train` again, which encodes its slices again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "cd" * 32}, "encoder is abababababab there and cdcdcdcdcdcd here"),
        ({"window": "lung"}, 'window is "soft_tissue" there and "lung" here'),
        (
            {"image_size": 128, "preset": "tiny"},
            'preset is "nano" there and "tiny" here; image_size is 64 there and 128',
        ),
        ({"compute_dtype": "bfloat16"}, 'compute_dtype is "float32" there and "bfloat16" here'),
        ({"dataset": "Lung"}, 'dataset is "Spleen" there and "Lung" here'),
        ({"prepared": {"spacing": [1, None, None]}}, "prepared is"),
    ],
    ids=str,
)
def test_features_of_other_settings_are_refused_with_the_differences(cache, change, message):
    with pytest.raises(UserError) as caught:
        FeatureCache(cache.path, replace(KEY, **change), SHAPES).check()
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"data.features: {cache.path} holds features of other settings (")
    cache.check()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "key": {}}', '{"format": 1, "key": 3}'])
def test_an_unreadable_record_is_refused(cache, tmp_path, text):
    (tmp_path / "features" / "features.json").write_text(text)
    with pytest.raises(UserError, match=r"features\.json(: .*, expected an object| is not JSON| has format 2)"):
        cache.check()


def test_a_case_name_with_a_path_and_a_remote_folder_are_refused(cache):
    with pytest.raises(UserError, match="is not a file name"):
        cache.finish(case("../../a"), 1)
    with pytest.raises(UserError, match="gs://bucket/features is a remote address"):
        FeatureCache("gs://bucket/features", KEY, SHAPES).check()


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds something else"):
        FeatureCache(str(tmp_path), KEY, SHAPES).check()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_old_unfinished_files_of_killed_runs_are_removed(cache):
    import os

    old, young = (cache.shard(case(name)).with_name(f".{name}.arrayrecord.0.tmp") for name in "bc")
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    cache.claim()
    assert young.exists() and not old.exists() and cache.shard(case()).exists()
