"""Fixtures with the small model and image of `tests.helpers.scans`, for the `conftest.py` of folders that use them.

They are made once per process: tests do not change them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sam2_3dmed_jax import Scan, VolumePredictor, save_model
from sam2_3dmed_jax.server.session import InteractiveSession
from tests.helpers.scans import scan_file, small_model

WARM_UP = Scan.warm_up


@pytest.fixture(scope="session", autouse=True)
def without_warm_up() -> Iterator[None]:
    """Leave out what no test of these folders needs, except those that put `WARM_UP` back: it compiles all programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scan, "warm_up", lambda *_, **__: True)
        yield


@pytest.fixture(scope="session")
def predictor() -> VolumePredictor:
    """The predictor of the small model."""
    return VolumePredictor(small_model())


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a checkpoint of the small model."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_model(small_model(), folder)
    return str(folder)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the small image."""
    return scan_file(tmp_path_factory.mktemp("image") / "ct.nii.gz")


@pytest.fixture
def session(image: Path, predictor: VolumePredictor) -> Iterator[InteractiveSession]:
    """A session with the small image and model, which is closed after the test."""
    session = InteractiveSession(lambda progress: Scan(image, predictor, progress=progress))
    yield session
    session.close()
