"""What a user does on the page of the server in headless Chromium."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.chromium import Page


class User:
    """What a user does on the page, in voxels of the page."""

    def __init__(self, page: Page, port: int):
        self.page = page
        self.address = f"http://127.0.0.1:{port}"

    def open(self, image: str, width: int = 1280, height: int = 800) -> None:
        self.page.open("about:blank")
        self.page.open(f"{self.address}/#image={image}", width, height)
        self.wait_for_image()

    def reload(self) -> None:
        self.page.call("Page.reload")
        time.sleep(0.5)
        self.wait_for_image()

    def wait_for_image(self) -> None:
        self.page.wait("document.readyState === 'complete' && session.image && session.activity", 120)

    def wait_for_masks(self, condition: str = "true") -> None:
        """Wait until the masks of the current prompts are complete and shown."""
        self.page.wait(f"session.complete && !masks.changed.size && ({condition})", 240)

    def place(self, voxel: Sequence[float], plane: str = "AXIAL") -> tuple[float, float]:
        """Return the place of a voxel in the window, after its slice is shown."""
        x, y = self.page.run(
            f"new Promise((done) => {{ goTo({json.dumps(list(voxel))}); requestAnimationFrame(() => "
            f"requestAnimationFrame(() => done(positionOf({json.dumps(list(voxel))}, {plane})))); }})"
        )
        return x, y + self.page.run("$('view').getBoundingClientRect().top")

    def click(self, voxel: Sequence[float], plane: str = "AXIAL", button: str = "left", alt: bool = False) -> None:
        revision = self.page.run("session.revision")
        self.page.click(*self.place(voxel, plane), button=button, alt=alt)
        self.page.wait(f"session.revision > {revision}", 120)

    def drag(self, first: Sequence[float], last: Sequence[float], alt: bool = False) -> None:
        """Drag from a voxel to another one of the same axial slice."""
        revision = self.page.run("session.revision")
        self.page.drag([self.place(first), self.place(last)], alt=alt)
        self.page.wait(f"session.revision > {revision}", 120)

    def press(self, selector: str) -> None:
        self.page.run(f"document.querySelector({json.dumps(selector)}).click()")

    def voxels(self, number: int) -> int:
        """Return the voxels of an object that the page shows."""
        return int(self.page.run(f"nv.drawBitmap.reduce((sum, value) => sum + (value === {number}), 0)"))

    def save(self, save_format: str, folder: Path) -> Path:
        """Press the button of a format, and return the downloaded file."""
        folder.mkdir(exist_ok=True)
        before = set(folder.iterdir())
        self.page.downloads_to(folder)
        self.press(f"[data-format='{save_format}']")
        end = time.monotonic() + 240
        while not (found := [path for path in set(folder.iterdir()) - before if path.suffix != ".crdownload"]):
            assert time.monotonic() < end, self.page.run("$('error').textContent")
            time.sleep(0.1)
        return found[0]
