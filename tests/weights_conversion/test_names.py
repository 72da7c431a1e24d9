"""The table of names maps the eight official checkpoints one to one onto the models, in both layouts."""

import numpy as np
import pytest

from sam2_3dmed_jax.sam2.presets import PRESETS
from weights_conversion.mapping import layout_map
from weights_conversion.names import ROWS
from weights_conversion.presets import best_fit, native_shapes, plain
from weights_conversion.source import Tensor
from weights_conversion.transforms import CONV, DEPTHWISE, IMAGE, LINEAR, POINTWISE, TRANSFORMS, UPSCALE

OFFICIAL = [name for name in PRESETS if name != "nano"]
RANKS = {
    "linear": 2,
    "pointwise convolution": 2,
    "depthwise convolution": 3,
    "image": 3,
    "row": 1,
    "token": 1,
    "tokens": 2,
}


@pytest.mark.parametrize("preset", OFFICIAL)
@pytest.mark.parametrize("layout", ["meta", "transformers"])
def test_an_official_checkpoint_maps_one_to_one_onto_the_model(layout, preset, official):
    shapes = native_shapes(plain(preset))
    mapping = layout_map(layout, shapes)
    assert mapping.foreign_shapes(shapes) == official[layout][preset]
    assert set(mapping.by_native) == set(shapes)


@pytest.mark.parametrize("preset", OFFICIAL)
@pytest.mark.parametrize("layout", ["meta", "transformers"])
def test_an_official_checkpoint_is_recognised_by_its_names_and_shapes(layout, preset, official):
    fit = best_fit({name: Tensor(shape, "float32") for name, shape in official[layout][preset].items()})
    assert (fit.preset, fit.mapping.layout, fit.discrepancies) == (preset, layout, 0)


def test_every_row_of_the_table_is_used():
    names = native_shapes(plain("sam2.1_hiera_tiny"))
    unused = []
    for row in ROWS:
        try:
            layout_map("meta", names, [other for other in ROWS if other is not row])
            unused.append(row.native)
        except ValueError:
            pass
    assert unused == []


def test_names_without_a_row_or_with_several_are_all_listed():
    with pytest.raises(ValueError, match=r"boundary\.new\.kernel \(0 rows\); slice_position\.norm\.scale \(0 rows\)"):
        layout_map("meta", ["no_obj_ptr", "boundary.new.kernel", "slice_position.norm.scale"])
    with pytest.raises(ValueError, match=r"no_obj_ptr \(2 rows\)"):
        layout_map("meta", ["no_obj_ptr"], [row for row in ROWS if row.native == "no_obj_ptr"] * 2)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.name)
def test_a_transform_and_its_inverse_give_the_same_bits(transform):
    shape = (2, 3, 5, 7)[: RANKS.get(transform.name, 4)]
    native = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    foreign = transform.to_foreign(native)
    assert foreign.shape == transform.foreign_shape(shape)
    assert np.array_equal(transform.to_native(foreign), native)


def test_axes_have_the_order_that_the_native_layers_expect():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    o, i, y, z = 1, 2, 4, 6
    assert CONV.to_native(x)[y, z, i, o] == x[o, i, y, z]  # [out, in, kh, kw] to [kh, kw, in, out]
    assert UPSCALE.to_native(x)[o, y, z, i] == x[o, i, y, z]  # [in, out, kh, kw] to [in, kh, kw, out]
    assert LINEAR.to_native(x[:, :, 0, 0])[i, o] == x[o, i, 0, 0]
    assert POINTWISE.to_native(x[:, :, :1, :1])[i, o] == x[o, i, 0, 0]
    assert DEPTHWISE.to_native(x[:, :1])[y, z, o] == x[o, 0, y, z]
    assert IMAGE.to_native(x[:1])[y, z, i] == x[0, i, y, z]
