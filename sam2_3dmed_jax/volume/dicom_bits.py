"""Extraction of the stored values from decoded pixels (PS3.5, 8.1.1): BitsStored, HighBit and PixelRepresentation.

Bits outside the stored ones may hold overlays or anything else, in every transfer syntax. No decoder is trusted to
clear them: codecs work with the precision of the stream, which may be larger than BitsStored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.errors import UserError


def stored_values(pixels: np.ndarray, header: Any, path: Path) -> np.ndarray:
    """Return the stored values of decoded pixels: shifted to bit 0, masked, and sign-extended.

    Args:
        pixels: integers as a decoder returns them, in any integer type; floats are returned unchanged.
        header: the data set.
        path: for error messages.

    Returns:
        The values, of the same shape and width; signed if PixelRepresentation is 1.

    Raises:
        UserError: the tags contradict each other or the pixels.
    """
    if pixels.dtype.kind not in "iu":
        return pixels
    allocated = int(header.BitsAllocated)
    stored = int(_or(header.get("BitsStored"), allocated))
    high = int(_or(header.get("HighBit"), stored - 1))
    if not 1 <= stored <= high + 1 <= allocated:
        raise UserError(
            f"{path} has BitsStored {stored}, HighBit {high} and BitsAllocated {allocated}, expected BitsStored - 1 <= "
            "HighBit < BitsAllocated: export it again"
        )
    width = 8 * pixels.dtype.itemsize
    unused = high + 1 - stored  # bits below the stored ones
    if high + 1 > width:  # the type follows the precision of the stream, and has no other bits
        if unused:
            raise UserError(f"{path} has HighBit {high}, but its stream has {width} bits per pixel: export it again")
        return pixels
    if unused:
        _check_alignment(pixels, stored, unused, path)
    kind = "i" if int(header.get("PixelRepresentation") or 0) == 1 else "u"
    native = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    values = native.view(f"{kind}{pixels.dtype.itemsize}") << (width - high - 1)
    return np.asarray(values >> (width - stored))


def signed_stream_precision(header: Any) -> int | None:
    """Return the bits per pixel of a signed JPEG 2000 stream; None if the stream is unsigned, or of another codec.

    Reads the first frame's SIZ segment (ISO 15444-1, A.5.1), which follows the start of the codestream.
    """
    if "JPEG 2000" not in header.file_meta.TransferSyntaxUID.name:
        return None
    start = header.PixelData.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(header.PixelData) < start + 43:
        return None
    depth = int(header.PixelData[start + 42])  # Ssiz: the sign, and the number of bits minus 1
    return (depth & 0x7F) + 1 if depth & 0x80 else None


def _check_alignment(pixels: np.ndarray, stored: int, unused: int, path: Path) -> None:
    """Refuse values that HighBit places above the lowest bits, but that are stored in the lowest bits."""
    used = int(np.bitwise_or.reduce(pixels, axis=None))
    if used & ((1 << unused) - 1) and not used >> stored:
        raise UserError(
            f"{path} has HighBit {stored + unused - 1}, but its values are in the lowest {stored} bits: set HighBit to "
            f"{stored - 1}, or export it again"
        )


def _or(value: Any, otherwise: int) -> Any:
    return otherwise if value is None else value
