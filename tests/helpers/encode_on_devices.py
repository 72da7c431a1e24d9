"""Script of `test_encoding`: encode the same slices on one and on all eight fake devices, and write the features."""

import sys

import jax
import numpy as np

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.build import random_weights
from sam2_3dmed_jax.training.features.encoder import FrozenEncoder

CONFIG = ModelConfig("nano", 64, srpp=False, bd=False)
SLICES = 35  # more than one block of 8 devices, which is 32


def main(out: str) -> None:
    weights = random_weights(CONFIG, 0)
    parts = ("image_encoder.", "sam_mask_decoder.conv_s")
    encoder = FrozenEncoder(CONFIG, {path: value for path, value in weights.items() if path.startswith(parts)})
    slices = np.random.default_rng(0).random((SLICES, 64, 64), np.float32)
    for count in (1, 8):
        encode = encoder.start(jax.devices()[:count])
        blocks = [slices[start : start + encode.block] for start in range(0, SLICES, encode.block)]
        features = [np.concatenate(parts).astype(np.float32) for parts in zip(*encode(blocks), strict=True)]
        np.savez(f"{out}/{count}.npz", *features, block=encode.block)


if __name__ == "__main__":
    main(sys.argv[1])
