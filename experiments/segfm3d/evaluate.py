"""`evaluate`: the loop of the challenge's script, a box and then five clicks at the centre of the largest error.

Source: `CVPR25_iter_eval.py` (JunMa11/CVPR-MedSegFMCompetition), with the same clicks, scores and columns. Each step
writes the case with its prompts so far, has it segmented, and scores the result. Case by case, the segmenter is the
model in this process, or any command that reads `inputs/` and writes `outputs/`, such as a container. Without boxes,
the first step is left out and its scores are 0. As in the script, time beyond the limit costs a warning only, and where
a command writes nothing the earlier file of the case counts, or an empty label map. Unlike in the script, such a case
stays in the table.
"""

from __future__ import annotations

import csv
import io
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.segfm3d.case import EvaluationCase, case_files, read_evaluation_case
from experiments.segfm3d.npz_files import read_npz, write_npz
from experiments.segfm3d.predict import ModelOptions, add_model_arguments, load_segmenter, predict_file
from experiments.segfm3d.scores import CLICKS, SECONDS_PER_CLASS, area_over_clicks, dsc_and_nsd
from sam2_3dmed_jax.commands.command_line import Parser
from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.prompts.error_clicks import error_click
from sam2_3dmed_jax.runtime.atomic_files import write_text

HELP = "run the challenge's loop on a folder of .npz files: box, then five clicks; DSC, NSD, AUC and seconds"
TABLE = "metrics.csv"
RANKED = ("DSC_AUC", "NSD_AUC", "DSC_Final", "NSD_Final")  # the scores that the challenge ranks by

Segment = Callable[[Path, Path], None]  # from the file of a case to the file of its result


@dataclass(frozen=True)
class Options(ModelOptions):
    """The arguments of `evaluate`."""

    input: str
    output: str
    gts: str | None
    command: str | None


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument("input", metavar="INPUT", help="folder of .npz files with imgs, spacing and, if any, boxes")
    parser.add_argument(
        "output", metavar="OUTPUT", help=f"folder for {TABLE} and, per case, a .npz file with segs and all_segs"
    )
    parser.add_argument("--gts", metavar="DIR", help="folder of .npz files with gts (default: gts is in INPUT)")
    parser.add_argument(
        "--command",
        metavar="CMD",
        help="evaluate another method: a command that reads inputs/*.npz and writes outputs/*.npz in its folder",
    )
    add_model_arguments(parser)


@dataclass
class Scores:
    """The scores of one case, step by step; a list of six values, the first one for the box."""

    classes: int
    has_box: bool
    dsc: list[float] = field(default_factory=list)
    nsd: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def is_late(self) -> bool:
        """Whether all calls together took longer than the challenge allows."""
        return sum(self.seconds) > SECONDS_PER_CLASS * self.classes

    def row(self, name: str) -> dict[str, Any]:
        """Return the columns of the challenge's table."""
        steps = range(CLICKS + 1)
        return {
            "CaseName": name,
            "TotalRunningTime": sum(self.seconds),
            **{f"RunningTime_{step + 1}": self.seconds[step] for step in steps},
            "DSC_AUC": area_over_clicks(self.dsc),
            "NSD_AUC": area_over_clicks(self.nsd),
            "DSC_Final": self.dsc[-1],
            "NSD_Final": self.nsd[-1],
            **{f"DSC_{step + 1}": self.dsc[step] for step in steps},
            **{f"NSD_{step + 1}": self.nsd[step] for step in steps},
            "num_class": self.classes,
            "runtime_upperbound": SECONDS_PER_CLASS * self.classes,
        }


def run(options: Options) -> None:
    """Evaluate the cases of INPUT; a failure does not stop the others.

    Raises:
        UserError: a folder does not exist, or cases failed, each with a line of its own.
    """
    files = case_files(options.input)
    if options.gts:
        case_files(options.gts)
    if Path(options.output).exists() and Path(options.output).samefile(options.input):
        raise UserError(f"OUTPUT is the folder INPUT, {options.input}; give another folder")
    segment = _segment_by_model(options) if options.command is None else _segment_by_command(options.command)
    rows: list[dict[str, Any]] = []
    failed = 0
    for path in files:
        try:
            case = read_evaluation_case(path, options.gts)
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                scores, steps = evaluate_case(case, Path(folder), segment)
            write_npz(Path(options.output, path.name), segs=steps[-1], all_segs=np.stack(steps))
        except Exception as error:  # a bug on one case must not cost the others
            if options.debug:
                traceback.print_exc()
            reason = str(error) if isinstance(error, UserError) else f"a bug: {type(error).__name__}: {error}"
            print("failed:", " ".join(reason.split()))
            failed += 1
            continue
        rows.append(scores.row(path.name))
        write_text(Path(options.output, TABLE), _table(rows))  # complete for the cases so far
        print(_line(path.name, scores))
    if rows:
        means = {
            name: np.mean([row[name] for row in rows]) for name in ("DSC_AUC", "NSD_AUC", "DSC_Final", "NSD_Final")
        }
        print(", ".join(f"{name} {value:.4f}" for name, value in means.items()), f"(means of {len(rows)} cases)")
        print(f"scores in {Path(options.output, TABLE)}")
    if failed:
        raise UserError(f"{failed} of {len(files)} files failed, for the reasons above; repair or remove them")


