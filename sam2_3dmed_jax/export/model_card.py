"""Model card of an exported model: `README.md` with the metadata of the Hugging Face hub, from records of this project.

The scores are those of `evaluate`'s `summary.json`, with their intervals. What no record contains is said to be
missing, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.errors import UserError, number_of
from sam2_3dmed_jax.export.folder import describe_preprocessing
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo
from sam2_3dmed_jax.runtime.user_files import read_json, typed
from sam2_3dmed_jax.sam2.presets import preset_config

TRANSFORMERS_MEM_DIM = 64  # channels of the keys of memory attention, which transformers cannot configure
METRICS = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95, mm"}  # the columns of the table


@dataclass(frozen=True)
class CardRecords:
    """The records that a card is made from.

    Attributes:
        name: title of the card.
        info: description of the checkpoint.
        weights_sha256: of `model.safetensors`.
        licence: of the weights, as an identifier of the hub; "": not stated.
        experiment: `config.json` of the run; empty if the checkpoint is not from a run.
        summary: `summary.json` of an evaluation; empty without an evaluation.
    """

    name: str
    info: CheckpointInfo
    weights_sha256: str
    licence: str = ""
    experiment: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


def model_card(records: CardRecords) -> str:
    """Return the text of the card."""
    sections = (
        _metadata(records),
        f"# {records.name}\n\n**For research use only. Not for diagnosis or treatment.**",
        _model(records.info),
        _data_and_training(records),
        _scores(records.summary),
        _how_to_load(records),
        _licence_and_hash(records),
    )
    return "\n\n".join(sections) + "\n"


def _metadata(records: CardRecords) -> str:
    return "\n".join(
        (
            "---",
            f"license: {records.licence.lower() or 'other'}",
            "library_name: transformers",
            "pipeline_tag: mask-generation",
            "tags: [sam2, medical-imaging, segmentation, jax]",
            "---",
        )
    )


def _model(info: CheckpointInfo) -> str:
    model = info.sam2
    modules = [name for name, used in (("SRPP", model.srpp), ("BD", model.bd)) if used]
    text = f"SAM 2 with the preset `{model.preset}`"
    text += f" and the modules {' and '.join(modules)} of SAM2-3dMed" if modules else ""
    lines = [f"{text}. Its input is {describe_preprocessing(info.preprocessing)}."]
    if modules:
        lines.append(
            f"transformers runs the SAM 2 part only: without {' and '.join(modules)} its masks differ, and the scores "
            "below do not hold for them. `sam2_3dmed.safetensors` has the rest, which `sam2-3dmed` reads."
        )
    if model.memory_selection != "recent":
        lines.append(
            f"Its memory selection is `{model.memory_selection}`, which transformers does not have: there, a slice "
            "sees the memories of the last 6 slices, and the scores below do not hold."
        )
    return "## Model\n\n" + "\n".join(lines)


def _data_and_training(records: CardRecords) -> str:
    provenance, experiment = records.info.provenance, records.experiment
    rows: dict[str, Any] = {
        "data": provenance.get("data", ""),
        "steps": provenance.get("steps", ""),
        "initial weights": provenance.get("init", ""),
        "source of the weights": provenance.get("source", ""),
        "tool version": provenance.get("tool_version", ""),
    }
    if experiment:
        data, training = experiment["data"], experiment["training"]
        rows |= {
            "classes": ", ".join(map(str, data["classes"])) or "all",
            "slices per clip": data["slices"],
            "fold": data["fold"],
            "batch size": training["batch_size"],
            "learning rate": training["learning_rate"],
            "seed": training["seed"],
            "losses and weights": ", ".join(
                f"{name} {weight if isinstance(weight, list) else f'{weight:g}'}"
                for name, weight in training["loss"].items()
                if weight
            ),
        }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value != ""]
    return "## Data and training\n\n" + "\n".join(["| setting | value |", "|---|---|", *lines])


def _scores(summary: Mapping[str, Any]) -> str:
    if not summary:
        return "## Scores\n\nNo evaluation was given when this card was written."
    head = [name for metric, name in METRICS.items() if any(metric in entry for entry in summary["classes"].values())]
    keys = [metric for metric, name in METRICS.items() if name in head]
    lines = [f"| class | cases | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
    for name, entry in summary["classes"].items():
        lines.append(f"| {name} | {entry['cases']} | {' | '.join(_interval(entry.get(key)) for key in keys)} |")
    lines.append(f"| mean | {summary['cases']} | {' | '.join(_interval(summary['macro'].get(key)) for key in keys)} |")
    protocol = ", ".join(summary["protocol"])
    trained = summary.get("trained_on_these_cases", "")
    notes = [
        f"Protocol {protocol}: {summary['protocol_definition']}.",
        f"Means over {number_of(summary['cases'], 'case')} with 95 % intervals, which cover {summary['ci95_covers']}.",
    ]
    if trained and trained != "no":
        notes.append(f"Trained on these cases: {trained}.")
    return "## Scores\n\n" + "\n".join(lines) + "\n\n" + " ".join(notes)


def _interval(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry.get("mean") is None:
        return ""
    text = f"{entry['mean']:.3f}"
    low, high = entry.get("ci95") or (None, None)
    return text if low is None or high is None else f"{text} [{low:.3f}, {high:.3f}]"


def _how_to_load(records: CardRecords) -> str:
    here = f"""## How to load

Here, with the preprocessing that is stored in the files:

```sh
sam2-3dmed convert {records.name} checkpoint
sam2-3dmed predict checkpoint CT.nii.gz --point 120,80,40 --out segmentation.nii.gz
```"""
    preset = records.info.sam2.preset
    if preset_config(preset).mem_dim != TRANSFORMERS_MEM_DIM:
        return f"{here}\n\ntransformers cannot load the preset `{preset}`: its memories have another width."
    return f"""{here}

In transformers, which takes slices as 8-bit RGB images: map the window above to 0 to 255 first.

```python
from transformers import Sam2VideoModel, Sam2VideoProcessor

model = Sam2VideoModel.from_pretrained("{records.name}")
processor = Sam2VideoProcessor.from_pretrained("{records.name}")
```"""


def _licence_and_hash(records: CardRecords) -> str:
    licence = records.licence or "not stated; ask the authors before you use or share these weights"
    return (
        f"## Licence and hash\n\nLicence: {licence}.\n\nSHA-256 of `model.safetensors`: `{records.weights_sha256}`. "
        "`SHA256SUMS` has the hash of each file: `sha256sum -c SHA256SUMS`."
    )


def read_summary(folder: Path) -> dict[str, Any]:
    """Read the `summary.json` of an evaluation.

    Raises:
        UserError: it does not exist, or is not such a summary.
    """
    file = folder / "summary.json"
    fix = "give the folder that 'sam2-3dmed evaluate --out' wrote"
    summary = typed(read_json(file, fix), dict[str, Any], str(file), fix)
    if not {"classes", "macro", "cases", "protocol"} <= summary.keys():
        raise UserError(f"{file} is not the summary of an evaluation; {fix}")
    return summary
