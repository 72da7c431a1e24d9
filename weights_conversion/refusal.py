"""Refusal of a checkpoint that does not fit its model, with the reason where a common one explains it."""

from __future__ import annotations

from sam2_3dmed_jax.config import AnyModelConfig
from sam2_3dmed_jax.errors import UserError, counted
from weights_conversion.presets import Fit, best_fit, native_shapes, recognise
from weights_conversion.source import Source

MEMORY = ("memory_attention.", "memory_encoder.")  # modules that a model of single images does not have
TEMPORAL = "maskmem_tpos_enc"  # one row per memory


def require_fit(source: Source, config: AnyModelConfig, fit: Fit, preset: str | None) -> None:
    """Check that a checkpoint fits its model exactly.

    Args:
        source: the checkpoint.
        config: its model.
        fit: how it differs from the model.
        preset: the preset that the user requires; None: any.

    Raises:
        UserError: it does not fit; the message has examples of the discrepancies, and its note has all of them.
    """
    if not fit.discrepancies:
        return
    error = UserError(f"{source.path}: {_known_reason(source, config, fit) or _discrepancies(source, fit, preset)}")
    error.add_note("\n".join(f"{what}: {name}" for what, names in fit.by_kind.items() for name in names))
    raise error


def _known_reason(source: Source, config: AnyModelConfig, fit: Fit) -> str | None:
    """Return the reason if the checkpoint is a SAM 2 that this project does not run."""
    if fit.unexpected or fit.mistyped or source.info:
        return None
    complete = len(source.tensors) > len(fit.missing)
    if complete and not fit.misshaped and not any(name.startswith(MEMORY) for name in source.tensors):
        return (
            f"it is a SAM 2 for single images (Sam2Model), without the {len(fit.missing)} tensors of the memory; give "
            "the video model (Sam2VideoModel)"
        )
    name = fit.mapping.by_native[TEMPORAL].foreign[0]
    memories, width = native_shapes(config)[TEMPORAL]
    if not fit.missing and len(fit.misshaped) == 1 and source.tensors[name].shape[1:] == (1, 1, width):
        rows = source.tensors[name].shape[0]
        if rows != memories:
            return (
                f"it was trained with num_maskmem {rows} ({name} has {rows} rows); only num_maskmem {memories} is "
                "supported, so give a checkpoint with it"
            )
    return None


def _discrepancies(source: Source, fit: Fit, preset: str | None) -> str:
    text = counted(fit.by_kind)
    if preset is None and source.info is None:
        return (
            f"it fits no preset; {fit.preset} in {fit.mapping.layout} layout fits best, except for {text}; give a "
            "checkpoint of SAM 2 ('inspect' lists all)"
        )
    best = recognise(source)[1] if source.info else best_fit(source.tensors)
    if best.preset != fit.preset:
        quality = "exactly" if not best.discrepancies else f"best, with {best.discrepancies} discrepancies"
        fix = f"{best.preset} fits {quality}: give --model {best.preset}"
    else:
        fix = "no other preset fits better: download the checkpoint again"
    return f"it does not fit {fit.preset}: {text}; {fix}"
