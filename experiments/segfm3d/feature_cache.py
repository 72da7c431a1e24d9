"""Features of images on disk, so that several calls on one image encode it once.

The challenge starts a container six times for each image. An entry is a folder of arrays, named by the hash of the
image, the model and the versions that compute with it. The least recently used entries are deleted when the cache would
exceed its limit. A damaged or missing entry is computed again; a cache that cannot be written costs a warning only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

import sam2_3dmed_jax
from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.inference.feature_store import EncodedSlices, FeatureStore
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.runtime.atomic_files import atomic_folder
from sam2_3dmed_jax.runtime.hashing import sha256_of_chunks, sha256_of_json
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.sam2.model import SliceFeatures
from sam2_3dmed_jax.volume.intensity import PreparedSlices

_ENTRY = "features-"  # starts the names of entries, so that nothing else in the folder is deleted
_STORED_AS = {"bfloat16": np.dtype(np.uint16)}  # NumPy's format has no bfloat16


class FeatureCache:
    """A bounded folder of features."""

    def __init__(self, folder: str | os.PathLike[str], model: str, gib: float = 8.0):
        """Use a folder, which may not exist yet.

        Args:
            folder: the folder.
            model: the hash of the checkpoint.
            gib: limit of all entries together, in GiB.
        """
        self._folder = Path(folder)
        self._model = model
        self._limit = int(gib * 2**30)

    def encoded(self, predictor: VolumePredictor, slices: PreparedSlices, progress: Progress | None) -> FeatureStore:
        """Return the features of all slices, which are read if they are in the cache, and encoded and kept otherwise.

        Args:
            predictor: of the model.
            slices: of the image.
            progress: called during encoding.
        """
        entry = self._folder / f"{_ENTRY}{self._key(predictor, slices)}"
        store = predictor.open(slices, progress)
        if (stored := _read(entry, predictor, len(slices))) is not None:
            store.restore(stored)
            return store
        store.encode()
        try:
            self._keep(entry, store)
        except (OSError, UserError) as error:
            warnings.warn(f"{self._folder}: features are not kept ({error})", FileWarning, stacklevel=2)
        return store

    def _key(self, predictor: VolumePredictor, slices: PreparedSlices) -> str:
        image = np.ascontiguousarray(slices.volume.array)
        return sha256_of_json(
            {
                "image": sha256_of_chunks([str((image.shape, image.dtype)).encode(), image.data.cast("B")]),
                "window": slices.window,
                "size": slices.shape[1],
                "model": self._model,
                "dtype": predictor.model.config.compute_dtype,
                "platform": jax.default_backend(),
                "versions": [sam2_3dmed_jax.__version__, jax.__version__],
            }
        )

    def _keep(self, entry: Path, store: FeatureStore) -> None:
        """Write an entry, if it does not exceed the limit alone, after deleting others to make room."""
        with atomic_folder(entry, replace=True) as folder, contextlib.ExitStack() as files:
            opened: list[BinaryIO] = []
            for block in store.encoded():
                parts = (*block.features, block.position_embeddings)
                if not opened:
                    size = sum(part.nbytes // len(part) for part in parts) * store.depth
                    if not self._make_room(size):
                        raise UserError(f"they need {size / 2**30:.2f} GiB; allow more with --cache-gib")
                    for number, part in enumerate(parts):
                        opened.append(files.enter_context((folder / f"{number}.npy").open("wb")))
                        _write_header(opened[-1], (store.depth, *part.shape[1:]), _stored_as(part.dtype))
                # Not by a map of the file, which kills the process when the disk is full.
                for file, part in zip(opened, parts, strict=True):
                    file.write(np.ascontiguousarray(part).tobytes())

    def _make_room(self, size: int) -> bool:
        """Delete the least recently used entries until another one fits; return whether it can fit."""
        if size > self._limit:
            return False
        entries = [path for path in self._folder.glob(f"{_ENTRY}*") if path.is_dir()]
        entries.sort(key=lambda path: path.stat().st_mtime)
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in entries}
        total = sum(sizes.values())
        for path in entries:
            if total + size <= self._limit:
                break
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
        return True


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _stored_as(dtype: np.dtype) -> np.dtype:
    return _STORED_AS.get(dtype.name, dtype)


def _read(entry: Path, predictor: VolumePredictor, depth: int) -> EncodedSlices | None:
    """Return an entry as maps of its files, or None if it does not exist or is damaged."""
    dtypes: Sequence[np.dtype] = [
        *[np.dtype(jnp.dtype(predictor.model.config.compute_dtype))] * 3,
        np.dtype(np.float32),
    ]
    try:
        arrays = [np.load(entry / f"{number}.npy", mmap_mode="r", allow_pickle=False) for number in range(len(dtypes))]
    except (OSError, ValueError, EOFError):
        return None
    if any(len(array) != depth or array.dtype != _stored_as(d) for array, d in zip(arrays, dtypes, strict=True)):
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)  # it was used
    *features, positions = (array.view(dtype) for array, dtype in zip(arrays, dtypes, strict=True))
    return EncodedSlices(SliceFeatures(*features), positions)
