"""Hostile requests against a running server, which refuses them, stays alive and takes no more memory."""

import gzip
import http.client
import json
import os
import socket
import struct
from pathlib import Path

import blosc2
import numpy as np
import pytest

from sam2_3dmed_jax.server.nninteractive import nnia
from tests.helpers.itksnap_client import BOUNDARY, form, image_form, image_metadata
from tests.helpers.running_server import running_server
from tests.helpers.scans import AFFINE, SHAPE, scan_array, scan_file

KEY = "a key of the test suite"
MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("server")
    (folder / "root").mkdir()
    scan_file(folder / "root" / "ct.nii.gz")
    scan_file(folder / "secret.nii.gz")
    limits = {"max_upload_bytes": 4 * MIB, "max_voxels": 10**6, "max_sessions": 3}
    with running_server(folder / "state", checkpoint, root=folder / "root", key=KEY, **limits) as server:
        yield server


def ask(server, method, path, body=b"", headers=None, key=KEY):
    """Send a request, and return its status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    given = {
        "Host": f"127.0.0.1:{server.port}",
        **({"Authorization": f"Bearer {key}"} if key else {}),
        **(headers or {}),
    }
    try:
        connection.request(method, path, body, given)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def lease_of(server):
    status, body = ask(server, "POST", "/claim")
    assert status == 200
    return {"X-Lease-Token": json.loads(body)["lease_token"]}


@pytest.fixture
def lease(server):
    token = lease_of(server)
    yield token
    ask(server, "POST", "/release", headers=token)


@pytest.fixture
def image(server, lease):
    """A lease with an image and a target buffer."""
    status, _ = ask(server, "POST", "/set_image", nnia.pack(scan_array()[None]), lease)
    assert status == 200
    buffer = json.dumps({"shape": list(scan_array().shape), "dtype": "uint8"})
    assert ask(server, "POST", "/set_target_buffer", buffer, lease)[0] == 200
    return lease


def refused(server, statuses, *request, **more):
    """Check that a request is refused with a short reason, and that the server is alive."""
    status, body = ask(server, *request, **more)
    assert status in statuses, (request[:2], status, body[:300])
    detail = json.loads(body)["detail"]
    assert isinstance(detail, str) and len(detail) <= 300 and "Traceback" not in detail
    assert ask(server, "GET", "/healthz")[0] == 200


PATHS = [
    ("GET", "/"),
    ("GET", "/healthz"),
    ("GET", "/capabilities"),
    ("POST", "/claim"),
    ("POST", "/set_image"),
    ("POST", "/undo"),
    ("GET", "/start_session"),
    ("GET", "/v2/process_point_interaction/x"),
    ("POST", "/upload_raw/x"),
    ("GET", "/page/images"),
    ("POST", "/page/uploads"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:1527", "127.0.0.1.evil.example", "169.254.169.254"])
def test_other_hosts_are_refused(server, method, path, host):
    refused(server, {403}, method, path, headers={"Host": host})


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1"])
def test_other_origins_are_refused(server, method, path, origin):
    refused(server, {403}, method, path, headers={"Origin": origin})


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("key", [None, "wrong", KEY[:-1], KEY + "x"])
def test_other_keys_are_refused(server, method, path, key):
    refused(server, {401}, method, path, key=key)


LEASED = ["set_image", "set_target_buffer", "reset_interactions", "predict", "undo", "heartbeat", "set_do_autozoom"]
LEASED += [f"add_{kind}_interaction" for kind in ("point", "bbox", "scribble", "lasso", "initial_seg")]


@pytest.mark.parametrize("path", LEASED)
@pytest.mark.parametrize("token", ["", "unknown", "x" * 1000])
def test_unknown_leases_are_refused_before_their_bodies_are_read(server, path, token):
    refused(server, {410}, "POST", f"/{path}", b"x" * 1000, {"X-Lease-Token": token})


@pytest.mark.parametrize(
    "path",
    [
        "/static/../routes.py",
        "/static/..%2froutes.py",
        "/static/%2e%2e/routes.py",
        "/static/..%5croutes.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/page.js%00",
        "/../../etc/passwd",
        "/page/sessions/../../etc/image.nii",
        "/page/sessions/unknown/image.nii",
        "/page/uploads/..%2f..%2fsecret/0",
    ],
)
def test_paths_outside_of_the_server_do_not_exist(server, path):
    method = "PUT" if "uploads" in path else "GET"
    status, body = ask(server, method, path)
    assert 400 <= status < 500, body[:300]
    assert b"root:" not in body and b"import" not in body


def test_uploads_beyond_the_limit_are_refused_by_their_header(server, lease):
    refused(server, {413}, "POST", "/set_image", b"", {**lease, "Content-Length": str(2**40)})


def test_uploads_beyond_the_limit_are_refused_while_they_arrive(server, lease):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Authorization": f"Bearer {KEY}", **lease}
    chunks = (bytes(MIB) for _ in range(6))
    try:
        connection.request("POST", "/set_image", chunks, headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server closed the connection before all was sent
    finally:
        connection.close()
    assert ask(server, "GET", "/healthz")[0] == 200


def bomb(shape, bytes_inside):
    """Return NNIA whose frame contains more than its header states."""
    frame = blosc2.compress2(np.zeros(bytes_inside, np.uint8), typesize=1)
    start = nnia.HEADER.pack(b"NNIA", 1, 1, len(shape), 5) + b"uint8" + struct.pack(f"<{len(shape)}q", *shape)
    return start + struct.pack("<IQQ", 1, int(np.prod(shape)), len(frame)) + frame


ARRAYS = {
    "empty": b"",
    "text": b"hello",
    "truncated": nnia.pack(scan_array()[None])[:-10],
    "bomb": bomb((1, 10, 10, 10), 128 * MIB),
    "large": bomb((1, 1000, 1000, 1000), 1000),
    "complex": nnia.pack(scan_array()[None]).replace(b"int16", b"cplx8"),
    "three axes": nnia.pack(scan_array()),
    "two channels": nnia.pack(np.zeros((2, 4, 5, 6), np.float32)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_other_bodies_than_images_are_refused(server, lease, name):
    refused(server, {400}, "POST", "/set_image", ARRAYS[name], lease)


@pytest.mark.parametrize("meta", ["[", "[]", '{"image_properties": {"spacing": [0, 1, 1]}}', "{" * 5000])
def test_other_metadata_than_spacings_are_refused(server, lease, meta):
    refused(server, {400}, "POST", "/set_image", nnia.pack(scan_array()[None]), {**lease, "X-Meta": meta})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("set_target_buffer", {}),
        ("set_target_buffer", {"shape": [10**6, 10**6, 10**6], "dtype": "uint8"}),
        ("set_target_buffer", {"shape": [14, 22, 26], "dtype": "object"}),
        ("set_target_buffer", {"shape": [14, 22, 26], "dtype": "V1000000000"}),
        ("set_target_buffer", {"shape": "all", "dtype": "uint8"}),
        ("add_point_interaction", {}),
        ("add_point_interaction", {"coordinates": [1, 2], "include_interaction": True}),
        ("add_point_interaction", {"coordinates": [1, 2, 99], "include_interaction": True}),
        ("add_point_interaction", {"coordinates": [1, 2, -1], "include_interaction": True}),
        ("add_point_interaction", {"coordinates": [1, 2, 1e300], "include_interaction": True}),
        ("add_point_interaction", {"coordinates": [1, 2, float("nan")], "include_interaction": True}),
        ("add_point_interaction", {"coordinates": [1, 2, "3"], "include_interaction": True}),
        ("add_point_interaction", {"coordinates": [1, 2, 3], "include_interaction": "yes"}),
        ("add_bbox_interaction", {"bbox_coords": [[0, 1], [0, 1]], "include_interaction": True}),
        ("add_bbox_interaction", {"bbox_coords": [[5, 5], [0, 9], [0, 9]], "include_interaction": True}),
        ("add_bbox_interaction", {"bbox_coords": [[90, 99], [0, 9], [0, 9]], "include_interaction": True}),
        ("add_bbox_interaction", {"bbox_coords": [[0, {}], [0, 9], [0, 9]], "include_interaction": True}),
        ("set_do_autozoom", {"do_autozoom": 1}),
    ],
)
def test_fields_of_another_form_are_refused(server, image, path, body):
    refused(server, {400}, "POST", f"/{path}", json.dumps(body), image)


@pytest.mark.parametrize("body", [b"[" * 100000, b"\xff\xfe", b"null", b'{"a": ', b"1" * 5000])
def test_other_bodies_than_json_objects_are_refused(server, image, body):
    refused(server, {400}, "POST", "/add_point_interaction", body, image)


@pytest.mark.parametrize("path", ["add_scribble_interaction", "add_lasso_interaction"])
@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((1, 2, 3), None),
        ((1, 2, 3), [[0, 1], [0, 2], [0, 4]]),
        ((1, 2, 3), [[-1, 0], [0, 2], [0, 3]]),
        ((1, 2, 3), [[99, 100], [0, 2], [0, 3]]),
        ((1, 2, 3), "everywhere"),
    ],
)
def test_drawings_that_do_not_fit_are_refused(server, image, path, shape, box):
    meta = json.dumps({"include_interaction": True, "interaction_bbox": box})
    refused(server, {400}, "POST", f"/{path}", nnia.pack(np.ones(shape, np.uint8)), {**image, "X-Meta": meta})


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture(scope="module")
def itksnap(server):
    """The path of an ITK-SNAP's requests with an image: `itksnap("upload_raw")`."""
    token = json.loads(ask(server, "GET", "/v2/start_session/nnInteractive")[1])["session_id"]
    assert ask(server, "POST", f"/upload_raw/{token}", image_form(scan_array(), AFFINE), FORM)[0] == 200
    return lambda verb: f"/{verb}/{token}"


