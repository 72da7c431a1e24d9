"""Uploads of the page: limits, tokens and names of files."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.page.uploads import MAX_FILES, Uploads


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads", most_bytes=10, kept=3)


def add(uploads: Uploads, token: str, name: str, content: bytes, index: int = 0) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 4):
            yield content[at : at + 4]

    asyncio.run(uploads.add(token, index, name, chunks()))


def test_one_file_is_an_image_and_several_are_a_folder(uploads):
    token = uploads.begin()
    add(uploads, token, "Doe^Jane CT.NII.GZ", b"voxels")
    file = uploads.path_of(token)
    assert file.read_bytes() == b"voxels" and file.name == "00000.nii.gz"  # without the name of the patient
    add(uploads, token, "slice", b"more", index=1)
    assert uploads.path_of(token) == file.parent


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("../../etc/passwd", ""),
        ("a/../b.dcm", ".dcm"),
        (".nii.gz", ".nii.gz"),
        ("x.nii.gz/..", ""),
        ("1.2.840.113619", ""),
        ("scan.seg.nrrd", ".nrrd"),
        ("IM-0001-0001", ""),
        ("\0.nii", ".nii"),
        ("", ""),
    ],
)
def test_names_of_files_cannot_leave_the_folder(uploads, name, suffix):
    token = uploads.begin()
    add(uploads, token, name, b"x")
    assert uploads.path_of(token).name == f"00000{suffix}"


def test_more_bytes_than_allowed_are_refused_and_removed(uploads):
    token = uploads.begin()
    add(uploads, token, "a.dcm", b"123456")
    with pytest.raises(UserError, match="larger than"):
        add(uploads, token, "b.dcm", b"123456", index=1)
    assert uploads.path_of(token).name == "00000.dcm"
    add(uploads, token, "a.dcm", b"1234567890")  # in place of the first one


@pytest.mark.parametrize("token", ["", "..", "../state", "a" * 22, "a/b", "x" * 21 + "\n"])
def test_tokens_that_were_not_given_out_are_refused(uploads, token):
    uploads.begin()
    with pytest.raises(UserError, match="does not exist"):
        uploads.path_of(token)
    with pytest.raises(UserError, match="does not exist"):
        add(uploads, token, "a.dcm", b"x")


def test_files_that_are_sent_at_once_share_the_limit(uploads):
    token = uploads.begin()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0)  # the other file may continue
            yield b"ab"

    async def both() -> list[BaseException | None]:
        files = (uploads.add(token, index, "slice", chunks()) for index in range(2))
        return await asyncio.gather(*files, return_exceptions=True)

    first, second = asyncio.run(both())
    assert first is None and isinstance(second, UserError)


def test_an_upload_has_a_limited_number_of_files(uploads):
    with pytest.raises(UserError, match="more than"):
        add(uploads, uploads.begin(), "a.dcm", b"x", index=MAX_FILES)


def test_the_oldest_uploads_are_deleted(uploads, tmp_path):
    tokens = [uploads.begin() for _ in range(5)]
    assert len(list((tmp_path / "uploads").iterdir())) == 3
    with pytest.raises(UserError, match="no files"):
        uploads.path_of(tokens[-1])
