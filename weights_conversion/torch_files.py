"""Reading and writing of PyTorch's `.pt` files, which are pickles and only loaded with `weights_only=True`.

The zip format of PyTorch 1.6 and later is memory-mapped, so tensors are read one at a time. Torch is imported only in
this module.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError
from weights_conversion.safetensors_files import REOPEN_AFTER
from weights_conversion.source import Tensor


class TorchFile:
    """An open file with tensors by name, either `{"model": {...}}` or `{...}`."""

    def __init__(self, path: Path):
        self.path = path
        self._torch = _torch(path, "reading")
        self._read = 0
        self._values = self._open()
        self.tensors = {
            name: Tensor(tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in self._values.items()
        }

    def _open(self) -> dict[str, Any]:
        if not zipfile.is_zipfile(self.path):
            raise UserError(
                f"{self.path}: it is not a complete file of PyTorch 1.6 or later; it may be truncated, download it "
                "again, or save it again with a recent PyTorch"
            )
        try:
            loaded = self._torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{self.path}: it contains code or objects other than tensors, and was not run; "
                "give a file that contains only the weights"
            ) from error
        except Exception as error:  # torch raises many kinds on a damaged archive
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{self.path}: it cannot be read as a PyTorch file ({reason}); download it again"
            ) from error
        return self._weights(loaded)

    def _weights(self, loaded: Any) -> dict[str, Any]:
        outer: list[str] = []
        if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
            outer = [str(key) for key in loaded if key != "model"]
            loaded = loaded["model"]
        if not isinstance(loaded, dict):
            raise UserError(
                f"{self.path}: it contains a {type(loaded).__name__}, expected tensors by name; "
                "save the state_dict of the model"
            )
        others = outer + [str(name) for name, value in loaded.items() if not self._is_weight(name, value)]
        if others:
            raise UserError(
                f"{self.path}: it contains objects other than tensors by name ({', '.join(others)}); "
                "save only the state_dict of the model"
            )
        return loaded

    def _is_weight(self, name: object, value: object) -> bool:
        tensor = isinstance(value, self._torch.Tensor) and not isinstance(value, self._torch.nn.UninitializedParameter)
        return isinstance(name, str) and tensor and value.layout == self._torch.strided and not value.is_quantized  # type: ignore[attr-defined]

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32; it is a view of the file if the file stores float32."""
        if self._read > REOPEN_AFTER:
            self._values = self._open()
            self._read = 0
        value = self._values[name].detach()
        self._read += value.nbytes
        return value.to(self._torch.float32).numpy()


def write_torch(path: Path, names: Iterable[str], read: Callable[[str], np.ndarray]) -> None:
    """Write `{"model": {name: tensor}}`, the form of Meta's checkpoints; `torch.save` needs all tensors at once."""
    torch = _torch(path, "writing")
    weights = {name: torch.from_numpy(np.array(read(name), np.float32, order="C")) for name in names}
    torch.save({"model": weights}, path)


def _torch(path: Path, doing: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path.name}: {doing} a .pt file needs PyTorch, which is not installed: "
            "pip install 'sam2-3dmed-jax[torch]', or use .safetensors, which does not need it"
        ) from error
    return torch
