"""`predict`: the `.npz` files of a folder are segmented from their prompts, as a container of the challenge does."""

from __future__ import annotations

import os
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.segfm3d.case import case_files, read_case
from experiments.segfm3d.npz_files import write_npz
from sam2_3dmed_jax.commands.command_line import CheckpointName, Parser, add_compute_dtype, start
from sam2_3dmed_jax.errors import FileWarning, UserError, path_errors_as_mistakes
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice

if TYPE_CHECKING:
    from experiments.segfm3d.segment import Segmenter
    from sam2_3dmed_jax.runtime.progress import Progress

HELP = "segment the .npz files of a folder from their boxes and clicks, and write segs into files of the same names"
CACHE_VARIABLE = "SEGFM3D_CACHE"


@dataclass(frozen=True)
class ModelOptions:
    """The arguments that choose a model and its cache."""

    model: str
    cache: str
    cache_gib: float
    compute_dtype: ComputeDtypeChoice
    debug: bool


@dataclass(frozen=True)
class Options(ModelOptions):
    """The arguments of `predict`."""

    input: str
    output: str


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument("input", metavar="INPUT", help="folder of .npz files with imgs, spacing, and boxes or clicks")
    parser.add_argument("output", metavar="OUTPUT", help="folder of the results; files of the same names are replaced")
    add_model_arguments(parser)


def add_model_arguments(parser: Parser) -> None:
    """Define the arguments of `ModelOptions`."""
    parser.add_argument(
        "--model",
        type=CheckpointName,
        metavar="NAME",
        default="sam2.1_hiera_tiny",
        help="folder of a native checkpoint, or a name of `sam2-3dmed download`",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        default=os.environ.get(CACHE_VARIABLE, ""),
        help=f"keep the features of images in this folder for later calls (default: ${CACHE_VARIABLE}, or not at all)",
    )
    parser.add_argument("--cache-gib", type=float, metavar="GIB", default=8.0, help="limit of the size of --cache")
    add_compute_dtype(parser)


def run(options: Options) -> None:
    """Segment the files of INPUT; a failure does not stop the others.

    Raises:
        UserError: a folder does not exist, or files failed, each with a line of its own.
    """
    files = case_files(options.input)
    if os.path.exists(options.output) and os.path.samefile(options.input, options.output):
        raise UserError(f"OUTPUT is the folder INPUT, {options.input}; give another folder")
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress

    segmenter = load_segmenter(options)
    failed = 0
    with ConsoleProgress() as progress:
        for done, path in enumerate(files):
            progress("cases", done, len(files))
            try:
                with path_errors_as_mistakes():
                    predict_file(path, Path(options.output, path.name), segmenter, progress)
            except Exception as error:  # a bug on one case must not cost the others
                if options.debug:
                    traceback.print_exc()
                reason = str(error) if isinstance(error, UserError) else f"a bug: {type(error).__name__}: {error}"
                print("failed:", " ".join(reason.split()))
                failed += 1
        progress("cases", len(files), len(files))
    print(f"{len(files) - failed} of {len(files)} segmentations in {options.output} (for research use only)")
    if failed:
        raise UserError(f"{failed} of {len(files)} files failed, for the reasons above; repair or remove them")


def predict_file(
    path: str | os.PathLike[str], out: str | os.PathLike[str], segmenter: Segmenter, progress: Progress | None = None
) -> None:
    """Segment one file and write `segs`, uint8 `[D, H, W]`.

    Raises:
        UserError: the file is not a case of the challenge, or the result cannot be written.
    """
    write_npz(out, segs=segmenter.segment(read_case(path), progress))


def load_segmenter(options: ModelOptions) -> Segmenter:
    """Load the model.

    Raises:
        UserError: it does not exist or takes no prompts, or the limit of the cache is not positive.
    """
    if not options.cache_gib > 0:
        raise UserError(f"--cache-gib is {options.cache_gib}; give a positive number of GiB")
    start()
    from experiments.segfm3d.feature_cache import FeatureCache
    from experiments.segfm3d.segment import Segmenter
    from sam2_3dmed_jax.hub.resolve import checkpoint_folder
    from sam2_3dmed_jax.inference.predictor import VolumePredictor
    from sam2_3dmed_jax.inference.segmentation_record import untrained_warning
    from sam2_3dmed_jax.model.checkpoint import load_model
    from sam2_3dmed_jax.runtime.hashing import sha256_of_folder

    folder = checkpoint_folder(options.model)
    predictor = VolumePredictor(load_model(folder, compute_dtype=options.compute_dtype))
    if predictor.model.info.has_random_weights:
        warnings.warn(untrained_warning(options.model), FileWarning, stacklevel=2)
    if not options.cache:
        return Segmenter(predictor)
    return Segmenter(predictor, FeatureCache(options.cache, sha256_of_folder(Path(folder)), options.cache_gib))
