"""Describe a checkpoint from its headers: what it is, how large each part is, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam2_3dmed_jax.model.parameter_groups import sizes_of_parts
from sam2_3dmed_jax.sam2.presets import preset_config
from weights_conversion.presets import native_shapes, recognise
from weights_conversion.sources import open_source


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint is, as JSON can hold it.

    Raises:
        UserError: nothing readable is there.
    """
    source = open_source(path)
    config, fit = recognise(source)
    parts = sizes_of_parts(native_shapes(config))
    return {
        "path": str(path),
        "kind": source.kind,
        "layout": fit.mapping.layout,
        "preset": fit.preset,
        "exact": not fit.discrepancies,
        "discrepancies": {
            "missing": list(fit.missing),
            "unexpected": list(fit.unexpected),
            "misshaped": list(fit.misshaped),
            "mistyped": list(fit.mistyped),
        },
        "image_size": preset_config(config.preset, config.image_size).image_size,
        "srpp": config.srpp,
        "bd": config.bd,
        "window": source.info.preprocessing.window if source.info else None,
        "tensors": len(source.tensors),
        "dtypes": sorted({tensor.dtype for tensor in source.tensors.values()}),
        "bytes": sum(file.stat().st_size for file in source.files),
        "parameters": sum(entry["parameters"] for entry in parts.values()),
        "parts": parts,
        "provenance": source.provenance,
    }


def as_text(found: dict[str, Any]) -> str:
    """A description for people."""
    modules = [name for name, there in (("SRPP", found["srpp"]), ("BD", found["bd"])) if there]
    lines = [
        f"{found['path']}: {found['kind']}, {found['layout']} layout, {found['bytes'] / 1e6:.1f} MB",
        f"preset        {found['preset']}{' with ' + ' and '.join(modules) if modules else ''}"
        + ("" if found["exact"] else " (fits best, not exactly)"),
        f"image size    {found['image_size']} px",
        f"tensors       {found['tensors']} ({', '.join(found['dtypes'])})",
        f"parameters    {found['parameters']:,}",
    ]
    lines += [
        f"  {part:28} {entry['tensors']:5} tensors {entry['parameters']:13,}" for part, entry in found["parts"].items()
    ]
    if found["window"]:
        lines.append(f"preprocessing window {found['window']}")
    lines += [f"{what}: {', '.join(names)}" for what, names in found["discrepancies"].items() if names]
    lines += _provenance(found["provenance"], "")
    return "\n".join(lines)


def _provenance(record: dict[str, Any], indent: str) -> list[str]:
    lines = ["provenance" if record else "provenance    none stored"] if not indent else []
    for key, value in record.items():
        if isinstance(value, dict):
            lines += [f"  {indent}{key}:", *_provenance(value, indent + "  ")]
        else:
            lines.append(f"  {indent}{key}: {value}")
    return lines
