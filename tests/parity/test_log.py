"""The full matrix takes hours and runs by hand (`-m long`): its last log is here, and holds all of its tests."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT / "tests" / "parity" / "logs" / "full_matrix.txt"


def test_every_test_of_the_full_matrix_passed_in_the_committed_log():
    command = [sys.executable, "-m", "pytest", "tests/parity", "-m", "long", "--collect-only", "-q", "-n", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    there = re.findall(r"^tests/parity/\S+::.*\]$", done.stdout, re.MULTILINE)
    passed = re.findall(r"^(tests/parity/\S+::.*\]) PASSED$", LOG.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(there) == len(set(there)) > 100, done.stdout[-2000:]
    assert sorted(passed) == sorted(there)


def test_the_log_says_what_it_was_taken_on():
    head = LOG.read_text(encoding="utf-8").split("\n\n")[0]
    for told in ("date", "commit", "CPU", "Python", "jax", "flax", "torch", "transformers", "sam2"):
        assert re.search(rf"\b{told}\b", head), told
