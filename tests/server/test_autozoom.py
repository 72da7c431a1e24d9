"""nnInteractive's automatic zoom: turned on and off by a viewer, before and after its prompts."""

import http.client
import json

import numpy as np

from sam2_3dmed_jax import Scan
from sam2_3dmed_jax.inference import zoom
from sam2_3dmed_jax.server.nninteractive import nnia
from sam2_3dmed_jax.server.nninteractive.axes import guessed_affine
from tests.helpers.scans import scan_array

SPACING = (3.0, 12.0, 12.0)  # slices of 264 x 312 mm, of which a region of 64 mm has 5 x 5 voxels
POINT = (5, 9, 10)


class Viewer:
    """A viewer with an image, as nnInteractive's client sends requests."""

    def __init__(self, port):
        self.port, self.lease = port, {}
        self.lease = {"X-Lease-Token": self.json("claim")["lease_token"]}

    def ask(self, path, body=b"", headers=None, method="POST"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, f"/{path}", body, {**self.lease, **(headers or {})})
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content
            return response.headers, content
        finally:
            connection.close()

    def json(self, path, method="POST", **body):
        return json.loads(self.ask(path, json.dumps(body), method=method)[1])

    def open(self):
        meta = {"X-Meta": json.dumps({"image_properties": {"spacing": SPACING}})}
        self.ask("set_image", nnia.pack(scan_array()[None]), meta)
        self.mask = np.zeros(scan_array().shape, np.uint8)
        self.json("set_target_buffer", shape=self.mask.shape, dtype="uint8")

    def predicted(self, path, **body):
        """Return the mask after a request whose reply contains its change."""
        headers, content = self.ask(path, json.dumps(body))
        box = json.loads(headers["X-Meta"])["bbox"]
        if box is not None:
            at = tuple(slice(*side) for side in box)
            self.mask[at] = nnia.unpack(content, 10**6, nnia.MASK_DTYPES, 3)
        return self.mask > 0


def expected(checkpoint, setting):
    scan = Scan(scan_array(), checkpoint, affine=guessed_affine(scan_array().shape, SPACING), zoom=setting)
    scan.click(POINT)
    return scan.mask(1)


def test_a_viewer_turns_the_zoom_on_before_its_image_and_off_after_its_prompt(server, checkpoint, monkeypatch):
    # Masks of random weights touch every border, and regions would grow to the whole slice.
    monkeypatch.setattr(zoom, "touches_border", lambda *_: False)
    viewer = Viewer(server.port)
    assert viewer.json("capabilities", method="GET")["do_autozoom"] is False
    viewer.json("set_do_autozoom", do_autozoom=True)
    viewer.open()
    click = {"coordinates": POINT, "include_interaction": True}
    inside = viewer.predicted("add_point_interaction", **click).copy()
    np.testing.assert_array_equal(inside, expected(checkpoint, "auto"))
    viewer.json("set_do_autozoom", do_autozoom=False)
    whole = viewer.predicted("predict")
    np.testing.assert_array_equal(whole, expected(checkpoint, "off"))
    assert (whole != inside).any()
    viewer.json("release")
