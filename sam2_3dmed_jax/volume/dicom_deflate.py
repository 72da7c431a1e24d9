"""Check of DICOM files whose data set is compressed as a whole (Deflated Explicit VR Little Endian, PS3.5 A.5).

The stream must reach its end mark at the end of the file; zeros may follow as padding. Deflate without the headers of
gzip or zlib has no checksum, so a damaged byte that leaves the stream readable is not found. `NO_CHECKSUM` is the note
about it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.image_file import optional
from sam2_3dmed_jax.volume.voxel_stream import StoredVoxels, verify

_DEFLATED = "1.2.840.10008.1.2.1.99"
NO_CHECKSUM = "is deflated DICOM, which has no checksum, so that damage may go unnoticed: compare it with its source"


def is_deflated(header: Any) -> bool:
    """Return whether the whole data set of a header from `dicom_frame.read_header` is compressed."""
    return str(header.file_meta.get("TransferSyntaxUID")) == _DEFLATED


def check_deflated(path: Path, file: BinaryIO, header: Any) -> None:
    """Check the stream, and the length of the pixels in it, after pydicom has read a deflated file.

    Args:
        path: the file.
        file: the same file, open.
        header: all of its data set, with pixels.

    Raises:
        UserError: the stream has no end mark, other data follow it, or the pixels are shorter or longer than the header
            states.
    """
    reader = optional("pydicom.filereader", path)
    file.seek(0)
    reader.read_preamble(file, True)
    reader.read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    verify(StoredVoxels(path, "deflate", file.tell()))
    frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
    stated = (int(header.Rows) * int(header.Columns) * frames * samples * int(header.BitsAllocated) + 7) // 8
    stated += stated % 2
    if len(header.PixelData) != stated:
        raise UserError(
            f"{path} is damaged: it holds {len(header.PixelData)} bytes of pixels, and its header states {stated}: "
            "copy or export it again"
        )