def evaluate_case(case: EvaluationCase, folder: Path, segment: Segment) -> tuple[Scores, list[np.ndarray]]:
    """Run the loop on one case.

    Args:
        case: the case.
        folder: an empty folder, in which `inputs/` and `outputs/` are made.
        segment: segments a file.

    Returns:
        The scores, and the label map of each step, uint8 `[D, H, W]`; without boxes of the five clicks only.

    Raises:
        UserError: a result cannot be read, or has another shape.
    """
    request, result = (folder / name / case.case.name for name in ("inputs", "outputs"))
    for path in (request, result):
        path.parent.mkdir()
        path.parent.chmod(0o777)  # for the user of a container
    image = {"imgs": case.case.images, "spacing": np.array(case.case.spacing)}
    if case.boxes is not None:
        image["boxes"] = np.array(case.boxes, object)
    scores = Scores(len(case.classes), case.boxes is not None)
    clicks: list[dict[str, list[list[int]]]] = [{"fg": [], "bg": []} for _ in case.classes]
    order: list[list[str | None]] = [[] for _ in case.classes]
    steps: list[np.ndarray] = []
    segmentation = np.zeros(case.reference.shape, np.uint8)
    for step in range(CLICKS + 1):
        prompts: dict[str, Any] = {}
        if step:
            _add_clicks(clicks, order, segmentation, case)
            objects = np.empty(len(clicks), object)
            objects[:] = clicks
            prompts = {"clicks": objects, "clicks_order": np.array(order, object), "prev_pred": segmentation}
        elif case.boxes is None:
            for values in (scores.dsc, scores.nsd, scores.seconds):
                values.append(0.0)
            continue
        write_npz(request, **image, **prompts)
        begin = time.perf_counter()
        segment(request, result)
        scores.seconds.append(time.perf_counter() - begin)
        segmentation = _read_result(result, case.reference.shape)
        dsc, nsd = dsc_and_nsd(segmentation, case.reference, case.classes, case.case.spacing)
        scores.dsc.append(dsc)
        scores.nsd.append(nsd)
        steps.append(segmentation)
    return scores, steps


def _add_clicks(
    clicks: list[dict[str, list[list[int]]]],
    order: list[list[str | None]],
    segmentation: np.ndarray,
    case: EvaluationCase,
) -> None:
    """Add a click at the centre of the largest error of each class; a perfect class gets none."""
    for number, value in enumerate(case.classes):
        click = error_click(segmentation == value, case.reference == value, ties="challenge")
        kind = None if click is None else "fg" if click.inside else "bg"
        order[number].append(kind)
        if click is not None and kind is not None:
            clicks[number][kind].append(list(click.voxel))


def _read_result(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return the label map of a result, uint8; zeros if the file does not exist."""
    if not path.exists():
        warnings.warn(f"{path.name}: the command wrote no result, which counts as empty", FileWarning, stacklevel=2)
        return np.zeros(shape, np.uint8)
    found = read_npz(path, ("segs",)).get("segs")
    if not isinstance(found, np.ndarray) or found.shape != shape:
        shown = getattr(found, "shape", "missing")
        raise UserError(f"{path.name}: segs of the result is {shown}; it must have the shape {shape} of imgs")
    return found.astype(np.uint8)


def _segment_by_model(options: Options) -> Segment:
    segmenter = load_segmenter(options)
    return lambda path, out: predict_file(path, out, segmenter)


def _segment_by_command(command: str) -> Segment:
    def segment(path: Path, out: Path) -> None:
        # Its exit code is not looked at, as in the challenge's script: its result counts.
        subprocess.run(command, shell=True, cwd=out.parent.parent, check=False)

    return segment


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _line(name: str, scores: Scores) -> str:
    """Return the line of a case on the console."""
    row = scores.row(name)
    if scores.is_late:
        warnings.warn(
            f"{name}: {row['TotalRunningTime']:.0f} s, more than the {row['runtime_upperbound']} s that the challenge "
            f"allows for {scores.classes} classes; the challenge counts such a case as 0",
            FileWarning,
            stacklevel=2,
        )
    curve = " ".join(f"{value:.3f}" for value in scores.dsc[0 if scores.has_box else 1 :])
    return (
        f"{name}: DSC {curve}, AUC {row['DSC_AUC']:.3f}; NSD AUC {row['NSD_AUC']:.3f}; "
        f"{row['TotalRunningTime']:.1f} s of {row['runtime_upperbound']} s"
    )
