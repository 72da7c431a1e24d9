"""FLOPs of segmenting a volume: per slice, per object, per direction and per branch."""

import math
import re
from pathlib import Path

import jax
import pytest

from sam2_3dmed_jax import VolumePredictor, new_model
from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.inference.feature_store import BLOCK, encode_block, slice_context
from sam2_3dmed_jax.inference.segmentation_flops import SegmentationFlops
from sam2_3dmed_jax.model.build import abstract_model
from sam2_3dmed_jax.model.checkpoint import without_boundary
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.runtime.jaxpr_flops import flops


def click(object_id: int, index: int) -> VoxelPrompt:
    return VoxelPrompt(object_id, index, ((3.0, 3.0),), (1,))


@pytest.fixture(scope="module")
def model():
    return new_model("nano", 64, with_3dmed=True)


@pytest.fixture(scope="module")
def counted(model) -> SegmentationFlops:
    return SegmentationFlops(VolumePredictor(model))


def test_each_slice_is_encoded_once_and_decoded_once_per_object(counted: SegmentationFlops):
    def of(depth: int, *prompts: VoxelPrompt) -> int:
        return counted([(depth, prompts)])

    one = of(10, click(1, 4))
    slice_ = of(11, click(1, 4)) - one  # encoded and propagated
    object_ = of(10, click(1, 4), click(2, 7)) - one  # prompted once and propagated to 9 slices
    assert of(30, click(1, 4)) == one + 20 * slice_ and of(10, click(1, 9)) == one
    encoded = one - object_
    assert encoded % 10 == 0 and 0 < encoded // 10 < slice_
    assert counted([(10, [click(1, 4)]), (10, [])]) == one  # nothing is segmented without prompts
    assert counted([(10, [click(1, 4)])] * 3) == 3 * one


def test_encoding_counts_the_flops_of_the_encoding_programs(model, counted: SegmentationFlops):
    predictor = VolumePredictor(model)
    graphdef, weights = predictor.graphdef, predictor.weights
    images = jax.ShapeDtypeStruct((BLOCK, 64, 64, 3), "float32")
    program = flops(encode_block.trace(graphdef, weights, images).jaxpr)
    embedded = jax.ShapeDtypeStruct((BLOCK, model.slice_position.config.dim), "float32")
    context = flops(slice_context.trace(graphdef, weights, embedded, jax.ShapeDtypeStruct((), "int32")).jaxpr)
    one = counted([(10, [click(1, 4)])])
    encoded = (one - (counted([(10, [click(1, 4), click(2, 4)])]) - one)) // 10
    assert encoded == program // BLOCK + context // BLOCK and 0 < context < 0.2 * program


def test_independent_propagation_visits_slices_between_prompts_twice(model, counted: SegmentationFlops):
    apart = [(10, [click(1, 2), click(1, 6)])]
    twice = SegmentationFlops(VolumePredictor(model, order="independent"))
    assert twice([(10, [click(1, 2)])]) == counted([(10, [click(1, 2)])])
    far = [(10, [click(1, 2), click(1, 7)])]
    assert counted(apart) == counted(far)  # the position of prompts does not matter in the sequential order
    assert twice(far) - twice(apart) == (twice(apart) - counted(apart)) / 3 > 0  # 4 slices between, and 3


def test_a_model_without_the_boundary_branch_needs_fewer_flops(model, counted: SegmentationFlops):
    session = [(10, [click(1, 2), click(1, 6)])]
    assert SegmentationFlops(VolumePredictor(without_boundary(model)))(session) < counted(session)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_the_table_of_presets_in_the_documentation_has_the_counted_numbers(size: str):
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "which-preset.md"
    (row,) = re.findall(rf"^\| `{size}` \| (.+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    parameters, megabytes, *_, gflop = row.split(" | ")
    graphdef, weights = abstract_model(ModelConfig(f"sam2.1_hiera_{size}", 256, srpp=False, bd=False))
    numbers = sum(math.prod(shape.shape) for shape in weights.values())
    assert parameters == f"{numbers / 1e6:.1f} M" and megabytes == f"{4 * numbers / 1e6:.0f} MB"
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), "float32")
    assert gflop == f"{flops(encode_block.trace(graphdef, weights, images).jaxpr) / 1e9:.0f}"
