"""What a user does with the widget in a notebook, in voxels of its grid: right, anterior, superior."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.helpers.chromium import Page

PLANES = {"Axial": (2, 0, 1), "Coronal": (1, 0, 2), "Sagittal": (0, 1, 2)}  # axes across, of columns, of rows
CANVAS = "document.querySelector('.sam2-3dmed canvas')"


class WidgetUser:
    """A user of the only widget on a page."""

    def __init__(self, page: Page, shape: Sequence[int]):
        """Wait until the widget shows a slice of an image of this shape, (x, y, z)."""
        self.page = page
        self.shape = shape
        self.plane = "Axial"
        page.wait(f"{CANVAS}?.style.width && {self.text('.status')}", 120)

    def text(self, selector: str) -> str:
        """Return JavaScript for the text of an element."""
        return f"document.querySelector('.sam2-3dmed {selector}').textContent"

    def press(self, label: str) -> None:
        """Press the button with this label."""
        self.page.run(
            "[...document.querySelectorAll('.sam2-3dmed button')]"
            f".find(({{ textContent }}) => textContent === {json.dumps(label)}).click()"
        )

    def show(self, voxel: Sequence[float], plane: str) -> None:
        """Show the slice of a plane that contains a voxel."""
        if plane != self.plane:
            self.press(plane)
            self.plane = plane
        across, _, _ = PLANES[plane]
        self.page.run(
            "document.querySelector('.sam2-3dmed .slice').value = "
            f"{voxel[across]}; document.querySelector('.sam2-3dmed .slice').dispatchEvent(new Event('input'))"
        )
        self.page.run("new Promise((done) => setTimeout(done, 1000))")  # the kernel sends the slice

    def place(self, voxel: Sequence[float]) -> tuple[float, float]:
        """Return the place of a voxel in the window; its slice must be shown."""
        _, columns, rows = PLANES[self.plane]
        self.page.run(f"{CANVAS}.scrollIntoView({{block: 'center'}})")
        left, top, width, height = self.page.run(
            f"(({{ left, top, width, height }}) => [left, top, width, height])({CANVAS}.getBoundingClientRect())"
        )
        u, v = (self.shape[axis] - 0.5 - voxel[axis] for axis in (columns, rows))
        return left + width * u / self.shape[columns], top + height * v / self.shape[rows]

    def click(self, voxel: Sequence[float], plane: str = "Axial", button: str = "left", alt: bool = False) -> None:
        self.show(voxel, plane)
        self.page.click(*self.place(voxel), button=button, alt=alt)

    def wait_for_masks(self, number: int = 1) -> None:
        """Wait until all slices of the objects are segmented, of which there are `number`."""
        self.page.wait(
            "document.querySelectorAll('.sam2-3dmed .objects li').length === "
            f"{number} && /^Ready/.test({self.text('.status')}) && / ml(?! so far)/.test({self.text('.objects')})",
            300,
        )

    def colours(self, voxels: Sequence[Sequence[float]]) -> list[bool]:
        """Return for each voxel of the shown slice whether it has a colour, as masks have."""
        _, columns, rows = PLANES[self.plane]
        places = [
            [(self.shape[axis] - 0.5 - voxel[axis]) / self.shape[axis] for axis in (columns, rows)] for voxel in voxels
        ]
        return self.page.run(
            f"{json.dumps(places)}.map(([u, v]) => {{ const canvas = {CANVAS}; const [red, green, blue] = "
            "canvas.getContext('2d').getImageData(u * canvas.width, v * canvas.height, 1, 1).data; "
            "return Math.max(red, green, blue) - Math.min(red, green, blue) > 8; })"
        )
