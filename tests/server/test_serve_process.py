"""The command `serve` as a process: its address, its end by a signal, and its mistakes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from websockets.sync.client import connect

from sam2_3dmed_jax.commands.main import main
from tests.helpers.scans import scan_file

KEY = "a key of the test suite"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_server_answers_and_ends_in_order(tmp_path, checkpoint, number, code):
    with serving(tmp_path, checkpoint) as (process, address):
        assert get(address, "healthz") == b'{"ok":true}'
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "prompts are saved" in errors and "Traceback" not in errors


@contextlib.contextmanager
def serving(folder, checkpoint, *words):
    """Run `serve` with a key until the block ends, and yield the process and its address."""
    command = [sys.executable, "-m", "sam2_3dmed_jax", "serve", checkpoint, *words, "--port", "0"]
    environment = {**os.environ, "SAM2_3DMED_CACHE": str(folder / "cache"), "SAM2_3DMED_KEY": KEY}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            greeting = process.stdout.readline()
            assert KEY not in greeting
            yield process, re.search(r"http://127\.0\.0\.1:\d+", greeting).group()
        finally:
            process.kill()


def get(address, path):
    request = urllib.request.Request(f"{address}/{path}", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


@pytest.mark.slow
def test_prompts_and_masks_are_there_again_after_the_process_was_killed(tmp_path, checkpoint):
    image = str(scan_file(tmp_path / "ct.nii.gz"))
    with serving(tmp_path, checkpoint, image) as (process, address), opened(address) as socket:
        socket.send(json.dumps({"type": "click", "object": 2, "voxel": [9, 10, 5], "inside": True}))
        clicked, masks = finished(socket)
        process.kill()
    assert clicked["objects"][0]["id"] == 2 and masks
    with serving(tmp_path, checkpoint, image) as (_, address), opened(address) as socket:
        restored, again = finished(socket)
    assert restored["volumes"] == clicked["volumes"] and again.keys() == masks.keys()
    assert all(again[key] == masks[key] for key in masks)


@contextlib.contextmanager
def opened(address):
    """The page's WebSocket, after the server's image is shown."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with connect(f"{address.replace('http', 'ws')}/page/socket", additional_headers=headers) as socket:
        socket.send(json.dumps({"type": "open", "image": "ct.nii.gz"}))
        assert json.loads(socket.recv(timeout=60))["type"] == "opened"
        socket.send(json.dumps({"type": "ready"}))
        yield socket


def finished(socket):
    """Return the state that has all masks, and the last mask of each object and slice, without its revision."""
    masks = {}
    while True:
        message = socket.recv(timeout=120)
        if isinstance(message, bytes):
            masks[message[:4], message[8:10]] = message[10:]  # object and slice
            continue
        state = json.loads(message)
        assert state["type"] != "error", state
        if state.get("complete"):
            return state, masks


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["absent.nii.gz"], "absent.nii.gz does not exist"),
        (["--root", "absent"], "absent is not a folder"),
        (["--port", "99999"], "--port"),
        (["--host", "0.0.0.0"], "give a key"),
        (["--key", "short"], "at least 16"),
        (["--host", "192.0.2.1", "--key", KEY, "--port", "0"], "--host 192.0.2.1"),
    ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, tmp_path, checkpoint, words, named):
    monkeypatch.setenv("SAM2_3DMED_CACHE", str(tmp_path / "cache"))
    assert main(["serve", checkpoint, *words]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1 and len(error) <= 301


def test_an_image_and_a_root_are_a_mistake(capsys, tmp_path, checkpoint):
    image = scan_file(tmp_path / "ct.nii.gz")
    assert main(["serve", checkpoint, str(image), "--root", str(tmp_path)]) == 2
    assert "--root" in capsys.readouterr().err
