"""Archives: unsafe, truncated and compressed ones are refused; cases are unpacked one at a time and removed."""

import gzip
import hashlib
import io
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import pytest

from sam2_3dmed_jax.data import tar_members
from sam2_3dmed_jax.data.archive import PUBLISHED_MD5, archive_md5, md5_warning, unpack_case
from sam2_3dmed_jax.data.datasets import read_dataset, require_folder
from sam2_3dmed_jax.data.tar_members import read_members
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.io import read_volume


def with_member(archive: Path, name: str, **fields) -> Path:
    """Add a member with these header fields and no data."""
    with tarfile.open(archive, "a") as tar:
        info = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(info, field, value)
        # Python 3.13's `addfile` refuses a size without data.
        header = info.tobuf(tar.format, tar.encoding, tar.errors)
        tar.fileobj.write(header)
        tar.offset += len(header)
    return archive


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("../evil", {}, "'../evil' leaves the folder it is unpacked in"),
        ("Task07_Pancreas/../../evil", {}, "leaves the folder it is unpacked in"),
        ("", {}, r"is damaged \(the name of a member is empty\); re-pack the dataset"),
        ("./", {}, r"is damaged \(the name of a member is empty\)"),
        ("/etc/evil", {}, "'/etc/evil' leaves the folder it is unpacked in"),
        ("../evil", {"type": tarfile.DIRTYPE}, "'../evil' leaves the folder it is unpacked in"),
        ("x" * 200 + "/../../evil", {}, "leaves the folder it is unpacked in"),  # a long name of GNU tar or pax
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "'link' is a symbolic link, expected files"),
        ("link", {"type": tarfile.LNKTYPE, "linkname": "dataset.json"}, "'link' is a hard link, expected files"),
        ("sda", {"type": tarfile.BLKTYPE}, "'sda' is a device, expected files and folders"),
        ("tty", {"type": tarfile.CHRTYPE}, "'tty' is a device, expected files and folders"),
        ("pipe", {"type": tarfile.FIFOTYPE}, "'pipe' is a pipe, expected files and folders"),
        ("sparse", {"type": tarfile.GNUTYPE_SPARSE}, "'sparse' is a sparse file, expected files and folders"),
        ("odd", {"type": b"Z"}, "'odd' is of the unknown type b'Z', expected files and folders"),
        ("Task07_Pancreas/dataset.json", {}, "contains 'Task07_Pancreas/dataset.json' twice, expected once"),
        ("./Task07_Pancreas//dataset.json", {}, "contains 'Task07_Pancreas/dataset.json' twice, expected once"),
        ("big", {"size": 8 * 2**30 + 1}, "'big' declares 8589934593 bytes, expected at most 8589934592; remove it"),
        ("long", {"size": 2**30}, r"is truncated or damaged \(member 'long' ends at byte \d+ of \d+\); download"),
        ("odd", {"pax_headers": {"size": "-512"}}, "is damaged"),
        ("odd", {"pax_headers": {"comment": "x" * 2**17}}, "the headers of a member have more than 65536 bytes"),
        ("odd\udcff\x1b[2J", {"type": tarfile.SYMTYPE}, r"member 'odd\\udcff\\x1b\[2J' is a symbolic link"),
    ],
)
def test_an_unsafe_member_is_refused_by_name_before_data_is_read(archive: Path, name: str, fields: dict, words: str):
    with pytest.raises(UserError, match=words) as error:
        read_dataset(with_member(archive, name, **fields))
    assert str(error.value).startswith(str(archive)) and "\n" not in str(error.value)
    str(error.value).encode()  # can be printed


def test_a_pipe_in_place_of_an_archive_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "data.tar")
    with pytest.raises(UserError, match=r"data\.tar is a pipe, expected a file"):
        read_dataset(tmp_path / "data.tar")


def test_a_negative_size_is_refused_and_causes_no_endless_loop(archive: Path):
    data = bytearray(archive.read_bytes())
    name = b"Task07_Pancreas/dataset.json"
    at = data.index(name + b"\x00")
    header = data[at : at + 512]
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # base 256: -1024
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\x00 " % sum(header)
    data[at : at + 512] = header
    archive.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        read_dataset(archive)


