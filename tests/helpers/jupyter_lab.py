"""JupyterLab on this machine, with a notebook in headless Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.helpers.chromium import Page

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "notebook.ipynb"
PANEL = "[...jupyterapp.shell.widgets('main')][0]"  # of the notebook, in JavaScript


@contextlib.contextmanager
def jupyter_lab(folder: Path) -> Iterator[str]:
    """Serve a folder, and yield the address; settings of the user are neither read nor changed."""
    state = folder / ".jupyter"
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
               "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
               "IPYTHONDIR": "ipython"}  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **{key: str(state / it) for key, it in folders.items()}}
    options = ["--no-browser", "--expose-app-in-browser", "--allow-root", "--port=0", "--IdentityProvider.token="]
    notification = state / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    notification.parent.mkdir(parents=True)
    notification.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # JupyterLab must not ask for consent
    command = [sys.executable, "-m", "jupyterlab", *options]
    log = folder / "jupyterlab.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        process.wait(30)


def _address(process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> str:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if found := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+", log.read_text()):
            with contextlib.suppress(urllib.error.URLError):
                urllib.request.urlopen(f"{found[0]}/api/status").close()
                return found[0]
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


def write_notebook(folder: Path, cells: Sequence[str]) -> None:
    """Write a notebook for the kernel of this environment."""
    content = {
        "cells": [
            {"cell_type": "code", "id": f"cell-{n}", "metadata": {}, "source": source, "outputs": [],
             "execution_count": None}
            for n, source in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }  # fmt: skip
    (folder / NOTEBOOK).write_text(json.dumps(content))


class OpenNotebook:
    """A notebook in JupyterLab."""

    def __init__(self, page: Page, address: str, width: int, height: int):
        self.page = page
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)  # the current notebook is the one with the focus
        page.open(f"{address}/lab/tree/{NOTEBOOK}", width, height)
        self._wait_for_kernel()

    def reload(self) -> None:
        self.page.call("Page.reload")
        time.sleep(1)
        self._wait_for_kernel()

    def _wait_for_kernel(self) -> None:
        page = self.page
        page.wait(f"window.jupyterapp && {PANEL}?.content?.widgets?.length", 120)
        page.wait(f"{PANEL}.sessionContext.session?.kernel?.status === 'idle'", 120)
        page.run(f"jupyterapp.shell.collapseLeft(); jupyterapp.shell.activateById({PANEL}.id)")
        page.wait("jupyterapp.shell.currentWidget?.content", 20)

    def run_cell(self, index: int) -> str:
        """Run a cell, wait for its end, and return the text that it printed."""
        cell = f"{PANEL}.content.widgets[{index}].model"
        before = self.page.run(f"{cell}.executionCount") or 0
        self.page.run(f"{PANEL}.content.activeCellIndex = {index}; jupyterapp.commands.execute('notebook:run-cell')")
        self.page.wait(f"{cell}.executionState === 'idle' && {cell}.executionCount > {before}", 300)
        outputs = json.loads(self.page.run(f"JSON.stringify({cell}.outputs.toJSON())"))
        for output in outputs:
            assert output["output_type"] != "error", output["evalue"]
        return "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")

    def save(self) -> None:
        self.page.run("jupyterapp.commands.execute('docmanager:save')")
        self.page.wait(f"!{PANEL}.context.model.dirty")
