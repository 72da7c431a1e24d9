"""Index of a prepared dataset: each member that was changed to another type or size is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.errors import UserError
from tests.helpers.prepared_files import write_prepared


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = np.zeros((3, 8, 8), np.uint8)
    labels[1, 2:5, 2:5] = 1
    folder = tmp_path_factory.mktemp("prepared") / "data"
    write_prepared(folder, {"a": (np.zeros((3, 8, 8), np.int16), labels)}, {1: "ball"})
    return folder


@pytest.fixture
def index(prepared: Path) -> Any:
    """The index file, which is restored after the test."""
    file = prepared / "index.json"
    text = file.read_text()
    yield file
    file.write_text(text)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("cases", 0, "shard"), 5, r"cases\[0\].shard is 5, expected a text"),
        (("cases", 0, "shard"), "../../x", r"cases\[0\].shard is .*, expected a path inside of the folder"),
        (("cases", 0, "shard"), "/etc/passwd", "expected a path inside of the folder"),
        (("cases", 0, "shape", 1), "10", r"cases\[0\].shape\[1\] is \"10\", expected a whole number"),
        (("cases", 0, "shape", 2), -4, r"cases\[0\].shape is \[3, 8, -4\], expected numbers from 1 to 65535"),
        (("cases", 0, "shape", 2), 2**62, "expected numbers from 1 to 65535"),
        (("cases", 0, "shape"), [3, 65535, 65535 * 2], "expected numbers from 1 to 65535"),
        (("cases", 0, "shape"), [65535, 65535, 65535], "shape is .*, expected at most 17179869184 voxels"),
        (("cases", 0, "spacing", 1), "x", r"cases\[0\].spacing\[1\] is \"x\", expected a number"),
        (("cases", 0, "spacing", 1), 0, "spacing is .*, expected numbers from 1e-06 to 1000000"),
        (("cases", 0, "affine"), [[1, 2], [3, 4]], r"cases\[0\].affine\[0\]\[2\] is missing"),
        (("cases", 0, "slope"), "x", r"cases\[0\].slope is \"x\", expected a number"),
        (("cases", 0, "slope"), 0, "slope is 0, expected another number"),
        (("cases", 0, "id"), ["x"], r"cases\[0\].id is \['x'\], expected a text"),
        (("cases", 0, "id"), "a/b", r"cases\[0\].id is \"a/b\", expected a file name"),
        (("cases", 0, "areas"), {"1": [[1], [2]]}, r"cases\[0\].areas.1\[0\] is \[1\], expected a whole number"),
        (("cases", 0, "areas"), {"1": [1]}, "areas.1 is not the list of 3 areas of a label from 1 to 255"),
        (("cases", 0, "areas"), {"999": [1, 1, 1]}, "areas.999 is not the list"),
        (("labels",), {"x": "ball"}, "labels.x is"),
        (("source",), 5, "source is 5, expected an object"),
        (("source", "ids", 0), 7, r"source.ids\[0\] is 7, expected a text"),
        (("source",), {"ids": ["a"]}, "source.fingerprint is missing"),
        (("format",), [1], r"has format \[1\], expected 1"),
        (("unknown",), 5, "unknown is not a known field"),
    ],
)
def test_a_changed_member_is_refused_by_its_path(index: Path, path: tuple, value: object, message: str):
    record = json.loads(index.read_text())
    at = record
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    index.write_text(json.dumps(record))
    with pytest.raises(UserError, match=message) as caught:
        read_prepared(index.parent)
    assert "sam2-3dmed prepare" in str(caught.value)


def test_a_deep_index_and_a_folder_in_its_place_are_refused(prepared: Path, index: Path, tmp_path: Path):
    index.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"index\.json is not JSON"):
        read_prepared(prepared)
    (tmp_path / "index.json").mkdir()
    with pytest.raises(UserError, match=r"index\.json is a folder, expected a file"):
        read_prepared(tmp_path)
