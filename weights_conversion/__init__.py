"""Conversion of SAM 2 checkpoints between the layouts of Meta, of transformers and of this project."""
