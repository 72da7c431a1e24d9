"""The committed log of the full matrix (`-m long`), which takes hours and runs by hand, contains all of its tests."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT / "tests" / "parity" / "logs" / "full_matrix.txt"


def test_every_test_of_the_full_matrix_passed_in_the_committed_log():
    live = sorted(map(str, (ROOT / "tests" / "parity").glob("test_live_*.py")))
    command = [sys.executable, "-m", "pytest", *live, "-m", "long", "--collect-only", "-q", "-n", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    collected = re.findall(r"^tests/parity/\S+::.*\]$", done.stdout, re.MULTILINE)
    passed = re.findall(r"^(tests/parity/\S+::.*\]) PASSED$", LOG.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(collected) == len(set(collected)) > 100, done.stdout[-2000:]
    assert sorted(passed) == sorted(collected)


def test_the_log_names_the_date_the_commit_the_machine_and_the_versions():
    head = LOG.read_text(encoding="utf-8").split("\n\n")[0]
    for item in ("date", "commit", "CPU", "Python", "jax", "flax", "torch", "transformers", "sam2"):
        assert re.search(rf"\b{item}\b", head), item
