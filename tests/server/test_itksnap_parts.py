"""Geometry, voxels, forms and connections of ITK-SNAP, without a server."""

import gzip

import numpy as np
import pytest

from sam2_3dmed_jax.server.itksnap import connections, images
from sam2_3dmed_jax.server.itksnap.forms import parse_form
from sam2_3dmed_jax.server.sessions import UnknownSessionError
from tests.helpers.itksnap_client import BOUNDARY, OBLIQUE, form, image_metadata
from tests.helpers.scans import AFFINE, SHAPE, scan_array


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE])
def test_the_metadata_of_an_image_become_its_affine(affine):
    geometry = images.parse_geometry(image_metadata(SHAPE, affine), 10**6)
    assert geometry.shape == SHAPE
    np.testing.assert_allclose(geometry.affine, affine, atol=1e-9)  # rounding of float64


def test_the_connection_that_was_not_used_for_the_longest_time_makes_room(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    kept = connections.Connections(sessions=None)
    first, second = kept.begin(), kept.begin()
    first.requests = 1  # in progress, so that it stays
    third = kept.begin()
    assert kept.get(first.token) is first and kept.get(third.token) is third
    with pytest.raises(UnknownSessionError):
        kept.get(second.token)


def test_the_first_axis_of_an_image_is_the_fastest_in_memory():
    array = scan_array().astype(np.float32)
    data = gzip.compress(array.ravel(order="F").tobytes())
    np.testing.assert_array_equal(images.unpack_voxels(data, SHAPE), array)


def test_the_parts_of_a_form_may_contain_line_ends_and_dashes():
    voxels = b"\r\n--\r\n\r\n" + BOUNDARY.encode()
    parts = parse_form(f"multipart/form-data; boundary={BOUNDARY}", form(voxels, "{}"))
    assert {name: bytes(content) for name, content in parts.items()} == {"file": voxels, "metadata": b"{}"}
