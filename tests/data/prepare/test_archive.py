"""`prepare` of an archive: the same shards as from its folder, one case unpacked at a time, and the MD5."""

import gzip
import json

import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.data import archive as archives
from sam2_3dmed_jax.data.prepare import source as prepare_source
from sam2_3dmed_jax.data.prepared import read_prepared
from tests.data.conftest import pack
from tests.helpers.source_files import contents


def test_an_archive_gives_the_same_shards_as_its_folder_and_leaves_nothing_unpacked(task, archive, tmp_path, capsys):
    assert main(["prepare", str(task), str(tmp_path / "folder"), "--workers", "1"]) == 0
    assert main(["prepare", str(archive), str(tmp_path / "tar"), "--workers", "2"]) == 0
    from_folder, from_tar = contents(tmp_path / "folder"), contents(tmp_path / "tar")
    assert {name for name in from_tar if name.startswith("shards/")} == {
        f"shards/pancreas_{n}.arrayrecord" for n in ("001", "004", "010")
    }
    assert all(from_tar[name] == shard for name, shard in from_folder.items() if name.startswith("shards/"))
    dataset = read_prepared(tmp_path / "tar")
    assert dataset.cases == read_prepared(tmp_path / "folder").cases
    assert dataset.labels == {1: "pancreas", 2: "cancer"}
    assert dataset.source["relase"] == "1.0 04/05/2018" and dataset.source["archive"] == "Task07_Pancreas.tar"


def test_an_archive_with_a_published_name_and_another_md5_is_prepared_with_a_note(
    archive, tmp_path, capsys, monkeypatch
):
    assert main(["prepare", str(archive), str(tmp_path / "out"), "--workers", "1"]) == 0
    digest = archives.archive_md5(archive)
    note = f"note: {archive} has the MD5 {digest}, expected 4f7080cfca169fa8066d17ce6eb061e4"
    assert note in capsys.readouterr().out
    assert read_prepared(tmp_path / "out").source["md5"] == digest

    def read_again(*_):
        raise AssertionError("the archive is read twice")

    monkeypatch.setattr(prepare_source, "archive_md5", read_again)
    assert main(["prepare", str(archive), str(tmp_path / "out"), "--workers", "1"]) == 0
    output = capsys.readouterr().out
    assert note in output and "nothing to do: 3 cases" in output


def test_a_damaged_member_is_refused_by_its_name_in_the_archive(task, tmp_path, capsys):
    member = task / "imagesTr" / "pancreas_004.nii.gz"
    member.write_bytes(member.read_bytes()[:-30])
    with pytest.raises(EOFError):
        gzip.decompress(member.read_bytes())
    packed = pack(task, tmp_path / "mine.tar", "task")
    assert main(["prepare", str(packed), str(tmp_path / "out"), "--workers", "1"]) == 0
    output = capsys.readouterr().out
    assert "refused 1 of 3 cases" in output and f"{packed}:task/imagesTr/pancreas_004.nii.gz" in output
    assert [case["id"] for case in json.loads((tmp_path / "out" / "index.json").read_text())["cases"]] == [
        "pancreas_001",
        "pancreas_010",
    ]
