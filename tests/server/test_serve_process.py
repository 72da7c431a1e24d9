"""The command `serve` as a process: its address, its end by a signal, and its mistakes."""

import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from sam2_3dmed_jax.commands.main import main
from tests.helpers.running_server import small_checkpoint
from tests.helpers.scans import scan_file

KEY = "a key of the test suite"


@pytest.fixture
def checkpoint(tmp_path):
    return small_checkpoint(tmp_path / "checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_server_answers_and_ends_in_order(tmp_path, checkpoint, number, code):
    command = [sys.executable, "-m", "sam2_3dmed_jax", "serve", checkpoint, "--port", "0", "--key", KEY]
    environment = {**os.environ, "SAM2_3DMED_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        greeting = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", greeting).group()
        assert KEY not in greeting
        request = urllib.request.Request(f"{address}/healthz", headers={"Authorization": f"Bearer {KEY}"})
        assert urllib.request.urlopen(request).status == 200
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "prompts are saved" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["absent.nii.gz"], "absent.nii.gz does not exist"),
        (["--root", "absent"], "absent is not a folder"),
        (["--port", "99999"], "--port"),
        (["--host", "0.0.0.0"], "--key"),
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
