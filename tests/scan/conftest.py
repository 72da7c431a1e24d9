"""The small model and image."""

from tests.helpers.small_fixtures import image, predictor

__all__ = ["image", "predictor"]
