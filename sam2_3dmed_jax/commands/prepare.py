"""`sam2-3dmed prepare`: a dataset written as shards for training."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sam2_3dmed_jax.commands.command_line import Parser, terminated_as_interrupted
from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.volume.modality import WORDS

if TYPE_CHECKING:
    from sam2_3dmed_jax.data.prepared import PreparedDataset

HELP = "write a dataset as shards for training; resumes an interrupted run, and repeats the cases that changed"


@dataclass(frozen=True)
class Options:
    """The arguments of `prepare`."""

    dataset: str
    out: str
    spacing: str | None
    modality: str | None
    keep_empty: bool
    workers: int | None
    preview: str | None
    experiment: str | None
    debug: bool


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument(
        "dataset", metavar="DATASET", help="folder of a dataset in MSD or nnU-Net layout, or a .tar of MSD"
    )
    parser.add_argument("out", metavar="OUT", help="folder for the shards, index.json and refused.csv")
    parser.add_argument(
        "--spacing",
        metavar="dz,dy,dx",
        help="resample to this spacing, in mm; 0 or - keeps an axis as it is (default: no resampling)",
    )
    parser.add_argument(
        "--modality", choices=tuple(WORDS), help="modality of the scans (default: as dataset.json declares it, or ct)"
    )
    parser.add_argument(
        "--keep-empty",
        action="store_true",
        help="keep cases whose label map is empty, for training as scans without an object (default: refuse them)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of processes, each of which takes 0.6 GB for 100 slices of 512 x 512 pixels "
        "(default: one per core, at most 8)",
    )
    parser.add_argument("--preview", metavar="PNG", help="draw training clips as the model receives them")
    parser.add_argument(
        "--experiment",
        metavar="EXPERIMENT.py|NAME",
        help="experiment whose clips --preview draws (default: six slices at 512 pixels, otherwise the defaults of "
        "`train`)",
    )


def run(options: Options) -> None:
    """Write the shards, report the refused cases and draw the preview; it is a mistake if most cases are refused."""
    from sam2_3dmed_jax.commands.experiment_files import read_experiment
    from sam2_3dmed_jax.config import PrepareConfig
    from sam2_3dmed_jax.data.datasets import dataset_files, read_dataset
    from sam2_3dmed_jax.data.prepare.folder import PREPARED_FILES
    from sam2_3dmed_jax.data.prepare.prepare import prepare_dataset
    from sam2_3dmed_jax.runtime.output_plan import Input, OutputFile, OutputFolder, check_outputs
    from sam2_3dmed_jax.runtime.progress import ConsoleProgress
    from sam2_3dmed_jax.volume.modality import parse_modality
    from sam2_3dmed_jax.volume.resample import parse_spacing

    if options.experiment and not options.preview:
        raise UserError("--experiment: it selects the clips that --preview draws; give --preview PNG too")
    experiment = read_experiment(options.experiment) if options.experiment else None
    with naming("--spacing"):
        settings = PrepareConfig(parse_spacing(options.spacing)) if options.spacing is not None else PrepareConfig()
    modality = parse_modality(options.modality, "--modality")
    settings = replace(settings, modality=modality, keep_empty=options.keep_empty)
    dataset = read_dataset(options.dataset)
    check_outputs(
        [
            OutputFolder("OUT", options.out, owns=PREPARED_FILES),
            *([OutputFile("--preview", options.preview)] if options.preview else []),
        ],
        [Input("DATASET", options.dataset, lambda: dataset_files(dataset, options.dataset))],
    )
    with terminated_as_interrupted(), ConsoleProgress() as progress:
        report = prepare_dataset(dataset, options.out, settings, workers=options.workers, progress=progress)
    if options.debug:
        print("".join(report.tracebacks.values()), end="", file=sys.stderr)
    print("\n".join(report.lines))
    if not report.dataset.cases:
        raise UserError(
            f"{options.dataset}: no case could be prepared, for the reasons above; fix them and run the command again"
        )
    _print_proposed_settings(report.dataset)
    if options.preview:
        from sam2_3dmed_jax.pictures.preview import DEFAULT, preview_dataset

        preview_dataset(options.preview, report.dataset, experiment or DEFAULT)
        print(f"preview in {options.preview}")
    if len(report.refused) > len(report.dataset.cases):
        total = len(report.refused) + len(report.dataset.cases)
        raise UserError(
            f"{options.dataset}: {len(report.refused)} of {total} cases were refused, for the reasons above; fix them "
            "and run the command again, or train on the others, which are prepared"
        )


def _print_proposed_settings(dataset: PreparedDataset) -> None:
    """Print the settings of experiments that fit a dataset, unless none of its cases has an object."""
    from sam2_3dmed_jax.config import DataConfig
    from sam2_3dmed_jax.data.case_reader import CaseReader
    from sam2_3dmed_jax.data.proposed_settings import proposed_settings

    if settings := proposed_settings(CaseReader(dataset, DataConfig(), 0)):
        print("settings of an experiment that fit this dataset:")
    for each in settings:
        print(f"  {each.flag}  ({each.reason})")
