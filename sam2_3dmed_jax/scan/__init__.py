"""Segmentation in the coordinates of an image, for Python: one call (`segment`) and a session (`Scan`)."""
