"""From what a user gives as a checkpoint to a native folder: a path, or the name of published weights.

Weights are downloaded and converted once, into `weights/` of our cache. A folder in it is complete, because it is
renamed when it is; two processes may convert the same weights at the same time, and the first one wins.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.config import MemorySelection
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.hub.catalog import Weights, find_weights
from sam2_3dmed_jax.hub.download import Record, check_given_file, download, read_record, write_record
from sam2_3dmed_jax.runtime import compilation_cache
from sam2_3dmed_jax.runtime.cache_folder import cache_folder
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice


def checkpoint_folder(checkpoint: str | os.PathLike[str]) -> Path:
    """Return the folder of a checkpoint that the user gives as a path or by name.

    Nothing is downloaded unless the name is in the table or starts with `hf://`, and no file or folder has it.

    Args:
        checkpoint: a path, or a name as in `catalog.find_weights`.

    Raises:
        UserError: the name cannot be resolved. A path is returned as it is; reading it reports what is wrong with it.
    """
    name = os.fspath(checkpoint)
    weights = None if os.path.exists(name) else find_weights(name)
    return Path(name) if weights is None else fetch_weights(weights)


def load_model(
    checkpoint: str | os.PathLike[str],
    image_size: int | None = None,
    compute_dtype: ComputeDtypeChoice = "auto",
    memory_selection: MemorySelection | None = None,
) -> Any:
    """Load a checkpoint as an NNX module, SAM2, SAM2With3DMed or UNet, with float32 parameters.

    Args:
        checkpoint: folder of a native checkpoint, or a name of published weights such as `sam2.1_hiera_tiny`, which are
            downloaded and converted at the first use.
        image_size: S in pixels, in place of the stored size; SAM 2 runs at any multiple of 32. A U-Net has none.
        compute_dtype: "float32", "bfloat16", or "auto": bfloat16 on devices that multiply faster in it.
        memory_selection: "recent", "confident" or "self-sorting", which memories a slice sees, in place of the stored
            rule. A U-Net has no memories.

    Raises:
        UserError: it is not a readable checkpoint, or its model does not run at `image_size` or has no such rule.
    """
    from sam2_3dmed_jax.model import checkpoint as native

    compilation_cache.enable_by_default()
    return native.load_model(checkpoint_folder(checkpoint), image_size, compute_dtype, memory_selection)


def weights_folder(weights: Weights) -> Path:
    """Return the folder of converted weights, which exists once they were downloaded."""
    owner_and_name = weights.repository.replace("/", "--")
    return cache_folder() / "weights" / owner_and_name / (weights.revision or "main") / weights.name


def is_ready(weights: Weights) -> bool:
    """Return whether weights were downloaded and converted."""
    return (weights_folder(weights) / "config.json").exists()


def fetch_weights(weights: Weights, file: Path | None = None) -> Path:
    """Return the folder of converted weights; download and convert them at the first call.

    Args:
        weights: the weights.
        file: a file of them that the user has; nothing is downloaded then.

    Raises:
        UserError: they cannot be downloaded, are damaged, or do not fit their preset.
    """
    folder = weights_folder(weights)
    if is_ready(weights):
        return folder
    record_file = folder.with_name(f"{folder.name}.json")
    recorded = read_record(record_file)
    if file:
        source, record = file, check_given_file(weights, file, recorded)
    else:
        source, record = download(weights, recorded)
    _convert(weights, source, record, folder)
    write_record(record_file, record)
    print(f"{weights.name}: from {record.source} (licence: {weights.licence}), converted in {folder}", file=sys.stderr)
    return folder


def _convert(weights: Weights, source: Path, record: Record, folder: Path) -> None:
    """Convert a file or folder of weights into our cache."""
    from sam2_3dmed_jax.runtime.atomic_files import atomic_folder
    from sam2_3dmed_jax.runtime.progress import progress_of_long_work
    from weights_conversion.convert import convert_checkpoint

    origin = {"source": record.source, "licence": weights.licence}
    try:
        with atomic_folder(folder) as temporary, progress_of_long_work() as progress:
            convert_checkpoint(
                source,
                temporary,
                preset=weights.preset,
                image_size=weights.image_size,
                origin=origin,
                progress=progress,
            )
    except OSError as error:
        if not is_ready(weights):  # otherwise another process was faster, and its folder is the same
            reason, hint = error.strerror or error, "set SAM2_3DMED_CACHE to a folder with room and write access"
            raise UserError(f"{folder} cannot be written ({reason}); {hint}") from error
