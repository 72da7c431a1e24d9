"""A page that leaves."""

import asyncio
import json
import threading

import pytest

from sam2_3dmed_jax.server.page.conversation import Conversation
from sam2_3dmed_jax.server.page.uploads import Uploads
from sam2_3dmed_jax.server.sessions import Sessions
from sam2_3dmed_jax.server.settings import ServeSettings


@pytest.fixture
def sessions(tmp_path, checkpoint, image):
    sessions = Sessions(ServeSettings(checkpoint, image=image, state_folder=tmp_path / "state"))
    yield sessions
    sessions.close_all(60)


def test_a_click_that_waits_is_not_lost_when_the_page_leaves(tmp_path, sessions, image):
    async def click_and_leave():
        async def send(message):
            pass

        conversation = Conversation(sessions, Uploads(tmp_path / "uploads", 0), send, send)
        await conversation.receive(json.dumps({"type": "open", "image": image.name}))
        session = sessions.get(sessions.open(image))
        is_free = threading.Event()
        session.change(lambda scan: is_free.wait(60), propagate=False)
        await conversation.receive(json.dumps({"type": "click", "object": 1, "voxel": [9, 10, 5], "inside": True}))
        await asyncio.sleep(0)  # the conversation begins to wait for the click
        await conversation.end()
        await asyncio.sleep(0)
        is_free.set()
        return await asyncio.wrap_future(session.change(lambda scan: len(scan.prompts), propagate=False))

    assert asyncio.run(click_and_leave()) == 1
