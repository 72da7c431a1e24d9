"""Encode the same slices on the first 1 and on all 8 of the fake devices; writes the features, for `test_encoding`."""

import sys

import jax
import numpy as np

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.sam2_3dmed import random_weights
from sam2_3dmed_jax.training.features.encoder import FrozenEncoder

CONFIG = ModelConfig("nano", 64, srpp=False, bd=False)
SLICES = 35  # 8 devices take 32 at once


def main(out: str) -> None:
    weights = random_weights(CONFIG, 0)
    parts = ("image_encoder.", "sam_mask_decoder.conv_s")
    encoder = FrozenEncoder(CONFIG, {path: value for path, value in weights.items() if path.startswith(parts)})
    slices = np.random.default_rng(0).random((SLICES, 64, 64), np.float32)
    for count in (1, 8):
        encode = encoder.start(jax.devices()[:count])
        blocks = [slices[start : start + encode.block] for start in range(0, SLICES, encode.block)]
        found = [np.concatenate(parts).astype(np.float32) for parts in zip(*encode(blocks), strict=True)]
        np.savez(f"{out}/{count}.npz", *found, block=encode.block)


if __name__ == "__main__":
    main(sys.argv[1])