ITKSNAP_GETS = ["process_point_interaction", "reset_interactions", "end_session"]
ITKSNAP_POSTS = ["upload_raw", "process_scribble_interaction", "process_lasso_interaction"]


@pytest.mark.parametrize("verb", ITKSNAP_GETS + ITKSNAP_POSTS)
@pytest.mark.parametrize("token", ["unknown", "x" * 1000, "%2e%2e"])
def test_unknown_sessions_of_itksnap_are_refused_before_their_bodies_are_read(server, verb, token):
    method = "GET" if verb in ITKSNAP_GETS else "POST"
    refused(server, {410}, method, f"/{verb}/{token}", b"x" * 1000)


@pytest.mark.parametrize("verb", ITKSNAP_GETS)
def test_links_of_other_sites_change_nothing_of_itksnap(server, itksnap, verb):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    refused(server, {403}, "GET", itksnap(verb), headers=link)
    refused(server, {403}, "GET", "/start_session", headers=link)


@pytest.mark.parametrize("model", ["SAM2", "..", "%00"])
def test_other_models_do_not_exist(server, model):
    status, _ = ask(server, "GET", f"/v2/start_session/{model}")
    assert status == 404


@pytest.mark.parametrize(
    "query",
    [
        "",
        "point=1&point=2",
        "point=1&point=2&point=3&point=4",
        "point=1&point=2&point=-3",
        "point=1&point=2&point=1e3",
        "point=1&point=2&point=%D9%A3",  # a digit, but not of ASCII
        "point=1&point=2&point=99",
        "point=1&point=2&point=" + "9" * 5000,
        "x=1&y=2",
        "point=1&point=2&point=3&foreground=yes",
    ],
)
def test_other_points_than_voxels_are_refused(server, itksnap, query):
    refused(server, {400}, "GET", f"{itksnap('process_point_interaction')}?{query}")


