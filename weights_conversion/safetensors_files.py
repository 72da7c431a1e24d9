"""Reading and writing of `.safetensors` files, one tensor at a time.

Reading uses the `safetensors` package. Its writer takes all tensors at once, so writing is implemented here: a JSON
header and the bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from safetensors import safe_open

from sam2_3dmed_jax.runtime.foreign_errors import foreign
from weights_conversion.source import Tensor
from weights_conversion.wrappers import Contents

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# The pages of a memory-mapped file count as memory of the process until the map is closed.
REOPEN_AFTER = 64 << 20  # bytes read


class SafetensorsFile:
    """An open file whose header has been read and checked."""

    def __init__(self, path: Path):
        self.path = path
        self._read = 0
        self.tensors = {}
        with self._errors():
            self._file = safe_open(path, "numpy")
            self.metadata: dict[str, str] = self._file.metadata() or {}
            for name in self._file.keys():  # noqa: SIM118 (it is not a dictionary)
                part = self._file.get_slice(name)
                dtype = part.get_dtype()
                self.tensors[name] = Tensor(tuple(part.get_shape()), DTYPES.get(dtype, dtype))
        self.contents = Contents(dict.fromkeys(self.tensors, ""))

    def _errors(self) -> AbstractContextManager[None]:
        return foreign(
            "safetensors",
            lambda reason: (
                f"{self.path}: it is not a complete .safetensors file ({reason}); it may be truncated, "
                "download it again"
            ),
        )

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32."""
        with self._errors():
            if self._read > REOPEN_AFTER:
                self._file, self._read = safe_open(self.path, "numpy"), 0
            value = self._file.get_tensor(name)
        self._read += value.nbytes
        with np.errstate(over="ignore"):  # a float64 that is too large becomes infinity, which the conversion refuses
            return value.astype(np.float32, copy=False)


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write float32 tensors, each of which is read when it is written.

    Args:
        path: the file.
        shapes: shapes by name, in the order of the file.
        read: returns a tensor from its name.
        metadata: entries of the header's `__metadata__`.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            value = np.ascontiguousarray(read(name), "<f4")
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, expected {shape}")
            file.write(value.data if value.ndim else value.tobytes())
