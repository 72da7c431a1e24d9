"""Cases of a batch: a CSV table with one a row, or a folder of images with their prompts beside them.

The columns are named as the flags of `predict` are; several points, boxes or files in a cell stand apart by `;`.
In a folder, `x.nii.gz` (or another format, or the folder `x` of a DICOM series) goes with `x.prompts.json`, with
`x.mrk.json`, or with both.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.prompts.flags import PromptFlags

COLUMNS = ("image", "name", "volume", *(flag.name for flag in fields(PromptFlags)), "reference")
IMAGES = (".nii.gz", ".nii", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")  # or a folder: DICOM
PROMPTS = (".prompts.json", ".mrk.json")
MAX_BYTES = 64 << 20  # of a table; more is another kind of file


@dataclass(frozen=True)
class Case:
    """One volume to segment."""

    name: str
    image: str
    prompts: PromptFlags = field(default_factory=PromptFlags)
    reference: str | None = None  # label map on the image's grid, drawn in pictures
    index: int | None = None  # of the volume of a 4D image, 0-based


def read_cases(path: str | os.PathLike[str]) -> list[Case]:
    """The cases of a table or of a folder, in their order.

    Raises:
        UserError: there are none, a table that does not fit, or two cases of one name. Whether images and prompts
            can be read shows when they are.
    """
    source = Path(path)
    if not source.exists():
        raise UserError(f"--cases: {path} does not exist; give a CSV file or a folder")
    cases = _of_folder(source) if source.is_dir() else list(_of_table(source))
    if not cases:
        mend = f"put x{PROMPTS[0]} beside x{IMAGES[0]}" if source.is_dir() else "add a row a case"
        raise UserError(f"--cases: {path} holds no cases; {mend}")
    name, times = Counter(case.name for case in cases).most_common(1)[0]
    if times > 1:
        raise UserError(f"--cases: {path} has {times} cases named '{name}'; name them apart in the column name")
    return cases


def without_prompts(folder: str | os.PathLike[str]) -> list[str]:
    """Images of a folder of cases that have no prompts beside them."""
    stems = {_stem(path, PROMPTS) for path in Path(folder).iterdir()}
    return sorted(path.name for path in Path(folder).iterdir() if _image_stem(path) and _image_stem(path) not in stems)


def _of_folder(folder: Path) -> list[Case]:
    prompts: dict[str, list[str]] = {}
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if stem := _stem(path, PROMPTS):
            prompts.setdefault(stem, []).append(str(path))
        elif stem := _image_stem(path):
            images.setdefault(stem, path)
    cases = []
    for stem, files in prompts.items():
        image = images.get(stem, folder / f"{stem}{IMAGES[0]}")  # if missing, that case's failure, when it is read
        cases.append(Case(stem, str(image), PromptFlags(prompts=tuple(files))))
    return cases


def _of_table(path: Path) -> Iterator[Case]:
    for line, row in _rows(path):
        name = row.get("name") or _stem(Path(row["image"]), IMAGES) or Path(row["image"]).name
        if Path(name).name != name or name.startswith("."):
            raise UserError(f"{path}, line {line}: '{name}' is no name of a file; change the column name")

        def parts(column: str, row: dict[str, str] = row) -> tuple[str, ...]:
            return tuple(part.strip() for part in row.get(column, "").split(";") if part.strip())

        def file(column: str, row: dict[str, str] = row) -> str | None:
            return str(path.parent / row[column]) if row.get(column) else None

        flags = PromptFlags(
            point=parts("point"),
            point_mm=parts("point_mm"),
            box=parts("box"),
            mask=file("mask"),
            scribble=file("scribble"),
            scribble_outside=row.get("scribble_outside") or None,
            prompts=tuple(str(path.parent / part) for part in parts("prompts")),
        )
        index = row.get("volume") or None
        if index and not index.isdecimal():
            raise UserError(f"{path}, line {line}: '{index}' is no volume of a 4D image; give its index, from 0")
        image = str(path.parent / row["image"])
        yield Case(name, image, flags, file("reference"), int(index) if index else None)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and cells, stripped; empty lines are left out."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"--cases: {path} is over {MAX_BYTES >> 20} MiB; give a CSV table, one row a case")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except OSError as error:
        raise UserError(f"--cases: {path} cannot be read ({error.strerror}); give a CSV file or a folder") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"--cases: {path} is no CSV table in UTF-8 ({error}); save it as one") from None
    unknown = [cell for cell in header if cell not in COLUMNS]
    if "image" not in header or unknown or len(set(header)) < len(header):
        wrong = (
            f"the column '{unknown[0][:60]}'" if unknown else "a column twice" if "image" in header else "no 'image'"
        )
        raise UserError(f"--cases: {path} has {wrong}; its columns are image and, at will, {', '.join(COLUMNS[1:])}")
    for line, row in rows:
        if not any(row):
            continue
        if len(row) > len(header):
            raise UserError(f"{path}, line {line}: it has more cells than columns; put cells with commas in quotes")
        cells = dict(zip(header, row, strict=False))
        if not cells["image"]:
            raise UserError(f"{path}, line {line}: there is no image; name one")
        yield line, cells


def _image_stem(path: Path) -> str:
    return path.name if path.is_dir() else _stem(path, IMAGES)


def _stem(path: Path, suffixes: tuple[str, ...]) -> str:
    """The name without the first suffix that fits, or nothing."""
    return next((path.name.removesuffix(suffix) for suffix in suffixes if path.name.endswith(suffix)), "")
