"""Compiled programs are kept between processes: a second Python session, or command, compiles nothing."""

import os
import subprocess
import sys

import pytest

from sam2_3dmed_jax import save_model
from tests.helpers.scans import scan_file, small_model

SESSION = """
import sys, jax
from sam2_3dmed_jax import Scan
misses, hits = [], []
jax.monitoring.register_event_listener(
    lambda event, **_: {"/jax/compilation_cache/cache_misses": misses, "/jax/compilation_cache/cache_hits": hits}
    .get(event, []).append(event)
)
scan = Scan(sys.argv[1], sys.argv[2])
scan.warm_up()
scan.click((5, 9, 10))
scan.mask()
print(len(misses), len(hits))
"""


def counts(image, checkpoint, cache) -> tuple[int, int]:
    """Return the programs that a new process compiles, and those that it reads from the cache."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")}
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(image), checkpoint],
        env={**environment, "SAM2_3DMED_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    misses, hits = map(int, done.stdout.split())
    return misses, hits


@pytest.mark.slow
def test_a_second_python_session_compiles_nothing(tmp_path):
    image, checkpoint = scan_file(tmp_path / "ct.nii.gz"), str(tmp_path / "checkpoint")
    save_model(small_model(), checkpoint)
    compiled, read = counts(image, checkpoint, tmp_path / "cache")
    assert compiled >= 7 and read == 0
    compiled_again, read = counts(image, checkpoint, tmp_path / "cache")
    assert compiled_again == 0 and 7 <= read <= compiled  # the first process measures the CPU, which compiles a little
