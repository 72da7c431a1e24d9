"""Headless Chromium, driven over its DevTools protocol: pages, mouse, keys, files and screenshots."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = "chromium", "chromium-browser", "google-chrome"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu-sandbox", "--enable-unsafe-swiftshader", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--remote-debugging-port=0")  # fmt: skip


def browser_path() -> str:
    """Return the program of the browser; without one, the test is skipped, or fails where it is required."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        assert not os.environ.get("SAM2_3DMED_REQUIRE_BROWSER"), "chromium is not on PATH"
        pytest.skip("needs a browser: chromium is not on PATH")
    return path


class Page:
    """One tab."""

    def __init__(self, connection: ClientConnection):
        self._connection = connection
        self._ids = itertools.count(1)
        self.messages: list[str] = []  # errors of the page, and violations of its security policy
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._connection.recv(timeout=120))
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            self.messages.append(details.get("exception", {}).get("description", details["text"]))
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.messages.append(event["params"]["entry"]["text"])

    def run(self, expression: str) -> Any:
        """Return the value of JavaScript; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Wait until JavaScript is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise AssertionError(f"not true after {seconds} s: {condition}; messages {self.messages}")
            time.sleep(0.1)

    def open(self, address: str, width: int = 1280, height: int = 800) -> None:
        self.resize(width, height)
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def click(self, x: float, y: float, button: str = "left", alt: bool = False) -> None:
        self.drag([(x, y)], button, alt)

    def drag(self, places: list[tuple[float, float]], button: str = "left", alt: bool = False) -> None:
        """Press the mouse at the first place, move it along the others, and release it."""
        common = {"button": button, "modifiers": int(alt), "clickCount": 1}
        held = {"left": 1, "right": 2, "middle": 4}[button]
        (x, y), *others = places
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, buttons=held, **common)
        for x, y in others:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=held, **common)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, **common)

    def key(self, key: str, ctrl: bool = False) -> None:
        text = {} if ctrl or len(key) > 1 else {"text": key}
        modifiers = 2 if ctrl else 0
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=modifiers, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)

    def choose_files(self, selector: str, files: list[Path]) -> None:
        """Choose files, or one folder, in an input of the page."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def downloads_to(self, folder: Path) -> None:
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))


@contextlib.contextmanager
def chromium() -> Iterator[Page]:
    """Start a browser, and yield its page."""
    path = browser_path()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            with connect(_page_address(process), max_size=None) as connection:
                yield Page(connection)
        finally:
            process.terminate()
            process.wait(30)


def _page_address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"DevTools listening on ws://([^/]+)/", line):
            with urllib.request.urlopen(f"http://{found[1]}/json/list") as answer:
                tabs = json.load(answer)
            return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
    raise AssertionError("Chromium did not start")
