"""A small image with axes in an unusual order, and a small model whose masks come and go, for tests of `scan`."""

from pathlib import Path

import nibabel as nib
import numpy as np

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.build import random_weights
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, assemble
from sam2_3dmed_jax.sam2.model import SAM2
from tests.helpers.nifti_files import make

# Stored as (superior to inferior, right to left, anterior to posterior): all axes are permuted, one is flipped.
AFFINE = np.array([[0, -0.8, 0, 5], [0, 0, -0.7, 9], [-3.0, 0, 0, 40], [0, 0, 0, 1.0]])
SHAPE = (14, 22, 26)


def scan_array() -> np.ndarray:
    """Return a CT of blobs, int16."""
    coarse = np.random.default_rng(3).normal(40, 120, tuple(-(-n // 4) for n in SHAPE))
    return coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[: SHAPE[0], : SHAPE[1], : SHAPE[2]].astype(np.int16)


def scan_file(path: Path) -> Path:
    """Write the CT as NIfTI and return its path."""
    return make(path, scan_array(), AFFINE)


def permuted_abdomen(realdata: Path, path: Path) -> Path:
    """Write slices of the CT of an abdomen, stored from anterior to posterior, superior to inferior, left to right."""
    image = nib.load(realdata / "abdomen" / "ct.nii.gz").slicer[:, :, 70:86]
    change = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PIR"))
    image.as_reoriented(change).to_filename(path)
    return path


def small_model() -> SAM2:
    """Return SAM 2 `nano` at 64 px with random weights, whose objects are on most slices."""
    config = ModelConfig("nano", 64, srpp=False, bd=False)
    weights = random_weights(config, 3)
    bias = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
    weights[bias] = weights[bias] + 1.0
    return assemble(weights, CheckpointInfo(config))
