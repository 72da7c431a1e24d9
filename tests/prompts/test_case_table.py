"""Tables and folders of cases: what they name, and one sentence for a table that does not fit."""

from pathlib import Path

import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.case_table import Case, read_cases, without_prompts
from sam2_3dmed_jax.prompts.flags import PromptFlags

TABLE = """\
image,name,point,point_mm,box,mask,prompts,reference
a.nii.gz,,"1,2,3; 4,5,6,0,2",,,,,ref/a.nii.gz
sub/a.nii.gz,other,,"-1.5,2,3","1,1,1,2,2,2",m.nii.gz,p.json;q.mrk.json,

,,,,,,,
"""


def table(folder: Path, text: str) -> Path:
    path = folder / "cases.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_is_a_case_with_files_relative_to_the_table(tmp_path: Path):
    at = lambda name: str(tmp_path / name)  # noqa: E731 - a word for each of many paths
    assert read_cases(table(tmp_path, "\ufeff" + TABLE)) == [
        Case("a", at("a.nii.gz"), PromptFlags(point=("1,2,3", "4,5,6,0,2")), at("ref/a.nii.gz")),
        Case(
            "other",
            at("sub/a.nii.gz"),
            PromptFlags(
                point_mm=("-1.5,2,3",),
                box=("1,1,1,2,2,2",),
                mask=at("m.nii.gz"),
                prompts=(at("p.json"), at("q.mrk.json")),
            ),
        ),
    ]


def test_in_a_folder_an_image_goes_with_the_prompts_of_its_name(tmp_path: Path):
    for name in ("a.nii.gz", "a.prompts.json", "a.mrk.json", "b.nii", "b.mrk.json", "c.nii.gz", "d.prompts.json"):
        (tmp_path / name).touch()
    found = {case.name: case for case in read_cases(tmp_path)}
    assert list(found) == ["a", "b", "d"]
    assert found["a"].prompts.prompts == (str(tmp_path / "a.mrk.json"), str(tmp_path / "a.prompts.json"))
    assert found["b"].image == str(tmp_path / "b.nii")
    assert found["d"].image == str(tmp_path / "d.nii.gz")  # absent: a failure of that case, when it is read
    assert without_prompts(tmp_path) == ["c.nii.gz"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "has no 'image'"),
        ("point\n1", "has no 'image'"),
        ("image,points\na,b", "has the column 'points'; its columns are image and, at will, name, volume, point"),
        ("image,image\na,b", "has a column twice"),
        ("image\n", "holds no cases; add a row"),
        ("image,point\na.nii,1,2,3", "line 2: it has more cells than columns; put cells with commas in quotes"),
        ("image,point\n,1", "line 2: there is no image"),
        ("image,name\na.nii,../b", "line 2: '../b' is no name of a file"),
        ("image,name\na.nii,.", "line 2: '.' is no name of a file"),
        ("image\na.nii\nsub/a.nii.gz", "2 cases named 'a'; name them apart"),
        ("image\n" + "a" * 200_000, "is no CSV table"),
    ],
)
def test_a_table_that_does_not_fit_is_one_sentence(tmp_path: Path, text: str, named: str):
    with pytest.raises(UserError, match=named):
        read_cases(table(tmp_path, text))


def test_what_is_no_table_and_no_folder_of_cases_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent does not exist; give a CSV file or a folder"):
        read_cases(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no cases; put x\.prompts\.json beside x\.nii\.gz"):
        read_cases(tmp_path)
    (tmp_path / "cases.csv").write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(UserError, match="is no CSV table in UTF-8"):
        read_cases(tmp_path / "cases.csv")
