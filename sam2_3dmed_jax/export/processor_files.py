"""Processor files of transformers, from which `Sam2VideoProcessor.from_pretrained` loads.

They are written without transformers, so that exporting needs no PyTorch. Fields that are left out have transformers'
defaults, which equal SAM 2's.
"""

from __future__ import annotations

from typing import Any

from sam2_3dmed_jax.runtime.imagenet import IMAGENET_MEAN, IMAGENET_STD


def processor_files(image_size: int) -> dict[str, dict[str, Any]]:
    """Return the contents of the processor files of a `Sam2VideoModel` by file name.

    Args:
        image_size: S in pixels.
    """
    size = {"height": image_size, "width": image_size}
    mask_size = {"height": image_size // 4, "width": image_size // 4}
    normalisation = {
        "do_resize": True,
        "size": size,
        "resample": 2,  # bilinear, as numbered by Pillow
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_convert_rgb": True,
    }
    processor = {"processor_class": "Sam2VideoProcessor"}
    image = {"image_processor_type": "Sam2ImageProcessorFast", "mask_size": mask_size, **normalisation}
    video = {"video_processor_type": "Sam2VideoVideoProcessor", **normalisation}
    return {
        "processor_config.json": {**processor, "target_size": image_size, "point_pad_value": -10},
        "preprocessor_config.json": {**processor, **image},
        "video_preprocessor_config.json": {**processor, **video},
    }