def test_a_chain_of_long_names_is_refused_and_causes_no_deep_recursion(tmp_path: Path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5
    file = tmp_path / "x.tar"
    file.write_bytes((info.tobuf(tarfile.GNU_FORMAT) + b"name\x00".ljust(512, b"\x00")) * 5000)
    with pytest.raises(UserError, match="the headers of a member have more than 65536 bytes"):
        read_dataset(file)


def test_headers_with_random_bytes_are_read_or_raise_a_user_error(archive: Path, tmp_path: Path):
    data, rng, refused = archive.read_bytes(), random.Random(0), 0
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    file = tmp_path / "x.tar"
    for _ in range(200):
        changed, at = bytearray(data), rng.choice(headers)
        first, last = rng.choice([(0, 100), (124, 136), (156, 157), (157, 257), (345, 500), (512, 1024)])
        for _ in range(rng.randint(1, 6)):
            changed[at + rng.randrange(first, last)] = rng.randrange(256)
        changed[at + 148 : at + 156] = b" " * 8  # with a valid checksum
        changed[at + 148 : at + 156] = b"%06o\x00 " % sum(changed[at : at + 512])
        file.write_bytes(changed)
        try:
            assert read_dataset(file).labels == {1: "pancreas", 2: "cancer"}
        except UserError as error:
            refused += 1
            assert str(error).isprintable()
    assert 50 < refused < 200


def test_too_many_members_are_refused(archive: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tar_members, "COUNT_LIMIT", 5)
    with pytest.raises(UserError, match="has more than 5 members; unpack it"):
        read_dataset(archive)


def test_an_archive_truncated_at_any_member_is_refused(archive: Path, tmp_path: Path):
    data = archive.read_bytes()
    ends = [member.offset + -(-member.size // 512) * 512 for member in read_members(archive).values()]
    cut = tmp_path / "cut.tar"
    for length in {*ends, *(end + 100 for end in ends), *(end - 600 for end in ends), max(ends) + 511}:
        if length < min(ends):  # too short to be recognized as a tar
            continue
        cut.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"cut.tar is truncated or damaged \(.*\); download it again"):
            read_dataset(cut)
    cut.write_bytes(data[: max(ends) + 512])  # one block of zeros closes the archive
    assert read_dataset(cut).labels == read_dataset(archive).labels


def _gzipped(data: bytes, file: Path) -> None:
    file.write_bytes(gzip.compress(data, 1))


def _zipped(data: bytes, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.tar", data)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("x.tar.gz", _gzipped, r"is compressed with gzip, expected an uncompressed .tar, .* run `gunzip /.*x.tar.gz`"),
        ("my data.tgz", _gzipped, r"run `gunzip '/.*/my data.tgz'` and give the .tar"),
        ("x.tar", _gzipped, "is compressed with gzip"),
        ("x.zip", _zipped, "is a zip file, expected a folder or an uncompressed .tar; run `unzip"),
        (
            "x.tar",
            lambda data, file: file.write_bytes(b"no tar" * 200),
            "is not a tar archive .* give a dataset's folder",
        ),
        ("x.tar", lambda data, file: file.write_bytes(b""), "is not a tar archive .* give a dataset's folder"),
        ("x.tar", lambda data, file: file.write_bytes(bytes(10240)), "contains neither dataset.json nor imagesTr"),
    ],
)
def test_a_file_that_is_not_an_uncompressed_tar_is_refused_with_the_command_that_unpacks_it(
    archive: Path, tmp_path: Path, name: str, write: Callable[[bytes, Path], None], words: str
):
    file = tmp_path / "download" / name
    file.parent.mkdir()
    write(archive.read_bytes(), file)
    with pytest.raises(UserError, match=words):
        read_dataset(file)


def test_two_datasets_in_one_archive_are_refused(task: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(task, "Task07")
        tar.add(task, "Task09")
    with pytest.raises(UserError, match=r"contains 2 datasets \('Task07', 'Task09'\), expected one; unpack it"):
        read_dataset(tmp_path / "x.tar")


def test_control_characters_in_the_name_of_a_member_are_escaped_in_messages(archive: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("\x1b[2J/dataset.json")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"{"))
    with pytest.raises(UserError, match=r"x1b\[2J/dataset.json' is not JSON") as error:
        read_dataset(tmp_path / "x.tar")
    assert str(error.value).isprintable()


def test_a_listed_file_that_the_archive_lacks_is_refused_by_name(task: Path, tmp_path: Path):
    (task / "labelsTr" / "pancreas_004.nii.gz").unlink()
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(task, "T")
    with pytest.raises(UserError, match=r"x.tar:T/labelsTr/pancreas_004.nii.gz does not exist, but is listed"):
        read_dataset(tmp_path / "x.tar")


def test_each_case_is_unpacked_separately_under_safe_names_and_removed(archive: Path, task: Path, tmp_path: Path):
    dataset = pickle.loads(pickle.dumps(read_dataset(archive)))
    work = tmp_path / "work" / "deep"
    for case in dataset.cases:
        with unpack_case(dataset, case, work) as unpacked:
            assert unpacked.id == case.id
            files = sorted(path.relative_to(work).as_posix().split("/", 1)[1] for path in work.rglob("*.nii.gz"))
            assert files == ["image.nii.gz", "label.nii.gz"]
            for path, folder in ((unpacked.image, "imagesTr"), (unpacked.label, "labelsTr")):
                assert Path(path).read_bytes() == (task / folder / f"{case.id}.nii.gz").read_bytes()
                assert nib.load(path).shape == (6, 5, 4)
        assert list(work.iterdir()) == []


def test_unpacked_files_are_removed_after_an_error_whose_message_names_the_member(archive: Path, tmp_path: Path):
    dataset = read_dataset(archive)
    with (
        pytest.raises(UserError, match=r"Task07_Pancreas.tar:Task07_Pancreas/imagesTr/pancreas_001.nii.gz is bad"),
        unpack_case(dataset, dataset.cases[0], tmp_path / "work") as unpacked,
    ):
        raise UserError(f"{unpacked.image} is bad")
    assert list((tmp_path / "work").iterdir()) == []


def test_several_workers_can_unpack_the_same_case_at_the_same_time(archive: Path, tmp_path: Path):
    dataset = read_dataset(archive)

    def work(number: int) -> float:
        with unpack_case(dataset, dataset.cases[number % 2], tmp_path / "work") as case:
            return float(read_volume(case.image).array.sum())

    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(work, range(16)))
    assert len(set(sums)) == 2 and sums == sums[:2] * 8


