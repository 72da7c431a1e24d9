"""Ctrl-C during a long compilation, which is announced: the process ends soon, and leaves nothing half-written."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "helpers" / "slow_compilation.py"


@dataclass(frozen=True)
class Interrupted:
    announcement: str
    seconds: float  # from Ctrl-C to the end
    code: int
    message: str
    files: list[str]


@pytest.fixture(scope="module", params=["main", "other"])
def interrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """Interrupt a compilation in the main thread or in another one, as soon as it is announced."""
    folder = tmp_path_factory.mktemp("interrupted")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SAM2_3DMED_CACHE": str(folder / "cache")}
    words = [sys.executable, str(SCRIPT), request.param, str(folder / "file")]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
        announcement = process.stderr.readline()
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()
        code = process.wait()
    files = sorted(path.name for path in folder.iterdir() if path.name != "cache")
    return Interrupted(announcement, time.monotonic() - start, code, message, files)


@pytest.mark.slow
def test_a_long_compilation_is_announced_with_an_estimate(interrupted: Interrupted):
    assert re.fullmatch(r"compiling large \(about \d+ s, cached afterwards\)\n", interrupted.announcement)


@pytest.mark.slow
def test_control_c_during_a_compilation_ends_within_ten_seconds_and_leaves_no_file(interrupted: Interrupted):
    assert interrupted.seconds < 10
    assert interrupted.code == 130
    assert interrupted.message == "interrupted; run the same command again to resume where possible\n"
    assert interrupted.files == []
