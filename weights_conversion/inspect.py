"""Description of a checkpoint from its headers: preset, layout, parameters by part, provenance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed_jax.config import ModelConfig
from sam2_3dmed_jax.model.parameter_counts import ParameterCount, count_parameters
from sam2_3dmed_jax.sam2.presets import preset_config
from weights_conversion.mapping import Layout
from weights_conversion.opening import open_source
from weights_conversion.presets import native_shapes, recognise


@dataclass(frozen=True)
class Description:
    """The description of a checkpoint, with the fields of `inspect --json`."""

    path: str
    kind: str  # file format
    layout: Layout
    preset: str
    exact: bool  # the tensors fit the preset without discrepancies
    discrepancies: dict[str, list[str]]  # tensors by what is wrong with them
    image_size: int  # pixels
    srpp: bool
    bd: bool
    window: str | None  # window of the preprocessing, of a native checkpoint
    modality: str | None  # of the training data, of a native checkpoint; "": not known
    tensors: int
    dtypes: list[str]
    bytes: int
    parameters: int
    parts: dict[str, ParameterCount]  # numbers of tensors and parameters
    provenance: dict[str, object]
    reading: dict[str, str]  # how the model was found in the file; empty if its names are exactly the layout's


def describe_checkpoint(path: Path) -> Description:
    """Describe a checkpoint.

    Raises:
        UserError: the checkpoint does not exist or cannot be read.
    """
    source = open_source(path)
    config, fit = recognise(source)
    parts = count_parameters(native_shapes(config))
    return Description(
        path=str(path),
        kind=source.kind,
        layout=fit.mapping.layout,
        preset=fit.preset,
        exact=not fit.discrepancies,
        discrepancies={
            "missing": list(fit.missing),
            "unexpected": list(fit.unexpected),
            "misshaped": list(fit.misshaped),
            "mistyped": list(fit.mistyped),
        },
        image_size=preset_config(config.preset, config.image_size).image_size if isinstance(config, ModelConfig) else 0,
        srpp=isinstance(config, ModelConfig) and config.srpp,
        bd=isinstance(config, ModelConfig) and config.bd,
        window=source.info.preprocessing.window if source.info else None,
        modality=source.info.preprocessing.modality if source.info else None,
        tensors=len(source.tensors),
        dtypes=sorted({tensor.dtype for tensor in source.tensors.values()}),
        bytes=sum(file.stat().st_size for file in source.files),
        parameters=sum(entry["parameters"] for entry in parts.values()),
        parts=parts,
        provenance=source.provenance,
        reading=source.reading,
    )


def as_text(description: Description) -> str:
    """Return a description as readable lines."""
    modules = [name for name, present in (("SRPP", description.srpp), ("BD", description.bd)) if present]
    megabytes = description.bytes / 1e6
    lines = [
        f"{description.path}: {description.kind}, {description.layout} layout, {megabytes:.1f} MB",
        f"preset        {description.preset}{' with ' + ' and '.join(modules) if modules else ''}"
        + ("" if description.exact else " (fits best, not exactly)"),
        f"image size    {description.image_size} px",
        f"tensors       {description.tensors} ({', '.join(description.dtypes)})",
        f"parameters    {description.parameters:,}",
    ]
    lines += [
        f"  {part:28} {entry['tensors']:5} tensors {entry['parameters']:13,}"
        for part, entry in description.parts.items()
    ]
    if description.window:
        lines.append(f"preprocessing window {description.window}, modality {description.modality or 'not known'}")
    lines += [f"{what.replace('_', ' '):13} {text}" for what, text in description.reading.items()]
    lines += [f"{what}: {', '.join(names)}" for what, names in description.discrepancies.items() if names]
    lines += _provenance(description.provenance, "")
    return "\n".join(lines)


def _provenance(record: dict[str, object], indent: str) -> list[str]:
    lines = ["provenance" if record else "provenance    none stored"] if not indent else []
    for key, value in record.items():
        if isinstance(value, dict):
            lines += [f"  {indent}{key}:", *_provenance(value, indent + "  ")]
        else:
            lines.append(f"  {indent}{key}: {value}")
    return lines
