"""The words of the command `sam2-3dmed`: every verb's arguments, with their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from sam2_3dmed_jax.commands.command_line import Parser


class FieldsHelp(argparse.Action):
    """`--help` of a verb that takes an experiment or a sweep: its own arguments, then every field of one."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print and exit with 0."""
        from sam2_3dmed_jax.commands.experiment_files import fields_help
        from sam2_3dmed_jax.config import ExperimentConfig, SweepSpec

        if parser.prog.endswith(" sweep"):
            what, fields = "a sweep", fields_help(SweepSpec())
        else:
            what, fields = "an experiment", fields_help(ExperimentConfig())
        print(parser.format_help())
        print(f"Every field of {what} is a flag; defaults, unless it sets another:\n{fields}")
        raise SystemExit(0)


def parser(add_more: Callable[[Callable[..., argparse.ArgumentParser]], None]) -> Parser:
    """The parser of the command; `add_more` adds further verbs after the first."""
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="print the traceback of an error")
    parser = Parser(prog="sam2-3dmed", description="SAM2-3dMed in JAX. For research use only.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(name: str, text: str, **extra: Any) -> argparse.ArgumentParser:
        formatter = argparse.ArgumentDefaultsHelpFormatter
        return verbs.add_parser(name, help=text, description=text, parents=[common], formatter_class=formatter, **extra)

    p = verb("demo", "make phantoms, train a nano SAM2-3dMed on them, score it and segment one; CPU, no downloads")
    p.add_argument("--out", default="demo_run", help="folder for all it makes")
    p.add_argument("--seed", type=int, default=0, help="of the phantoms")

    add_more(verb)

    p = verb("phantom", "write a synthetic CT dataset in MSD layout")
    p.add_argument("out", help="folder to write")
    p.add_argument("--cases", type=int, default=40, help="number of cases")
    p.add_argument("--seed", type=int, default=0, help="of the anatomies")
    p.add_argument(
        "--task", choices=("spleen", "pancreas", "lung", "organs"), default="spleen", help="which organs are labelled"
    )

    p = verb("prepare", "write a dataset as shards for training; goes on where it stopped, and does again what changed")
    p.add_argument("dataset", metavar="DATASET", help="folder of a dataset in MSD or nnU-Net layout, or MSD's .tar")
    p.add_argument("out", metavar="OUT", help="folder for shards, index.json and refused.csv")
    p.add_argument("--spacing", metavar="dz,dy,dx", help="resample to this, in mm; 0 or - keeps an axis as it is")
    p.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes, 0.6 GB each for 100 slices of 512 x 512; None: one a core, to 8",
    )
    p.add_argument("--preview", metavar="PNG", help="draw training clips as the model will see them")
    p.add_argument(
        "--experiment",
        metavar="EXPERIMENT.py",
        help="whose clips --preview draws; default: six slices at 512 px, else the defaults of `train`",
    )

    p = verb(
        "train", "train an experiment; resumes by itself when DIR holds a run. Every field is a flag", add_help=False
    )
    p.add_argument("experiment", metavar="EXPERIMENT.py", help="file with get_config(); then --any.field value")
    p.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    p.add_argument("--profile", type=int, default=0, metavar="STEPS", help="write an xprof trace of so many steps")
    p.add_argument(
        "-h", "--help", nargs=0, action=FieldsHelp, help="show this and every field, with units and defaults"
    )

    p = verb("predict", "segment a volume, or many, from prompts; x,y,z are 0-based voxel indices of IMAGE as stored")
    p.add_argument("checkpoint", metavar="CKPT", help="folder of a native checkpoint")
    p.add_argument("image", metavar="IMAGE", nargs="?", help="NIfTI, NRRD or MHA file, or folder of a DICOM series")
    p.add_argument(
        "--out", required=True, metavar="SEG", help="*.nii.gz on IMAGE's grid, values are object ids; *.dcm: DICOM-SEG"
    )
    p.add_argument("--volume", type=int, metavar="N", help="of a 4D NIfTI, the volume to segment, from 0")
    p.add_argument("--resample", action="store_true", help="DICOM slices with gaps or tilt: put them on a regular grid")
    click = "x,y,z[,1|0[,object]]"
    p.add_argument("--point", action="append", default=[], metavar=click, help="a click, inside (1) or outside (0)")
    p.add_argument("--point-mm", action="append", default=[], metavar=click, help="the same in RAS millimetres")
    p.add_argument(
        "--box", action="append", default=[], metavar="i0,j0,k0,i1,j1,k1[,object]", help="two inclusive voxel corners"
    )
    p.add_argument("--mask", metavar="MASK.nii.gz", help="label map on IMAGE's grid; its slices are prompts")
    p.add_argument(
        "--scribble", metavar="STROKES.nii.gz", help="strokes on IMAGE's grid, values are objects; sampled to clicks"
    )
    p.add_argument("--scribble-outside", metavar="VALUE", help="strokes of this value lie outside of the objects")
    p.add_argument(
        "--prompts", action="append", default=[], metavar="FILE", help="JSON of prompts, or 3D Slicer's .mrk.json"
    )
    p.add_argument("--separate", action="store_true", help="also one file an object, SEG_object1.nii.gz, which overlap")
    p.add_argument("--overlay", metavar="PNG", help="contact sheet of slices with contours; with --cases a folder")
    p.add_argument("--planes", metavar="PNG", help="three planes through each object; with --cases a folder")
    p.add_argument("--reference", metavar="LABELS.nii.gz", help="label map drawn into the pictures")
    p.add_argument("--cases", metavar="CSV|FOLDER", help="many volumes instead of IMAGE; --out is then a folder")
    p.add_argument(
        "--msd-test",
        metavar="TASK",
        help="a Decathlon task's folder instead of IMAGE: all its imagesTs, as the challenge takes them, in OUT/TASK/",
    )
    p.add_argument(
        "--prompts-from",
        metavar="DIR",
        help="with --msd-test, an automatic method's predictions that prompts are drawn from, in place of --cases",
    )
    p.add_argument(
        "--protocol", default="one-click", help="how --prompts-from draws: box-mid or one-click-per-component too"
    )
    p.add_argument("--order", choices=("sequential", "independent"), default="sequential", help="of the directions")

    p = verb("evaluate", "score a checkpoint on held-out cases, or any method's NIfTI files")
    p.add_argument("checkpoint", metavar="CKPT", nargs="?", help="folder of a native checkpoint")
    p.add_argument("data", metavar="DATA", nargs="?", help="folder of a dataset in MSD or nnU-Net layout")
    unset: dict[str, Any] = {"default": argparse.SUPPRESS}  # left out, they are those of the checkpoint's run
    p.add_argument("--fold", type=int, help="held-out fold (default: the run's, or 0)", **unset)
    p.add_argument("--folds", type=int, help="number of folds (default: the run's, or 5)", **unset)
    p.add_argument("--split", choices=("kfold", "80/20"), help="how cases are held out (default: the run's)", **unset)
    p.add_argument("--split-seed", type=int, help="of 80/20 (default: the run's, or 0)", **unset)
    p.add_argument(
        "--splits", metavar="FILE", help="nnU-Net's splits_final.json, or a run's split.json (default: none)", **unset
    )
    p.add_argument("--patients", metavar="CSV", help="case,patient: a patient's cases stay together", **unset)
    p.add_argument("--order", choices=("sequential", "independent"), default="sequential", help="of the directions")
    p.add_argument(
        "--prompts-from",
        metavar="DIR",
        help="prompt the checkpoint from an automatic method's held-out predictions, not from the references",
        **unset,
    )
    p.add_argument("--without-bd", action="store_true", help="leave the checkpoint's boundary branch out")
    p.add_argument(
        "--band-mm",
        type=float,
        metavar="MM",
        help="half width of the band around the boundary in which a checkpoint's probabilities are judged (default: 5)",
        **unset,
    )
    p.add_argument("--save", metavar="DIR", help="keep the checkpoint's label maps there, CASE.nii.gz", **unset)
    p.add_argument("--predictions", metavar="DIR", help="label maps of any method; a missing one counts as empty")
    p.add_argument("--references", metavar="DIR", help="their references, of the same names")
    p.add_argument(
        "--nearest-component",
        action="store_true",
        help="reduce --predictions to the component nearest to one click in the reference, an object",
    )
    p.add_argument("--images", metavar="DIR", help="scans of the references, drawn in the report (default: none)")
    p.add_argument("--results", action="append", default=[], metavar="DIR", help="finished results: folds, seeds")
    p.add_argument("--compare", action="append", default=[], metavar="DIR", help="results of another method, paired")
    _add_scoring(p)
    p.add_argument("--out", required=True, metavar="DIR", help="folder for cases.csv, summary.json and report.html")

    p = verb(
        "sweep",
        "score checkpoints under many prompts, orders and thresholds; goes on where it stopped. Every field is a flag",
        add_help=False,
    )
    p.add_argument("spec", metavar="SPEC.py", help="file with get_spec(); then --any_field value value ...")
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder for sweep.csv, summary.csv, sweep.json and report.html"
    )
    p.add_argument("--dry-run", action="store_true", help="check everything, and say how many cells there are")
    p.add_argument("--shard", metavar="I/N", help="only the I-th of N parts of the cases (default: all)")
    p.add_argument(
        "-h", "--help", nargs=0, action=FieldsHelp, help="show this and every field, with units and defaults"
    )

    p = verb("plan", "memory and time of the train step on TPUs or GPUs that need not be there", add_help=False)
    p.add_argument("experiment", metavar="EXPERIMENT.py", help="as of train; its data and weights are not read")
    p.add_argument("--topology", required=True, metavar="CHIP:SHAPE", help="v5e:4x4, v5p:2x2x4, h100:8, a100:8, ...")
    p.add_argument(
        "--model",
        metavar="NAME",
        help="model.preset; an official one starts from its checkpoint, which need not be here (model.init)",
    )
    p.add_argument("--image-size", metavar="N", help="model.image_size, pixels")
    p.add_argument("--slices", metavar="D", help="data.slices, of a clip")
    p.add_argument(
        "--what", choices=("train", "predict"), default="train", help="the train step, or propagation on one chip"
    )
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument(
        "-h", "--help", nargs=0, action=FieldsHelp, help="show this and every field, with units and defaults"
    )

    verb("doctor", "devices, versions, caches, optional parts, and what is wrong")
    return parser


