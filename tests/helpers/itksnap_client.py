"""Requests and replies as ITK-SNAP makes and reads them.

Written after `DeepLearningSegmentationModel` and `RESTClient` of ITK-SNAP 4.6, which use libcurl: a form has one part
with gzip and one with JSON, clicks are GET requests, and a mask is base64 of gzip of one byte per voxel. The server
`itksnap-dls` 0.1.6 takes these requests too.
"""

import base64
import gzip
import http.client
import json
from dataclasses import dataclass

import numpy as np

from sam2_3dmed_jax.volume.geometry import LPS_TO_RAS

BOUNDARY = "------------------------d74496d66958873e"

# The affine of an oblique image, whose axes are neither in RAS order nor in its directions.
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.array([[0.0, 0.6, 0.8], [0.0, -0.8, 0.6], [-1.0, 0.0, 0.0]]) @ np.diag([3.0, 0.7, 0.8])
OBLIQUE[:3, 3] = 12.5, -40.0, 7.25


def image_metadata(shape: tuple[int, ...], affine: np.ndarray) -> dict[str, object]:
    """Return what ITK stores of an image with axes `shape` and an affine to RAS millimetres."""
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return {
        "dimensions": list(shape),
        "spacing": spacing.tolist(),
        "origin": lps[:3, 3].tolist(),
        "direction": (lps[:3, :3] / spacing).reshape(-1).tolist(),
        "components_per_pixel": 1,
        "component_type": "float32",
    }


def form(voxels: bytes, metadata: str) -> bytes:
    """Return the form with an image or a drawing."""
    parts = [
        ('form-data; name="file"; filename="image.gz"', "application/gzip", voxels),
        ('form-data; name="metadata"', "application/json", metadata.encode()),
    ]
    body = b""
    for disposition, kind, content in parts:
        body += f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\nContent-Type: {kind}\r\n\r\n".encode()
        body += content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def image_form(array: np.ndarray, affine: np.ndarray) -> bytes:
    """Return the form with an image `[i, j, k]`: ITK's memory has the first axis innermost."""
    voxels = gzip.compress(array.astype("<f4").tobytes(order="F"))
    return form(voxels, json.dumps(image_metadata(array.shape, affine), indent="\t"))


@dataclass
class ItkSnap:
    """ITK-SNAP with an open image, connected to a server.

    Attributes:
        port: of the server on this machine.
        array: `[i, j, k]`, the image.
        affine: `[4, 4]`, of the image.
        version: of the paths: "v2/", or "" before ITK-SNAP 4.6.
    """

    port: int
    array: np.ndarray
    affine: np.ndarray
    version: str = "v2/"
    session: str = ""

    def connect(self) -> None:
        """Check the server and send the image."""
        assert self.get("status")["version"] >= "0.1.2"
        if self.version:
            (model,) = self.get("v2/models")["models"]
            assert model["dimensions"] == 3 and 1 in model["channels"]
            self.session = self.get(f"v2/start_session/{model['id']}")["session_id"]
        else:
            self.session = self.get("start_session")["session_id"]
        self.upload()

    def upload(self) -> None:
        """Send the image, as after another one was opened."""
        self.post(f"upload_raw/{self.session}?filename=upload.nii.gz", image_form(self.array, self.affine))

    def click(self, voxel: tuple[int, int, int], foreground: bool = True) -> np.ndarray:
        names = ("point",) * 3 if self.version else ("x", "y", "z")
        words = "&".join(f"{name}={index}" for name, index in zip(names, voxel, strict=True))
        path = f"{self.version}process_point_interaction/{self.session}?{words}&foreground={str(foreground).lower()}"
        return self.mask(self.get(path))

    def draw(self, kind: str, area: np.ndarray, foreground: bool = True) -> np.ndarray:
        """Send strokes ("scribble") or the inside of an outline ("lasso")."""
        path = f"process_{kind}_interaction/{self.session}?foreground={str(foreground).lower()}"
        return self.mask(self.post(path, image_form(area, self.affine)))

    def reset(self) -> None:
        """As when another label becomes active."""
        self.get(f"reset_interactions/{self.session}")

    def mask(self, reply: dict[str, str]) -> np.ndarray:
        """Return the mask in a reply, bool `[i, j, k]`."""
        raw = gzip.decompress(base64.b64decode(reply["result"], validate=True))
        return np.frombuffer(raw, np.int8).reshape(self.array.shape, order="F") > 0

    def get(self, path: str) -> dict:
        return self._ask("GET", path, None, {})

    def post(self, path: str, body: bytes) -> dict:
        return self._ask("POST", path, body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, f"/{path}", body, {"Accept": "*/*", **headers})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        assert response.status == 200, text
        return json.loads(text)
