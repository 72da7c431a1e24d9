"""The small model and image, and a session with them."""

from tests.helpers.small_fixtures import image, predictor, session, without_warm_up

__all__ = ["image", "predictor", "session", "without_warm_up"]
