"""FLOPs of segmenting a volume: per slice, per object, per direction and per branch."""

import jax
import pytest

from sam2_3dmed_jax import VolumePredictor, new_model
from sam2_3dmed_jax.inference.feature_store import BLOCK, encode_block, slice_context
from sam2_3dmed_jax.inference.segmentation_flops import SegmentationFlops
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