def image_of(**fields):
    """Return the form of an image whose metadata has other fields than it should have."""
    metadata = {**image_metadata(SHAPE, AFFINE), **fields}
    return form(gzip.compress(scan_array().astype("<f4").tobytes(order="F")), json.dumps(metadata))


VOXELS = gzip.compress(bytes(4 * 14 * 22 * 26))
METADATA = json.dumps(image_metadata(SHAPE, AFFINE))
FORMS = {
    "empty": b"",
    "text": b"hello",
    "no parts": f"--{BOUNDARY}--\r\n".encode(),
    "many parts": f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n".encode() * 10**4,
    "part without a name": form(VOXELS, METADATA).replace(b' name="file";', b""),
    "part without a file": form(VOXELS, METADATA).replace(b'name="file"', b'name="other"'),
    "long header": form(VOXELS, METADATA).replace(b"application/gzip", b"x" * 10**6),
    "truncated": form(VOXELS, METADATA)[:-60],
    "not gzip": form(b"hello", METADATA),
    "truncated gzip": form(VOXELS[:-9], METADATA),
    "wrong checksum": form(VOXELS[:-8] + bytes(8), METADATA),
    "too few voxels": form(gzip.compress(bytes(100)), METADATA),
    "bomb": form(gzip.compress(bytes(128 * MIB)), METADATA),
    "not JSON": form(VOXELS, "{"),
    "not an object": form(VOXELS, "[]"),
    "deep JSON": form(VOXELS, "[" * 10**5),
    "long JSON": form(VOXELS, METADATA + " " * 2 * MIB),
    "large": image_of(dimensions=[1000, 1000, 1000]),
    "negative": image_of(dimensions=[-14, -22, 26]),
    "fraction": image_of(dimensions=[14, 22, 26.5]),
    "huge number": image_of(dimensions=[10**400, 22, 26]),
    "two axes": image_of(dimensions=[14, 22]),
    "word": image_of(dimensions=["14", 22, 26]),
    "no dimensions": image_of(dimensions=None),
    "colour": image_of(components_per_pixel=3),
    "other type": image_of(component_type="float64"),
    "spacing of 0": image_of(spacing=[0, 1, 1]),
    "origin of NaN": image_of(origin=[0, float("nan"), 0]),
    "origin of infinity": image_of(origin=[0, float("inf"), 0]),
    "flat direction": image_of(direction=[1, 0, 0, 0, 1, 0, 0, 1, 0]),
    "large direction": image_of(direction=[1e300, 0, 0, 0, 1, 0, 0, 0, 1]),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("verb", ITKSNAP_POSTS)
def test_other_forms_than_images_are_refused(server, itksnap, name, verb):
    refused(server, {400}, "POST", itksnap(verb), FORMS[name], FORM)


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\xe4",
    ],
)
def test_other_content_types_than_forms_are_refused(server, itksnap, kind):
    refused(server, {400}, "POST", itksnap("upload_raw"), form(VOXELS, METADATA), {"Content-Type": kind})


