"""A hub on loopback that `huggingface_hub` uses in this process, as it would with `HF_ENDPOINT`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from sam2_3dmed_jax.hub import resolve
from tests.helpers.hub_server import Hub, serve


@contextlib.contextmanager
def local_hub(folder: Path, caches: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve `folder/owner/repository/...`. The caches of the client and of our converted weights are in `caches`."""
    # Not $SAM2_3DMED_CACHE, so that the tests keep sharing their compiled programs.
    patch.setattr(resolve, "cache_folder", lambda: caches / "cache")
    with serve(folder) as hub:
        # The client has read its environment already, when it was imported.
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(caches / "client"))
        yield hub
