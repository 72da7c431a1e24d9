"""Which requests reach the application."""

import base64

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.security import Security, check_exposure
from sam2_3dmed_jax.server.settings import ServeSettings

KEY = "correct horse battery"


def client(**settings):
    async def reached(request):
        return PlainTextResponse("reached")

    async def socket(websocket):
        await websocket.accept()
        await websocket.close()

    routes = [Route("/", reached, methods=["GET", "POST"]), WebSocketRoute("/socket", socket)]
    app = Security(Starlette(routes=routes), ServeSettings("model", **settings))
    return TestClient(app, base_url="http://127.0.0.1:1527", follow_redirects=False)


@pytest.mark.parametrize("host", ["localhost", "localhost:1527", "127.0.0.1:1527", "[::1]:1527"])
def test_names_of_this_machine_are_accepted(host):
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "", "[::1", "a@localhost:b"],
)
def test_other_names_are_refused(host):
    assert client().get("/", headers={"host": host}).status_code == 403


def test_on_other_addresses_any_address_is_accepted_but_no_unknown_name():
    public = client(host="0.0.0.0", key=KEY, allowed_hosts=("scanner.example",))
    authorized = {"authorization": f"Bearer {KEY}"}
    assert public.get("/", headers={"host": "192.168.1.5:1527", **authorized}).status_code == 200
    assert public.get("/", headers={"host": "scanner.example", **authorized}).status_code == 200
    assert public.get("/", headers={"host": "evil.example", **authorized}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:1527", ""]
)
def test_requests_of_other_sites_are_refused(origin):
    assert client().post("/", headers={"origin": origin}).status_code == 403


def test_requests_of_the_page_itself_are_accepted():
    assert client().post("/", headers={"origin": "http://127.0.0.1:1527"}).status_code == 200


def test_a_link_on_another_site_opens_the_page_but_its_scripts_and_images_reach_nothing():
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    image = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client().get("/", headers=link).status_code == 200
    assert client().get("/", headers=image).status_code == 403
    assert client().post("/", headers=link).status_code == 403


def test_a_websocket_of_another_site_is_refused():
    with client().websocket_connect("/socket", headers={"host": "127.0.0.1:1527"}):
        pass
    evil = {"host": "127.0.0.1:1527", "origin": "http://evil.example"}
    with pytest.raises(WebSocketDisconnect), client().websocket_connect("/socket", headers=evil):
        pass


def basic(credentials):
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


@pytest.mark.parametrize("user", ["", "any"])
def test_the_key_is_a_password_for_programs_that_take_it_in_their_address(user):
    assert client(key=KEY).get("/", headers={"authorization": basic(f"{user}:{KEY}")}).status_code == 200


@pytest.mark.parametrize(
    "header", [basic(KEY), basic(f"{KEY}:"), basic(f":{KEY}x"), "Basic", "Basic \xe9", "Basic /w=="]
)
def test_other_passwords_are_refused(header):
    assert client(key=KEY).get("/", headers={"authorization": header.encode("latin-1")}).status_code == 401


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xe9"])
def test_a_missing_or_wrong_key_is_refused(header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    assert client(key=KEY).get("/", headers=headers).status_code == 401


def test_the_key_in_the_address_becomes_a_cookie_that_is_not_the_key():
    page = client(key=KEY)
    response = page.get("/", params={"key": KEY})
    assert (response.status_code, response.headers["location"]) == (303, "/")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and KEY not in cookie
    assert page.get("/").status_code == 200
    # Browsers send the cookies of other servers on this machine too.
    cookies = f'other={{"json": [1, 2]}}; {cookie.partition(";")[0]}'
    assert client(key=KEY).get("/", headers={"cookie": cookies}).status_code == 200
    assert client(key=KEY).get("/", params={"key": "wrong"}).status_code == 401


def test_responses_allow_no_other_site_and_no_cache():
    headers = client().get("/").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert not any(name.startswith("access-control") for name in headers)


def test_an_address_that_others_reach_needs_a_long_key():
    check_exposure(ServeSettings("model"))
    check_exposure(ServeSettings("model", host="::1"))
    check_exposure(ServeSettings("model", host="0.0.0.0", key=KEY))
    with pytest.raises(UserError, match="give a key too"):
        check_exposure(ServeSettings("model", host="0.0.0.0"))
    with pytest.raises(UserError, match="at least 16"):
        check_exposure(ServeSettings("model", key="short"))
