"""Tables and folders of volumes to segment with `predict --cases`.

A table is a CSV file with one row per case. Its columns are named as the prompt flags of `predict`; several points,
boxes or files in a cell are separated by `;`. In a folder, `x.nii.gz` (or another format, or the folder `x` of a DICOM
series) belongs to `x.prompts.json`, `x.mrk.json`, or both.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sam2_3dmed_jax.errors import UserError, cut, listed, naming
from sam2_3dmed_jax.prompts.flags import PromptFlags
from sam2_3dmed_jax.prompts.prompt_types import PromptFlag, prompt_flags
from sam2_3dmed_jax.runtime.local_paths import check_local
from sam2_3dmed_jax.runtime.user_files import read_table
from sam2_3dmed_jax.volume.case_files import case_files, list_names
from sam2_3dmed_jax.volume.formats import case_id, case_suffixes

PROMPT_SUFFIXES = (".prompts.json", ".mrk.json")


@dataclass(frozen=True)
class PredictionCase:
    """One volume to segment."""

    name: str
    image: str
    prompts: PromptFlags = field(default_factory=PromptFlags)
    reference: str | None = None  # label map on the grid of the image, drawn in pictures
    index: int | None = None  # 0-based index of the volume of a 4D image


def case_columns() -> tuple[str, ...]:
    """Return the columns that a table may have; only `image` is required."""
    return ("image", "name", "volume", *(flag.name for flag in prompt_flags()), "reference")


def read_cases(path: str | os.PathLike[str]) -> list[PredictionCase]:
    """Read the cases of a table or of a folder, in order. Their images and prompts are not read.

    Raises:
        UserError: there are no cases, the table does not fit, or two cases have the same name.
    """
    source = Path(path)
    if not source.exists():
        raise UserError(f"--cases: {path} does not exist; give a CSV file or a folder")
    cases = _cases_of_folder(source) if source.is_dir() else list(_cases_of_table(source))
    if not cases:
        put_files = f"put x{PROMPT_SUFFIXES[0]} next to x{case_suffixes()[0]}"
        raise UserError(
            f"--cases: {path} contains no cases; {put_files if source.is_dir() else 'add one row per case'}"
        )
    name, count = Counter(case.name for case in cases).most_common(1)[0]
    if count > 1:
        images = listed([case.image for case in cases if case.name == name])
        raise UserError(
            f"--cases: {path} has {count} cases named '{name}'; give each its own name in the column name: {images}"
        )
    return cases


def images_without_prompts(folder: str | os.PathLike[str]) -> list[str]:
    """Return the images of a folder of cases that have no prompt file."""
    names = list_names(folder)
    prompted = {case_id(name, PROMPT_SUFFIXES) for name in names}
    ids = {name.removesuffix("/"): _image_id(name) for name in names if not name.startswith(".")}
    return [name for name, id in ids.items() if id and id not in prompted]


def _cases_of_folder(folder: Path) -> list[PredictionCase]:
    prompts: dict[str, list[str]] = {}
    others: list[str] = []
    for name in list_names(folder):
        id = None if name.startswith(".") else case_id(name, PROMPT_SUFFIXES)
        if id:
            prompts.setdefault(id, []).append(str(folder / name))
        else:
            others.append(name)
    images = case_files(others, case_suffixes(), folder, subfolders=True)
    cases = []
    for id, files in prompts.items():
        # A missing image is a failure of its case, reported when it is read.
        image = folder / images.get(id, f"{id}{case_suffixes()[0]}")
        cases.append(PredictionCase(id, str(image), PromptFlags(prompts=files)))
    return cases


def _cases_of_table(path: Path) -> Iterator[PredictionCase]:
    for line, row in _rows(path):
        with naming(f"{path}, line {line}"):
            for text in (part.strip() for cell in row.values() for part in cell.split(";")):
                check_local(text)
        name = row.get("name") or case_id(Path(row["image"]).name, case_suffixes()) or Path(row["image"]).name
        if Path(name).name != name or name.startswith("."):
            raise UserError(f"{path}, line {line}: '{name}' is not a file name; change the column name")
        index = row.get("volume") or None
        if index and not re.fullmatch("[0-9]{1,6}", index):
            raise UserError(
                f"{path}, line {line}: '{cut(index, 40)}' is not a volume of a 4D image; give its index, from 0"
            )
        texts = {flag.name: _texts(flag, row.get(flag.name, ""), path.parent) for flag in prompt_flags()}
        reference = str(path.parent / row["reference"]) if row.get("reference") else None
        image = str(path.parent / row["image"])
        yield PredictionCase(name, image, PromptFlags(**texts), reference, int(index) if index else None)


def _texts(flag: PromptFlag, cell: str, folder: Path) -> list[str]:
    """Return the texts of a flag in a cell; files are relative to the folder of the table."""
    texts = [text.strip() for text in cell.split(";")] if flag.repeatable else [cell]
    return [str(folder / text) if flag.is_file else text for text in texts if text]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the stripped cells of each row that is not empty."""
    with naming("--cases"):
        table = read_table(path, "give a CSV table with one row per case, or a folder", strip=True)
    columns = case_columns()
    unknown = [name for name in table.columns if name not in columns]
    if "image" not in table.columns or unknown:
        problem = f"the column '{cut(unknown[0], 60)}'" if unknown else "no column 'image'"
        raise UserError(
            f"--cases: {path} has {problem}; its columns are image and, optionally, {', '.join(columns[1:])}"
        )
    for line, cells in table.rows:
        if not cells["image"]:
            raise UserError(f"{path}, line {line}: the image is missing; name one")
        yield line, dict.fromkeys(columns, "") | cells


def _image_id(name: str) -> str | None:
    """Return the case id of an image or, with a slash at the end, of the folder of a series."""
    return name[:-1] if name.endswith("/") else case_id(name, case_suffixes())