def test_a_case_of_a_folder_is_not_copied(task: Path, tmp_path: Path):
    dataset = read_dataset(task)
    with unpack_case(dataset, dataset.cases[0], tmp_path / "work") as case:
        assert case is dataset.cases[0]
    assert not (tmp_path / "work").exists()


def test_an_archive_truncated_or_removed_after_it_was_read_is_refused(archive: Path, tmp_path: Path):
    dataset = read_dataset(archive)
    case = dataset.cases[0]
    os.truncate(archive, dataset.members[case.image].offset + 10)
    with (
        pytest.raises(UserError, match=r"pancreas_001.nii.gz is truncated, \d+ bytes are missing"),
        unpack_case(dataset, case, tmp_path / "work"),
    ):
        pass
    archive.unlink()
    with pytest.raises(UserError, match="cannot be unpacked"), unpack_case(dataset, case, tmp_path / "work"):
        pass
    assert list((tmp_path / "work").iterdir()) == []


def test_a_folder_that_cannot_be_created_is_refused(archive: Path):
    dataset = read_dataset(archive)
    with pytest.raises(UserError, match="cannot be written"), unpack_case(dataset, dataset.cases[0], archive / "x"):
        pass


def test_an_archive_is_refused_where_a_folder_is_needed(archive: Path):
    with pytest.raises(UserError, match="is an archive, expected a folder here; unpack it with `tar -xf`"):
        require_folder(read_dataset(archive))


def test_the_md5_of_an_archive_is_computed_with_progress(tmp_path: Path):
    file = tmp_path / "Task09_Spleen.tar"
    file.write_bytes(os.urandom(2**21 + 5))
    reported: list[tuple[int, int]] = []
    digest = archive_md5(file, lambda what, done, total: reported.append((done, total)))
    assert digest == hashlib.md5(file.read_bytes()).hexdigest()
    assert reported == [(1, 2), (2, 2), (2, 2)]
    with pytest.raises(UserError, match="absent cannot be read"):
        archive_md5(tmp_path / "absent")


def test_an_archive_with_a_published_name_and_another_md5_is_a_warning():
    warning = md5_warning("data/Task09_Spleen.tar", "0" * 32)
    assert warning and "expected 410d4a301da4e5b2f6f86ec3ddba524e; download it again unless you packed it" in warning
    assert all(md5_warning(f"data/{name}", digest) is None for name, digest in PUBLISHED_MD5.items())
    assert md5_warning("mine.tar", "0" * 32) is None
