"""Hashes agree with hashlib."""

import hashlib
import json
from pathlib import Path

from sam2_3dmed_jax.runtime import hashing


def test_a_file_is_hashed_in_blocks_that_are_reported(tmp_path: Path):
    content = bytes(range(256)) * 4096 * 2 + b"rest"  # two blocks and a bit
    (tmp_path / "file").write_bytes(content)
    blocks: list[int] = []
    assert hashing.sha256_of_file(tmp_path / "file", blocks.append) == hashlib.sha256(content).hexdigest()
    assert hashing.md5_of_file(tmp_path / "file") == hashlib.md5(content).hexdigest()
    assert blocks == [hashing.BLOCK, hashing.BLOCK, 4]


def test_the_hash_of_a_folder_depends_on_names_and_contents(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("two")
    (tmp_path / "a").write_text("one")
    expected = hashlib.sha256()
    for name, text in (("a", b"one"), ("b/c", b"two")):
        expected.update(name.encode() + hashlib.sha256(text).digest())
    assert hashing.sha256_of_folder(tmp_path) == expected.hexdigest()


def test_the_hash_of_json_does_not_depend_on_the_order_of_keys():
    expected = hashlib.sha256(json.dumps({"a": [1, 2], "b": None}).encode()).hexdigest()
    assert hashing.sha256_of_json({"b": None, "a": [1, 2]}) == expected
