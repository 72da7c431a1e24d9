"""`sam2-3dmed export`: a trained model as a Hugging Face folder, as StableHLO programs or as ONNX graphs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2_3dmed_jax.commands.command_line import CheckpointName, Parser
from sam2_3dmed_jax.errors import UserError

if TYPE_CHECKING:
    from sam2_3dmed_jax.runtime.progress import Progress

HELP = "publish a trained model: a Hugging Face folder with a model card, StableHLO programs or ONNX graphs"

HUGGINGFACE, STABLEHLO, ONNX = FORMATS = ("huggingface-folder", "stablehlo", "onnx")


@dataclass(frozen=True)
class Options:
    """The arguments of `export`."""

    checkpoint: str
    destination: str
    to: str
    image_size: int | None
    evaluation: str | None
    licence: str | None


def add_arguments(parser: Parser) -> None:
    """Define the arguments."""
    parser.add_argument(
        "checkpoint", type=CheckpointName, metavar="RUN|CKPT", help="finished run, native checkpoint, or a name"
    )
    parser.add_argument("destination", metavar="DST", help="folder to write, which must be new or empty")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format to write")
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="slice size in pixels of the programs (default: as in CKPT)"
    )
    parser.add_argument(
        "--evaluation",
        metavar="DIR",
        help="folder of `evaluate` whose scores the model card shows (default: RUN/evaluation, if it exists)",
    )
    parser.add_argument(
        "--licence", metavar="NAME", help="licence of the weights on the model card, such as apache-2.0 (default: none)"
    )


def run(options: Options) -> None:
    """Export the model and print the folder."""
    from sam2_3dmed_jax.hub.resolve import checkpoint_folder
    from sam2_3dmed_jax.model.checkpoint import read_info
    from sam2_3dmed_jax.runtime.atomic_files import atomic_folder, write_errors
    from sam2_3dmed_jax.runtime.output_plan import Input, OutputFolder, check_outputs
    from sam2_3dmed_jax.runtime.progress import progress_of_long_work
    from sam2_3dmed_jax.sam2.presets import preset_config

    destination = Path(options.destination)
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise UserError(f"{destination} is not an empty folder; give a new one")
    for flag, value in (("--evaluation", options.evaluation), ("--licence", options.licence)):
        if value is not None and options.to != HUGGINGFACE:
            raise UserError(f"{flag}: {options.to} has no model card; leave it out, or give --to {HUGGINGFACE}")
    inputs = {"RUN": options.checkpoint, "--evaluation": options.evaluation}
    check_outputs([OutputFolder("DST", destination)], [Input(name, path) for name, path in inputs.items() if path])
    if options.to == ONNX:
        from sam2_3dmed_jax.export.onnx import require_onnx

        require_onnx()
    given = checkpoint_folder(options.checkpoint)
    checkpoint = _checkpoint(given)
    preset_config(read_info(checkpoint).sam2.preset, options.image_size)
    with (
        write_errors(destination),
        atomic_folder(destination) as folder,
        progress_of_long_work() as progress,
    ):
        if options.to == HUGGINGFACE:
            _write_huggingface_folder(options, given, checkpoint, folder, progress)
        else:
            _write_programs(options, checkpoint, folder, progress)
    print(f"{destination}: {options.to} of {given}")


def _checkpoint(given: Path) -> Path:
    """Return the checkpoint of a run, or a checkpoint as it is.

    Raises:
        UserError: the run is not finished.
    """
    if (given / "log.csv").exists() and not (given / "final").exists():
        raise UserError(f"{given}: the run has no final/ yet; finish it with 'sam2-3dmed train', then export it")
    return given / "final" if (given / "final").exists() else given


def _write_programs(options: Options, checkpoint: Path, folder: Path, progress: Progress | None) -> None:
    from sam2_3dmed_jax.model.checkpoint import load_model, read_info

    # Programs run elsewhere, so that the devices of this machine do not decide their dtype.
    model = load_model(checkpoint, options.image_size, read_info(checkpoint).sam2.compute_dtype)
    if options.to == STABLEHLO:
        from sam2_3dmed_jax.export.stablehlo import write_stablehlo

        write_stablehlo(model, folder, progress)
    else:
        from sam2_3dmed_jax.export.onnx import write_onnx

        write_onnx(model, folder, progress)


def _write_huggingface_folder(
    options: Options, given: Path, checkpoint: Path, folder: Path, progress: Progress | None
) -> None:
    from sam2_3dmed_jax.export.folder import write_hashes
    from sam2_3dmed_jax.export.model_card import CardRecords, model_card, read_summary
    from sam2_3dmed_jax.export.processor_files import processor_files
    from sam2_3dmed_jax.hub.catalog import NOT_STATED
    from sam2_3dmed_jax.model.checkpoint import read_info
    from sam2_3dmed_jax.runtime.hashing import sha256_of_file
    from sam2_3dmed_jax.runtime.user_files import read_json
    from weights_conversion.convert import convert_checkpoint
    from weights_conversion.huggingface_folder import write_native_part
    from weights_conversion.opening import WEIGHTS

    evaluation = Path(options.evaluation) if options.evaluation else given / "evaluation"
    summary = read_summary(evaluation) if options.evaluation or (evaluation / "summary.json").exists() else {}
    info = read_info(checkpoint)
    convert_checkpoint(
        checkpoint, folder, to="transformers", drop_extra=True, image_size=options.image_size, progress=progress
    )
    write_native_part(checkpoint, folder, options.image_size)
    size = read_json(folder / "config.json", "run the command again")["image_size"]
    for name, content in processor_files(size).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    stated = str(info.provenance.get("licence", NOT_STATED))
    licence = options.licence or ("" if stated == NOT_STATED else stated.split(";")[0])
    records = CardRecords(
        name=Path(options.destination).resolve().name,
        info=info,
        weights_sha256=sha256_of_file(folder / WEIGHTS),
        licence=licence,
        experiment=_experiment(given),
        summary=summary,
    )
    (folder / "README.md").write_text(model_card(records), encoding="utf-8")
    write_hashes(folder)


def _experiment(run: Path) -> dict[str, Any]:
    """Return the `config.json` of a run, or an empty dictionary for a checkpoint."""
    if not (run / "final").exists():
        return {}
    from sam2_3dmed_jax.training.run_folder import CONFIG, read_record

    return read_record(run / CONFIG, "give the run's final/ instead")
