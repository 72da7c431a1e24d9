"""Which files the page can open."""

import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.server.files import ImageFiles
from tests.helpers.scans import scan_file


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root" / "a").mkdir(parents=True)
    scan_file(tmp_path / "root" / "ct.nii.gz")
    scan_file(tmp_path / "root" / "a" / "mr.nii.gz")
    scan_file(tmp_path / "secret.nii.gz")
    (tmp_path / "root" / "notes.txt").write_text("no image")
    (tmp_path / "root" / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    (tmp_path / "root" / "inside.nii.gz").symlink_to(tmp_path / "root" / "ct.nii.gz")
    (tmp_path / "root" / "circle.nii.gz").symlink_to(tmp_path / "root" / "circle.nii.gz")
    return tmp_path / "root"


def test_images_below_the_root_are_listed(root):
    names = ImageFiles(None, root, 10).names()
    assert {"ct.nii.gz", "a/mr.nii.gz"} <= set(names)
    assert "notes.txt" not in names


def test_the_list_has_a_limit(root):
    assert len(ImageFiles(None, root, 1).names()) == 1


def test_links_are_followed_inside_of_the_root_only(root):
    files = ImageFiles(None, root, 10)
    assert files.path_of("inside.nii.gz") == root / "ct.nii.gz"
    for name in ("link.nii.gz", "circle.nii.gz"):
        with pytest.raises(UserError, match="not an image of this server"):
            files.path_of(name)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.nii.gz",
        "a/../../secret.nii.gz",
        "/etc/passwd",
        "",
        "..",
        "missing",
        "a\0b",
        "a\\b",
        "ct.nii.gz/x",
        "~",
    ],
)
def test_other_names_are_refused(root, name):
    with pytest.raises(UserError, match="not an image of this server"):
        ImageFiles(None, root, 10).path_of(name)


def test_a_single_image_is_the_only_one(root):
    files = ImageFiles(root / "ct.nii.gz", None, 10)
    assert files.names() == ["ct.nii.gz"]
    assert files.path_of("ct.nii.gz") == root / "ct.nii.gz"
    with pytest.raises(UserError):
        files.path_of("a/mr.nii.gz")
