"""Check of all settings of an experiment or a sweep: types, ranges of numbers, regular expressions and paths.

`config.py` declares the types and ranges. The check runs before any other work of `train`, `sweep` and `plan`.
"""

from __future__ import annotations

import dataclasses

from sam2_3dmed_jax.config import ExperimentConfig, SweepSpec
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.local_paths import check_local_fields
from sam2_3dmed_jax.runtime.user_files import plain, typed

FIX = "correct it"


def check_config(config: ExperimentConfig | SweepSpec) -> None:
    """Check every field.

    Raises:
        UserError: a field has another type than `config.py` declares, a number outside of its range, or a remote
            address; the message names the field and the range.
    """
    check_local_fields(config)
    if isinstance(config, SweepSpec):
        _check(config, "")
        return
    for field in dataclasses.fields(config):
        _check(getattr(config, field.name), field.name)


def _check(part: object, at: str) -> None:
    try:
        values = plain(part)
    except (TypeError, ValueError) as error:
        raise UserError(f"{at or 'the sweep'} has a value of a wrong type ({error}); {FIX}") from None
    typed(values, type(part), "", FIX, at)
