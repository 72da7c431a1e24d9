"""One row a case and class: overlap, volumes, and what the method was told; then summaries and files.

Means are over cases, then over classes. A class that a case lacks is not prompted and has no score; a file that
claims it all the same scores 0. Surfaces and reports come later.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed_jax.data.msd import Case
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.overlap import overlap_metrics
from sam2_3dmed_jax.evaluation.protocol import check_protocol, prompt_of
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.inference.segment import segment_volume
from sam2_3dmed_jax.inference.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.io import read_labels, read_volume

Row = dict[str, Any]
Progress = Callable[[str, int, int], None]  # (what, done, total)

METRICS = ("dice", "iou", "dice_without_prompted_slices")
COLUMNS = (
    *("case", "class", *METRICS, "volume_ml_prediction", "volume_ml_reference", "fp_ml_outside_extent"),
    *("protocol", "prompt_source", "n_prompts", "prompt_slices", "seconds", "empty"),
)
_EMPTY = {(True, True): "", (True, False): "reference", (False, True): "prediction", (False, False): "both"}
NO_PROTOCOL = "files"  # masks that another program wrote: nobody here knows what it was told
DEFINITIONS = {
    "dice": "2 |P n R| / (|P| + |R|) over all voxels of the case; both masks empty: NaN, one empty: 0",
    "iou": "|P n R| / |P u R|, the same way",
    "dice_without_prompted_slices": "dice over the slices without a prompt",
    "fp_ml_outside_extent": "millilitres predicted on slices beyond the reference's first and last one",
    "seconds": "wall time of a case, all its classes together, without reading files",
    "empty": "'prediction' or 'reference' empty, 'both', or ''; a class that the reference lacks is not prompted",
    "averaging": "mean, SD (n - 1) and median over cases with a score, a class at a time; macro: mean of the classes",
}


def evaluate_model(
    predictor: VolumePredictor,
    cases: Sequence[Case],
    classes: dict[int, str],
    protocol: str,
    progress: Progress | None = None,
) -> list[Row]:
    """Segment and score cases; the classes of a case are objects of one session.

    Args:
        predictor: the model.
        cases: labelled scans.
        classes: label value to name.
        protocol: how prompts are made from the reference, see `protocol`.
        progress: called with (what, done, total) after each case.

    Returns:
        Rows with the keys `COLUMNS`, in the order of cases and classes.

    Raises:
        UserError: no such protocol, or files that cannot be read or do not fit each other.
    """
    check_protocol(protocol)
    rows = []
    for done, case in enumerate(cases, 1):
        volume = read_volume(case.image)
        reference = read_labels(case.label, volume)
        prompts = {
            value: prompt_of(protocol, reference == value, volume.spacing, value)
            for value in classes
            if (reference == value).any()
        }
        start = time.perf_counter()
        labels = np.zeros(reference.shape, np.uint16)
        if prompts:
            labels = segment_volume(predictor, volume, list(prompts.values())).labels
        seconds = time.perf_counter() - start
        for value, name in classes.items():
            told = [prompts[value]] if value in prompts else []
            found = score(labels == value, reference == value, volume, [prompt.slice for prompt in told])
            if not told:
                found["empty"] = "reference"
            rows.append({"case": case.id, "class": name, **found, **_told(protocol, told), "seconds": seconds})
        if progress:
            progress("evaluating cases", done, len(cases))
    return rows


def evaluate_files(
    predictions: str | os.PathLike[str],
    references: str | os.PathLike[str],
    classes: dict[int, str],
    progress: Progress | None = None,
) -> list[Row]:
    """Score label maps that any method wrote, against those of the same name in another folder.

    Args:
        predictions: folder of NIfTI files, one for each file of `references`.
        references: folder of NIfTI files.
        classes: label value to name; {}: every value of the references, named by itself.
        progress: called with (what, done, total) after each case.

    Raises:
        UserError: a folder or file is missing, or a prediction lies on another grid than its reference.
    """
    folders = [Path(predictions), Path(references)]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; give the one with the NIfTI files")
    names = sorted(
        path.name for path in folders[1].iterdir() if path.name.endswith((".nii", ".nii.gz")) and path.name[0] != "."
    )
    if not names:
        raise UserError(f"{folders[1]}: it holds no .nii or .nii.gz file; give the folder of reference label maps")
    absent = [name for name in names if not (folders[0] / name).exists()]
    if absent:
        raise UserError(
            f"{folders[0]}: {len(absent)} of {len(names)} predictions are missing, first {absent[0]}; "
            "name each like its reference"
        )
    if not classes:
        values: set[int] = set()
        for name in names:
            values.update(np.unique(read_volume(folders[1] / name).array).astype(int).tolist())
        classes = {value: str(value) for value in sorted(values) if value > 0}
        if not classes:
            raise UserError(f"{folders[1]}: its label maps are all empty; give references that hold an object")
    rows = []
    for done, name in enumerate(names, 1):
        volume = read_volume(folders[1] / name)
        reference, labels = read_labels(folders[1] / name, volume), read_labels(folders[0] / name, volume)
        for value, title in classes.items():
            found = score(labels == value, reference == value, volume)
            told = {"protocol": NO_PROTOCOL, "prompt_source": "unknown", "n_prompts": "", "prompt_slices": ""}
            rows.append({"case": name.split(".nii")[0], "class": title, **found, **told, "seconds": math.nan})
        if progress:
            progress("evaluating files", done, len(names))
    return rows


def score(prediction: np.ndarray, reference: np.ndarray, volume: Volume, prompted: Sequence[int] = ()) -> Row:
    """The columns of a row that two masks of a volume settle.

    Args:
        prediction: bool `[D, H, W]`.
        reference: bool `[D, H, W]`.
        volume: gives the size of a voxel.
        prompted: canonical slices on which a prompt was given.
    """
    other = np.setdiff1d(np.arange(len(reference)), prompted)
    slices = np.flatnonzero(reference.any((1, 2)))
    beyond = prediction.copy()
    if len(slices):
        beyond[slices[0] : slices[-1] + 1] = False
    voxel = volume.voxel_volume_ml
    return {
        **overlap_metrics(prediction, reference),
        "dice_without_prompted_slices": overlap_metrics(prediction[other], reference[other])["dice"],
        "volume_ml_prediction": np.count_nonzero(prediction) * voxel,
        "volume_ml_reference": np.count_nonzero(reference) * voxel,
        "fp_ml_outside_extent": np.count_nonzero(beyond) * voxel,
        "empty": _EMPTY[bool(prediction.any()), bool(reference.any())],
    }


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over cases for each class, and their plain mean over classes; what could not be averaged is None.

    Returns:
        {"classes": {name: {"cases", "empty": {kind: count}, metric: {"mean", "sd", "median", "n"}}},
        "macro_dice" and the like: mean or None, "protocol", "definitions", "note"}.
    """
    classes: dict[str, Any] = {}
    for name in dict.fromkeys(row["class"] for row in rows):
        own = [row for row in rows if row["class"] == name]
        kinds = {kind: sum(row["empty"] == kind for row in own) for kind in ("both", "prediction", "reference")}
        classes[name] = {"cases": len(own), "empty": kinds, **{m: _spread([r[m] for r in own]) for m in METRICS}}
    means = {metric: [entry[metric]["mean"] for entry in classes.values()] for metric in METRICS}
    scored = {metric: [value for value in values if value is not None] for metric, values in means.items()}
    return {
        "note": "for research use only",
        "protocol": sorted({str(row["protocol"]) for row in rows}),
        **{f"macro_{metric}": statistics.fmean(values) if values else None for metric, values in scored.items()},
        "classes": classes,
        "definitions": DEFINITIONS,
    }


def write_results(rows: Sequence[Row], summary: dict[str, Any], out: str | os.PathLike[str]) -> None:
    """Write `cases.csv` and `summary.json` into a folder, each whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        for name, content in (("cases.csv", table.getvalue()), ("summary.json", text)):
            temporary = Path(out, f".{name}.{os.getpid()}.tmp")
            temporary.write_text(content, encoding="utf-8", newline="")
            os.replace(temporary, Path(out, name))
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}); give a folder with room and write access"
        ) from None


def _told(protocol: str, prompts: Sequence[VoxelPrompt]) -> Row:
    """The columns that say what the predictor was told; slices are canonical indices, with spaces between them."""
    return {
        "protocol": protocol,
        "prompt_source": "reference" if prompts else "none",
        "n_prompts": len(prompts),
        "prompt_slices": " ".join(str(prompt.slice) for prompt in prompts),
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    scored = [value for value in values if not math.isnan(value)]
    return {
        "mean": statistics.fmean(scored) if scored else None,
        "sd": statistics.stdev(scored) if len(scored) > 1 else None,
        "median": statistics.median(scored) if scored else None,
        "n": len(scored),
    }
