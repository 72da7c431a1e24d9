"""Files that several processes write at a time, as runs that share a folder of features do."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sam2_3dmed_jax.runtime.atomic_files import replace_text


def test_writers_of_one_file_are_not_in_each_others_way_and_one_of_them_stands(tmp_path: Path):
    texts = [f"{number}" * 100_000 for number in range(8)]

    def write(text: str) -> None:
        for _ in range(50):
            replace_text(tmp_path / "record.json", text)

    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(write, texts))
    assert (tmp_path / "record.json").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
