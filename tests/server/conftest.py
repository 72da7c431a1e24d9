"""The small model and image, a session with them, and a running server."""

import pytest

from tests.helpers.running_server import running_server
from tests.helpers.small_fixtures import checkpoint, image, predictor, session, without_warm_up

__all__ = ["checkpoint", "image", "predictor", "server", "session", "without_warm_up"]


@pytest.fixture(scope="module")
def server(tmp_path_factory, checkpoint):
    """A server with the small model, for the tests of one file."""
    with running_server(tmp_path_factory.mktemp("state"), checkpoint) as server:
        yield server
