"""Files of all prompts of a scan: JSON as `predict --prompts` reads it, and label maps of drawn masks next to it."""

from __future__ import annotations

import glob
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.prompts.files import objects_json
from sam2_3dmed_jax.prompts.voxel_prompts import MaskFile, VolumePrompts
from sam2_3dmed_jax.runtime.atomic_files import atomic_paths
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.nifti import write_labels


def write_prompt_files(path: str | os.PathLike[str], prompts: VolumePrompts, volume: Volume) -> None:
    """Write prompts; label maps of earlier calls that are not needed any more are deleted.

    Args:
        path: the JSON file; the mask of object 3 is next to prompts.json as prompts.mask-3.nii.gz.
        prompts: of all objects, one per object and slice.
        volume: the image.

    Raises:
        UserError: a file cannot be written.
    """
    target = Path(path)
    masks: dict[int, np.ndarray] = {}
    for prompt in prompts.prompts:
        if prompt.mask is not None:
            mask = masks.setdefault(prompt.object_id, np.zeros(volume.array.shape, np.uint8))
            mask[prompt.slice] = prompt.mask
    files = {object_id: target.with_name(f"{target.stem}.mask-{object_id}.nii.gz") for object_id in masks}
    named = [
        replace(prompt, mask_file=None if prompt.mask is None else MaskFile(str(files[prompt.object_id]), None))
        for prompt in prompts.prompts
    ]
    content = objects_json(replace(prompts, prompts=named), volume.grid)
    for entry in content["objects"]:
        if entry["id"] in files:
            entry["mask"] = files[entry["id"]].name  # relative, so that the files can be moved together
    with atomic_paths() as temporary_path:
        for object_id, mask in masks.items():
            write_labels(temporary_path(files[object_id], ".nii.gz"), mask, volume)
        temporary_path(target).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for file in target.parent.glob(f"{glob.escape(target.stem)}.mask-*.nii.gz"):
        if file not in files.values():
            file.unlink(missing_ok=True)
