"""Checks of each request before any handler sees it: Host, Origin, key and size. See docs/explanation/threat-model.md.

- Host: a page of another site can make a browser send requests to this machine under its own name (DNS rebinding), but
  not under a name of this machine or an address.
- Origin and Sec-Fetch-Site: browsers send them with requests that another site's page causes, WebSockets too.
- Key: where one is set, each request has it, as `Authorization: Bearer KEY`, in a cookie, or as the password of HTTP
  Basic, for programs without a field for a key (`http://any:KEY@machine`). Opening `/?key=KEY` once sets the cookie and
  removes the key from the address.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.settings import ServeSettings

_HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(:\d{1,5})?")
COOKIE = "sam2_3dmed_key"
MIN_KEY = 16  # characters
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

# NiiVue compiles no code; it creates workers and images from blobs, and sets styles of elements.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self' data:; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # images of patients do not belong in the caches of browsers
}


def check_exposure(settings: ServeSettings) -> None:
    """Check that a server that other machines can reach has a key that cannot be guessed.

    Raises:
        UserError: it has none, or a short one.
    """
    if settings.key is None and not _is_loopback(settings.host):
        raise UserError(f"--host {settings.host}: other machines can reach it; give a key too, or leave --host out")
    if settings.key is not None and (len(settings.key) < MIN_KEY or not settings.key.isascii()):
        raise UserError(
            f"--key: it has {len(settings.key)} characters, expected at least {MIN_KEY} of ASCII; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )


class Security:
    """ASGI middleware that refuses requests and WebSockets that do not come from this server's own pages or viewers."""

    def __init__(self, app: ASGIApp, settings: ServeSettings):
        """Wrap an application."""
        self._app = app
        self._key = settings.key
        self._hosts = {*LOOPBACK_NAMES, settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
        if not _is_loopback(settings.host):
            self._hosts |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        self._accepts_any_address = not _is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on and add security headers to the response."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send if scope["type"] == "websocket" else _with_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before `accept`, it becomes HTTP 403
        else:
            await refusal(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is not passed on, or None."""
        request = HTTPConnection(scope)
        headers = request.headers
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own_host(hosts[0]):
            return _error(403, "this server has another name; use the address that it printed, or --allow-host NAME")
        if not _is_same_origin(headers, scope):
            return _error(403, "requests from pages of other sites are refused")
        if self._key is None or self._has_key(request):
            return None
        key = request.query_params.get("key")
        if key is not None and scope["type"] == "http" and scope["path"] == "/" and self._is_key(key):
            return self._welcome()
        return _error(401, "the key is missing or wrong; open the address that the server printed")

    def _is_own_host(self, host: str) -> bool:
        name = _host_name(host)
        if name in self._hosts:
            return True
        if not self._accepts_any_address:
            return False
        with contextlib.suppress(ValueError):  # a rebound name is a name, never an address
            return bool(ipaddress.ip_address(name))
        return False

    def _has_key(self, request: HTTPConnection) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_key(given.strip()):
            return True
        if scheme.lower() == "basic" and self._is_key(_password(given)):
            return True
        cookie = request.cookies.get(COOKIE, "")
        return hmac.compare_digest(cookie.encode(), self._cookie().encode())

    def _is_key(self, given: str) -> bool:
        assert self._key is not None
        return hmac.compare_digest(given.encode(), self._key.encode())

    def _cookie(self) -> str:
        """Return the value of the cookie, from which the key cannot be computed."""
        assert self._key is not None
        return hmac.new(self._key.encode(), b"cookie", hashlib.sha256).hexdigest()

    def _welcome(self) -> Response:
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, self._cookie(), httponly=True, samesite="strict")
        return response


def _password(credentials: str) -> str:
    """Return the password in the credentials of HTTP Basic, which are base64 of `user:password`; "" if damaged."""
    with contextlib.suppress(ValueError):
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    return ""


def _error(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)


def _with_headers(send: Send) -> Send:
    """Return `send`, with the security headers added to the response unless it has them."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers


def _is_same_origin(headers: Headers, scope: Scope) -> bool:
    """Return whether a request comes from this server's pages, from a program, or from the user's address bar."""
    origin = headers.get("origin")
    if origin is not None:
        with contextlib.suppress(ValueError):
            return urlsplit(origin).netloc.lower() == headers["host"].lower() != ""
        return False
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):  # a link to the page may be anywhere
        return scope.get("method") == "GET" and headers.get("sec-fetch-mode") == "navigate"
    return True


def _host_name(host: str) -> str:
    """Return the name or address in a Host header, in lower case, without port and brackets; "" if it has none."""
    match = _HOST.fullmatch(host.lower())
    return match["address"] or match["name"] if match else ""


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
