"""Reading and writing of PyTorch's `.pt` files, which are pickles and only loaded with `weights_only=True`.

The zip format of PyTorch 1.6 and later is memory-mapped, so tensors are read one at a time. The format before it is
read at once. Torch is imported only in this module.
"""

from __future__ import annotations

import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError, cut
from sam2_3dmed_jax.runtime.foreign_errors import foreign
from sam2_3dmed_jax.runtime.user_files import read_start
from weights_conversion.safetensors_files import REOPEN_AFTER
from weights_conversion.source import Tensor
from weights_conversion.torch_pickles import check_pickles
from weights_conversion.wrappers import Contents

OLD_FORMAT = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # a pickle of the number that PyTorch 0.1 to 1.5 wrote
MAX_ENTRIES, MAX_DEPTH = 100_000, 16  # of nested dictionaries; a hostile file may contain itself


class TorchFile:
    """An open file with tensors by name, in a dictionary that may be nested in others."""

    def __init__(self, path: Path):
        self.path = path
        self._torch = import_torch(path, "reading")
        self._read = 0
        self._mapped = zipfile.is_zipfile(path)
        self._values = self._open()
        tensors = {name: inside for name, (inside, value) in self._values.items() if self._is_weight(value)}
        others = {name: inside for name, (inside, _) in self._values.items() if name not in tensors}
        self.contents = Contents(tensors, others)
        self.tensors = {
            name: Tensor(tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in ((name, self._values[name][1]) for name in tensors)
        }

    def _open(self) -> dict[str, tuple[str, Any]]:
        """Return every value of the file by its path, with the path of the dictionary that contains it."""
        if not self._mapped and not _has_old_format(self.path):
            raise UserError(
                f"{self.path}: it is not a complete file of PyTorch; it may be truncated, download it again, or "
                "save it with a recent PyTorch"
            )
        check_pickles(self.path, self._mapped)
        with foreign(
            "torch", lambda reason: f"{self.path}: it cannot be read as a PyTorch file ({reason}); download it again"
        ):
            try:
                loaded = self._torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._mapped)
            except pickle.UnpicklingError as error:
                raise UserError(
                    f"{self.path}: it contains code or objects other than tensors, and was not run; "
                    "give a file that contains only the weights"
                ) from error
        if not isinstance(loaded, dict):
            raise UserError(
                f"{self.path}: it contains a {type(loaded).__name__}, expected tensors by name; "
                "save the state_dict of the model"
            )
        values: dict[str, tuple[str, Any]] = {}
        for count, (name, inside, value) in enumerate(_entries(loaded)):
            if name in values or count == MAX_ENTRIES:
                problem = f"two entries {cut(name, 80)}" if name in values else f"more than {MAX_ENTRIES} entries"
                raise UserError(f"{self.path}: it contains {problem}; save only the state_dict of the model")
            if not isinstance(value, dict) or value:
                values[name] = inside, value
        return values

    def _is_weight(self, value: object) -> bool:
        torch = self._torch
        return (
            isinstance(value, torch.Tensor)
            and not isinstance(value, torch.nn.UninitializedParameter)
            and value.layout == torch.strided  # type: ignore[attr-defined]
            and value.device.type == "cpu"  # type: ignore[attr-defined]
            and not value.is_quantized  # type: ignore[attr-defined]
        )

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32; it is a view of the file if the file stores float32."""
        if self._read > REOPEN_AFTER and self._mapped:
            self._values = self._open()
            self._read = 0
        value = self._values[name][1].detach()
        self._read += value.nbytes
        return value.to(self._torch.float32).numpy()


def _has_old_format(path: Path) -> bool:
    """Return whether a file has the format before PyTorch 1.6.

    A tar file may begin with the same bytes, and `torch.load` before 2.6 runs the code in a tar file in spite of
    `weights_only` (CVE-2025-32434).
    """
    start = read_start(path, len(OLD_FORMAT), "give a file of PyTorch")
    return start == OLD_FORMAT and not tarfile.is_tarfile(path)


def _entries(values: dict[Any, Any], inside: str = "", depth: int = 1) -> Iterator[tuple[str, str, Any]]:
    """Yield the path, the dictionary's path and the value of each entry of nested dictionaries, empty ones included."""
    for key, value in values.items():
        if isinstance(value, dict) and value and depth < MAX_DEPTH:
            yield from _entries(value, f"{inside}{key}.", depth + 1)
        else:
            yield f"{inside}{key}", inside, value


def write_torch(path: Path, names: Iterable[str], read: Callable[[str], np.ndarray]) -> None:
    """Write `{"model": {name: tensor}}`, the form of Meta's checkpoints; `torch.save` needs all tensors at once."""
    torch = import_torch(path, "writing")
    weights = {name: torch.from_numpy(np.array(read(name), np.float32, order="C")) for name in names}
    with path.open("wb") as file:
        try:
            torch.save({"model": weights}, file)
        except RuntimeError as error:
            # PyTorch hides the error of the file, such as a full disk, behind a check of its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def import_torch(path: Path, doing: str) -> Any:
    """Return the module `torch`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path.name}: {doing} a .pt file needs PyTorch, which is not installed: "
            "pip install 'sam2-3dmed-jax[torch]', or use .safetensors, which does not need it"
        ) from error
    return torch
