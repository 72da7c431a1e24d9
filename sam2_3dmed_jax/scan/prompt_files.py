"""Files of all prompts of a scan: JSON as `predict --prompts` reads it, and label maps of drawn masks next to it."""

from __future__ import annotations

import glob
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.prompts.files import objects_json
from sam2_3dmed_jax.prompts.voxel_prompts import MaskFile, VolumePrompts
from sam2_3dmed_jax.runtime.atomic_files import atomic_paths
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.nifti import write_labels


class PromptFiles:
    """The files of a scan's prompts.

    Label maps that have not changed since the last call of `write` are left as they are: one takes up to a second.
    """

    def __init__(self, path: str | os.PathLike[str], volume: Volume):
        """Write nothing yet.

        Args:
            path: the JSON file; the mask of object 3 is next to prompts.json as prompts.mask-3.nii.gz.
            volume: the image.
        """
        self._path, self._volume = Path(path), volume
        self._written: dict[int, dict[int, np.ndarray]] = {}  # masks in each label map, by object and slice

    def write(self, prompts: VolumePrompts) -> None:
        """Write prompts; label maps that are not needed any more are deleted.

        Args:
            prompts: of all objects, one per object and slice; their arrays are not changed later.

        Raises:
            UserError: a file cannot be written.
        """
        drawn: dict[int, dict[int, np.ndarray]] = {}
        for prompt in prompts.prompts:
            if prompt.mask is not None:
                drawn.setdefault(prompt.object_id, {})[prompt.slice] = prompt.mask
        files = {object_id: self._mask_file(object_id) for object_id in drawn}
        with atomic_paths() as temporary_path:
            for object_id, file in files.items():
                if not self._is_written(object_id, drawn[object_id]):
                    write_labels(temporary_path(file, ".nii.gz"), self._label_map(drawn[object_id]), self._volume)
            text = json.dumps(self._content(prompts, files), indent=2)
            temporary_path(self._path).write_text(text + "\n", encoding="utf-8")
        self._written = drawn
        for file in self._path.parent.glob(f"{glob.escape(self._path.stem)}.mask-*.nii.gz"):
            if file not in files.values():
                file.unlink(missing_ok=True)

    def _mask_file(self, object_id: int) -> Path:
        return self._path.with_name(f"{self._path.stem}.mask-{object_id}.nii.gz")

    def _is_written(self, object_id: int, masks: dict[int, np.ndarray]) -> bool:
        """Return whether the label map of an object holds these masks by slice, which are compared by identity."""
        before = self._written.get(object_id, {})
        same = before.keys() == masks.keys() and all(before[index] is mask for index, mask in masks.items())
        return same and self._mask_file(object_id).exists()

    def _label_map(self, masks: dict[int, np.ndarray]) -> np.ndarray:
        labels = np.zeros(self._volume.array.shape, np.uint8)
        for index, mask in masks.items():
            labels[index] = mask
        return labels

    def _content(self, prompts: VolumePrompts, files: dict[int, Path]) -> dict[str, Any]:
        named = [
            replace(prompt, mask_file=None if prompt.mask is None else MaskFile(str(files[prompt.object_id]), None))
            for prompt in prompts.prompts
        ]
        content = objects_json(replace(prompts, prompts=named), self._volume.grid)
        for entry in content["objects"]:
            if entry["id"] in files:
                entry["mask"] = files[entry["id"]].name  # relative, so that the files can be moved together
        return content
