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
from sam2_3dmed_jax.evaluation.protocol import check_protocol, describe_prompts, protocol_prompts
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.inference.segment import VoxelPrompt, segment_volume
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.io import read_labels, read_volume

Row = dict[str, Any]
Segmenter = Callable[[Volume, list[VoxelPrompt]], np.ndarray]  # labels [D, H, W] in canonical order
Progress = Callable[[str, int, int], None]  # (what, done, total)

METRICS = ("dice", "iou", "dice_without_prompted_slices")
COLUMNS = (
    *("case", "class", *METRICS, "volume_ml_prediction", "volume_ml_reference", "fp_ml_outside_extent"),
    *("protocol", "prompt_source", "n_prompts", "prompt_slices", "seconds", "empty"),
)
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


def evaluate(
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
    return evaluate_segmenter(
        lambda volume, prompts: segment_volume(predictor, volume, prompts).labels, cases, classes, protocol, progress
    )


def evaluate_segmenter(
    segment: Segmenter,
    cases: Sequence[Case],
    classes: dict[int, str],
    protocol: str,
    progress: Progress | None = None,
) -> list[Row]:
    """`evaluate` for any promptable method; `segment` gets prompts whose object ids are the label values."""
    check_protocol(protocol)
    rows = []
    for done, case in enumerate(cases, 1):
        volume = read_volume(case.image)
        reference = read_labels(case.label, volume)
        told = {value: protocol_prompts(protocol, reference == value, volume.spacing, value) for value in classes}
        prompts = [prompt for own in told.values() for prompt in own]
        start = time.perf_counter()
        labels = segment(volume, prompts) if prompts else np.zeros(reference.shape, np.uint16)
        seconds = time.perf_counter() - start
        for value, name in classes.items():
            slices = {prompt.slice for prompt in told[value]}
            scores = score_masks(labels == value, reference == value, volume.voxel_volume_ml, slices)
            if not told[value]:
                scores["empty"] = "reference"
            rows.append(
                {
                    "case": case.id,
                    "class": name,
                    **scores,
                    **describe_prompts(protocol, told[value]),
                    "seconds": seconds,
                }
            )
        if progress:
            progress("evaluating cases", done, len(cases))
    return rows


def evaluate_files(
    predictions: str | os.PathLike[str],
    references: str | os.PathLike[str],
    classes: dict[int, str] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Score label maps that any method wrote, against those of the same name in another folder.

    Args:
        predictions: folder of NIfTI files, one for each file of `references`.
        references: folder of NIfTI files.
        classes: label value to name; None: every value of the references, named by itself.
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
    if classes is None:
        found: set[int] = set()
        for name in names:
            found.update(np.unique(read_volume(folders[1] / name).array).astype(int).tolist())
        classes = {value: str(value) for value in sorted(found) if value > 0}
        if not classes:
            raise UserError(f"{folders[1]}: its label maps are all empty; give references that hold an object")
    rows = []
    for done, name in enumerate(names, 1):
        grid = read_volume(folders[1] / name)
        reference, labels = read_labels(folders[1] / name, grid), read_labels(folders[0] / name, grid)
        for value, title in classes.items():
            scores = score_masks(labels == value, reference == value, grid.voxel_volume_ml, set())
            told = {"protocol": NO_PROTOCOL, "prompt_source": "unknown", "n_prompts": "", "prompt_slices": ""}
            rows.append({"case": name.split(".nii")[0], "class": title, **scores, **told, "seconds": math.nan})
        if progress:
            progress("evaluating files", done, len(names))
    return rows


def score_masks(prediction: np.ndarray, reference: np.ndarray, voxel_volume_ml: float, prompted: set[int]) -> Row:
    """The columns of a row that two bool masks `[D, H, W]` settle; `prompted` are canonical slice indices."""
    other = np.setdiff1d(np.arange(len(reference)), sorted(prompted))
    slices = np.flatnonzero(reference.any((1, 2)))
    beyond = prediction.copy()
    if len(slices):
        beyond[slices[0] : slices[-1] + 1] = False
    return {
        **overlap_metrics(prediction, reference),
        "dice_without_prompted_slices": overlap_metrics(prediction[other], reference[other])["dice"],
        "volume_ml_prediction": np.count_nonzero(prediction) * voxel_volume_ml,
        "volume_ml_reference": np.count_nonzero(reference) * voxel_volume_ml,
        "fp_ml_outside_extent": np.count_nonzero(beyond) * voxel_volume_ml,
        "empty": {(True, True): "", (True, False): "reference", (False, True): "prediction", (False, False): "both"}[
            bool(prediction.any()), bool(reference.any())
        ],
    }


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over cases for each class, and their plain mean over classes; what could not be averaged is NaN.

    Returns:
        {"classes": {name: {"cases", "empty": {kind: count}, metric: {"mean", "sd", "median", "n"}}},
        "macro": {metric: mean}, "protocol", "definitions", "note"}.
    """
    classes: dict[str, Any] = {}
    for name in dict.fromkeys(row["class"] for row in rows):
        own = [row for row in rows if row["class"] == name]
        kinds = {kind: sum(row["empty"] == kind for row in own) for kind in ("both", "prediction", "reference")}
        classes[name] = {"cases": len(own), "empty": kinds, **{m: _spread([r[m] for r in own]) for m in METRICS}}
    means = {metric: [entry[metric]["mean"] for entry in classes.values()] for metric in METRICS}
    scored = {metric: [value for value in values if not math.isnan(value)] for metric, values in means.items()}
    return {
        "note": "for research use only",
        "protocol": sorted({str(row["protocol"]) for row in rows}),
        "macro": {metric: statistics.fmean(v) if v else math.nan for metric, v in scored.items()},
        "classes": classes,
        "definitions": DEFINITIONS,
    }


def write_results(rows: Sequence[Row], summary: dict[str, Any], out: str | os.PathLike[str]) -> None:
    """Write `cases.csv` and `summary.json` (NaN is null there) into a folder, each whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    text = json.dumps(_null(summary), indent=2, allow_nan=False) + "\n"
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


def _spread(values: Sequence[float]) -> dict[str, float]:
    scored = [value for value in values if not math.isnan(value)]
    return {
        "mean": statistics.fmean(scored) if scored else math.nan,
        "sd": statistics.stdev(scored) if len(scored) > 1 else math.nan,
        "median": statistics.median(scored) if scored else math.nan,
        "n": len(scored),
    }


def _null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