@pytest.mark.parametrize("verb", ITKSNAP_POSTS[1:])
def test_drawings_of_itksnap_that_do_not_fit_are_refused(server, itksnap, verb):
    other = np.ones((14, 22, 25))
    for body in (image_form(other, AFFINE), form(VOXELS, METADATA)):  # the second is empty
        refused(server, {400}, "POST", itksnap(verb), body, FORM)


def test_images_of_itksnap_beyond_the_limit_are_refused_by_their_header(server, itksnap):
    refused(server, {413}, "POST", itksnap("upload_raw"), b"", {**FORM, "Content-Length": str(2**40)})


def test_as_many_leases_as_allowed_are_given(server):
    tokens = [lease_of(server) for _ in range(3)]
    refused(server, {503}, "POST", "/claim")
    for token in tokens:
        assert ask(server, "POST", "/release", headers=token)[0] == 200


def test_connections_that_close_in_the_middle_do_no_harm(server, lease):
    start = f"POST /set_image HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
    start += f"X-Lease-Token: {lease['X-Lease-Token']}\r\nContent-Length: 100000\r\n\r\n"
    for data in (
        b"",
        b"\0" * 100,
        b"GET",
        start.encode()[:40],
        start.encode(),
        start.encode() + b"NNIA",
        b"\r\n" * 500,
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(data)
    assert ask(server, "GET", "/lease_status", headers=lease)[0] == 200
    assert ask(server, "POST", "/set_image", nnia.pack(scan_array()[None]), lease)[0] == 200


def test_memory_does_not_grow_with_refused_requests(server, lease, itksnap):
    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def attack():
        for _ in range(20):
            for name in ("bomb", "large", "truncated"):
                ask(server, "POST", "/set_image", ARRAYS[name], lease)
            for name in ("bomb", "many parts", "truncated gzip"):
                ask(server, "POST", itksnap("upload_raw"), FORMS[name], FORM)
            ask(server, "GET", "/start_session")
            ask(server, "POST", "/claim", key="wrong")
            ask(server, "POST", "/set_image", bytes(3 * MIB), lease)

    attack()
    before = resident_bytes()
    attack()
    assert resident_bytes() - before < 32 * MIB  # a tenth of what the refused bodies contain