def _add_scoring(p: argparse.ArgumentParser) -> None:
    """How `evaluate` prompts and measures, and what it says of the method."""
    unset: dict[str, Any] = {"default": argparse.SUPPRESS}  # left out, they are `scoring.Wanted`'s
    p.add_argument(
        "--protocol",
        help="one-click (a checkpoint's default), box-mid, one-click-per-component or oracle-clip; with --predictions, "
        "how their method was prompted from the references (default: not at all)",
        **unset,
    )
    p.add_argument(
        "--classes", metavar="1=spleen,...", help="labels to score, unions as 1+2=both (default: all)", **unset
    )
    p.add_argument(
        "--targets", metavar="1+2,2", help="objects to prompt, later over earlier (default: by --classes)", **unset
    )
    p.add_argument(
        "--tumours",
        metavar="NAME,...",
        help="classes counted by lesions, or none (default: by name, as cancer)",
        **unset,
    )
    p.add_argument(
        "--tolerance-mm",
        metavar="MM",
        help="of NSD; or cancer=2,... (default: of MSD's task: lung 2, pancreas 5; 3)",
        **unset,
    )
    p.add_argument("--definition", help="of surface metrics: monai or medpy (default: surface-distance)", **unset)
    p.add_argument("--empty", help="distances if one mask is empty: nan, or the image's (default: diagonal)", **unset)
    p.add_argument("--metrics", choices=("all", "overlap"), default="all", help="overlap: no surface metrics")
    p.add_argument(
        "--resample", action="store_true", help="nearest neighbour: files on other grids, surfaces on slanted ones"
    )
    p.add_argument("--remap", metavar="2=1,3=1", help="label values of --predictions that become others")
    p.add_argument("--method", metavar="NAME", help="stands in each row (default: the folder's name)", **unset)
    p.add_argument(
        "--trained-on-these-cases", choices=("yes", "no", "unknown"), help="(default: as far as is known)", **unset
    )
    p.add_argument("--seed", metavar="N", help="of the training run; stands in each row (default: the run's)", **unset)
