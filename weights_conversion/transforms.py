"""Changes of the axes of a tensor between PyTorch's order and the native one (channels last), with exact inverses.

The values are not computed with, so every round trip is exact to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Transform:
    """A pair of inverse functions on arrays, which return views where possible."""

    name: str
    to_native: Callable[[Array], Array]
    to_foreign: Callable[[Array], Array]

    def foreign_shape(self, native: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in a foreign layout of a tensor with this native shape."""
        return self.to_foreign(np.broadcast_to(np.float32(0), native)).shape  # does not allocate memory


SAME = Transform("same", lambda x: x, lambda x: x)

# [out, in] <-> [in, out]
LINEAR = Transform("linear", lambda x: x.T, lambda x: x.T)

# A 1x1 convolution [out, in, 1, 1] <-> the equivalent linear map [in, out]
POINTWISE = Transform("pointwise convolution", lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])

# [out, in, kh, kw] <-> [kh, kw, in, out]
CONV = Transform("convolution", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))

# [C, 1, kh, kw] <-> [kh, kw, C]
DEPTHWISE = Transform(
    "depthwise convolution", lambda x: x[:, 0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[:, None]
)

# [in, out, kh, kw] <-> [in, kh, kw, out]
UPSCALE = Transform("transposed convolution", lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2))

# [1, C, h, w] <-> [h, w, C]
IMAGE = Transform("image", lambda x: x[0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[None])

# [1, C] <-> [C]
ROW = Transform("row", lambda x: x[0], lambda x: x[None])

# [1, 1, C] <-> [C]
TOKEN = Transform("token", lambda x: x[0, 0], lambda x: x[None, None])

# [n, 1, 1, C] <-> [n, C]
TOKENS = Transform("tokens", lambda x: x[:, 0, 0], lambda x: x[:, None, None])

TRANSFORMS = (SAME, LINEAR, POINTWISE, CONV, DEPTHWISE, UPSCALE, IMAGE, ROW, TOKEN, TOKENS)
