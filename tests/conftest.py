"""Settings of all tests: the CPU, no implicit rank promotion, one compilation cache, and the real CT volumes."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Arrays of different rank must be broadcast explicitly: a forgotten axis would otherwise broadcast to a wrong result.
# An environment variable, so that it also holds in the processes that tests start.
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give long tests an hour before they count as hanging."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session", autouse=True)
def shared_compilations(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What one test compiled, another loads, in the other workers too: a train step takes most of a minute.

    The phases of CI share a folder, $SAM2_3DMED_TEST_CACHE.
    """
    base = tmp_path_factory.getbasetemp()
    own = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")
    os.environ["SAM2_3DMED_CACHE"] = os.environ.get("SAM2_3DMED_TEST_CACHE", own)
    from sam2_3dmed_jax.runtime import compilation_cache, cpu_bfloat16

    compilation_cache.enable()
    cpu_bfloat16.store(cpu_bfloat16.LIMIT)  # tests compute in float32 on all CPUs, also in their processes


@pytest.fixture(scope="module", autouse=True)
def programs_released() -> Iterator[None]:
    """Compiled programs of a file's tests leave memory after it: without that, a worker takes 8 GB."""
    yield
    import jax

    jax.clear_caches()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real CT volumes: $SAM2_3DMED_REALDATA, or `../shared/realdata` next to the repository."""
    folder = Path(os.environ.get("SAM2_3DMED_REALDATA", ROOT.parent / "shared" / "realdata")).resolve()
    if not folder.is_dir():
        pytest.skip(f"real CT volumes are absent: set SAM2_3DMED_REALDATA to their folder ({folder} does not exist)")
    return folder
