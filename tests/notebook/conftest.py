"""The small model and image, and a session with them."""

from tests.helpers.small_fixtures import image, predictor, session

__all__ = ["image", "predictor", "session"]
