"""Tables and folders of cases to segment, and errors in them."""

from pathlib import Path

import pytest

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.case_table import PredictionCase, images_without_prompts, read_cases
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


def test_a_row_is_a_case_and_its_files_are_relative_to_the_table(tmp_path: Path):
    at = lambda name: str(tmp_path / name)  # noqa: E731 - short, since it is used for many paths
    assert read_cases(table(tmp_path, "\ufeff" + TABLE)) == [
        PredictionCase("a", at("a.nii.gz"), PromptFlags(point=("1,2,3", "4,5,6,0,2")), at("ref/a.nii.gz")),
        PredictionCase(
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


def test_in_a_folder_an_image_belongs_to_the_prompt_files_with_its_name(tmp_path: Path):
    for name in ("a.nii.gz", "a.prompts.json", "a.mrk.json", "b.nii", "b.mrk.json", "c.nii.gz", "d.prompts.json"):
        (tmp_path / name).touch()
    cases = {case.name: case for case in read_cases(tmp_path)}
    assert list(cases) == ["a", "b", "d"]
    assert cases["a"].prompts["prompts"] == (str(tmp_path / "a.mrk.json"), str(tmp_path / "a.prompts.json"))
    assert cases["b"].image == str(tmp_path / "b.nii")
    assert cases["d"].image == str(tmp_path / "d.nii.gz")  # missing, reported when the case is read
    assert images_without_prompts(tmp_path) == ["c.nii.gz"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'image'"),
        ("point\n1", "has no column 'image'"),
        ("image,points\na,b", "has the column 'points'; its columns are image and, optionally, name, volume, point"),
        ("image,image\na,b", "has two columns 'image'"),
        ("image\n", "contains no cases; add one row per case"),
        ("image,point\na.nii,1,2,3", "line 2: it has more cells than columns; put cells with commas in quotes"),
        ("image,point\n,1", "line 2: the image is missing"),
        ("image,name\na.nii,../b", "line 2: '../b' is not a file name"),
        ("image,name\na.nii,.", "line 2: '.' is not a file name"),
        ("image,volume\na.nii," + "1" * 5000, "line 2: '1+ ... 1+' is not a volume of a 4D image; give its index"),
        ("image,volume\na.nii,²", "line 2: '²' is not a volume of a 4D image; give its index"),
        ("image\na.nii\nsub/a.nii.gz", "2 cases named 'a'; give each its own name"),
        ("image\n" + "a" * 200_000, "is not a CSV table"),
    ],
)
def test_an_error_in_a_table_is_one_sentence(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message):
        read_cases(table(tmp_path, text))


def test_a_path_that_is_neither_a_table_nor_a_folder_of_cases_is_rejected(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent does not exist; give a CSV file or a folder"):
        read_cases(tmp_path / "absent")
    with pytest.raises(UserError, match=r"contains no cases; put x\.prompts\.json next to x\.nii\.gz"):
        read_cases(tmp_path)
    (tmp_path / "cases.csv").write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(UserError, match="is not a CSV table in UTF-8"):
        read_cases(tmp_path / "cases.csv")
