"""Factors of a sweep and the settings that combine them: every combination, or one factor at a time around a base.

Settings that differ only in a factor that their prompt ignores (a box has no placement) are the same setting.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sam2_3dmed_jax.config import SweepSpec
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference.propagation import PROPAGATION_ORDERS, PropagationOrder
from sam2_3dmed_jax.prompts.perturbation import OTHER, OWN, PromptVariation, simulated_prompt_types
from sam2_3dmed_jax.prompts.simulated_user import MAX_INTERACTIONS
from sam2_3dmed_jax.runtime.compute_dtype import COMPUTE_DTYPES
from sam2_3dmed_jax.sam2.memory_selection import MEMORY_RULES

PLACEMENTS = ("centre", "random")
STORED = "stored"  # the memory selection of the checkpoint
NONE = "none"  # value of a factor that a prompt or a model ignores


@dataclass(frozen=True)
class Setting:
    """One value of each factor; the fields are the columns of a sweep's tables."""

    prompt: str = "point"
    placement: str = "centre"  # NONE for boxes and masks
    noise_mm: float = 0.0
    misplacement_mm: float = 0.0
    neighbour: bool = False
    prompt_of: str = OWN  # or OTHER
    prompted_slices: int = 1
    corrections: int = 0  # clicks of a simulated user after the prompt; 0 with the prompt of another object
    order: PropagationOrder = "sequential"
    memory_selection: str = STORED  # or a key of `memory_selection.MEMORY_RULES`
    bd: str = "on"  # or 'off', or NONE if the checkpoint has no boundary branch
    threshold: float = 0.0

    @property
    def propagation(self) -> Setting:
        """The setting without its threshold: settings that differ only in the threshold share one propagation."""
        return replace(self, threshold=0.0)

    @property
    def prompting(self) -> PromptVariation:
        """The factors that the prompts depend on."""
        return PromptVariation(**{field.name: getattr(self, field.name) for field in fields(PromptVariation)})

    @property
    def protocol(self) -> str:
        """The evaluation protocol that is equal to this setting, or 'sweep'."""
        exact = not (self.noise_mm or self.misplacement_mm or self.neighbour) and self.prompted_slices == 1
        exact &= self.prompt_of == OWN and not self.corrections
        return {("point", "centre"): "one-click", ("box", NONE): "box-mid"}.get(
            (self.prompt, self.placement) if exact else ("", ""), "sweep"
        )


FACTORS = tuple(Setting.__dataclass_fields__)


def check_spec(spec: SweepSpec) -> None:
    """Check the values of a sweep's fields.

    Raises:
        UserError: the sweep has no cells, or a field has an invalid value.
    """
    for name in ("checkpoints", *FACTORS):
        values = getattr(spec, name)
        if not isinstance(values, tuple | list):
            raise UserError(f"{name}: it is {values!r}; give a tuple of values, such as ({values!r},)")
        if not values:
            raise UserError(f"{name}: it is empty, so the sweep has no cells; give at least one value")
        if twice := [value for value in dict.fromkeys(values) if list(values).count(value) > 1]:
            raise UserError(f"{name}: {twice[0]!r} is given twice; give each value once")
    if not spec.data:
        raise UserError("data: it is empty; give the folder of a dataset")
    _choices(spec, "prompt", simulated_prompt_types())
    _choices(spec, "placement", PLACEMENTS)
    _choices(spec, "prompt_of", (OWN, OTHER))
    _choices(spec, "order", tuple(PROPAGATION_ORDERS))
    _choices(spec, "memory_selection", (STORED, *MEMORY_RULES))
    for name in ("neighbour", "bd"):
        _choices(spec, name, (True, False))
    _numbers(spec, "noise_mm", lambda value: value >= 0, "a length in mm, 0 or more")
    _numbers(spec, "misplacement_mm", lambda value: value >= 0, "a length in mm, 0 or more")
    _numbers(spec, "prompted_slices", lambda value: value >= 1 and value == int(value), "a number of slices from 1")
    _numbers(
        spec,
        "corrections",
        lambda value: 0 <= value <= MAX_INTERACTIONS and value == int(value),
        f"a number of clicks from 0 to {MAX_INTERACTIONS}",
    )
    _numbers(spec, "threshold", lambda value: True, "a logit")
    if spec.design not in ("product", "one-at-a-time"):
        raise UserError(f"design: '{spec.design}' does not exist; choose product or one-at-a-time")
    if spec.compute_dtype not in COMPUTE_DTYPES:
        raise UserError(f"compute_dtype: '{spec.compute_dtype}' does not exist; choose {', '.join(COMPUTE_DTYPES)}")
    if spec.metrics not in ("all", "overlap"):
        raise UserError(f"metrics: '{spec.metrics}' does not exist; choose all or overlap")
    if unknown := [name for name in spec.crossed if name not in FACTORS]:
        raise UserError(f"crossed: the factor '{unknown[0]}' does not exist; choose from {', '.join(FACTORS)}")
    if spec.crossed and spec.design == "product":
        raise UserError("crossed: the design 'product' combines all factors; leave it out, or choose one-at-a-time")


def settings_of(spec: SweepSpec) -> list[Setting]:
    """Return the settings of a sweep without duplicates, in the order of its factors, for models with BD."""
    values = {name: _values(spec, name) for name in FACTORS}
    if spec.design == "product":
        chosen = [dict(zip(FACTORS, combination, strict=True)) for combination in itertools.product(*values.values())]
    else:
        base = {name: levels[0] for name, levels in values.items()}
        varied = [base, *({**base, name: value} for name, levels in values.items() for value in levels[1:])]
        across = itertools.product(*(values[name] for name in spec.crossed))
        chosen = [{**one, **dict(zip(spec.crossed, crossing, strict=True))} for crossing in across for one in varied]
    return list(dict.fromkeys(meaningful(Setting(**one)) for one in chosen))


def meaningful(setting: Setting) -> Setting:
    """Return the setting without the factors that it ignores.

    A box and a mask have no placement. The prompt of another object is not put on a neighbour too, and it is not
    corrected, because corrections would lead back to the own object.
    """
    placement = setting.placement if setting.prompt == "point" else NONE
    own = setting.prompt_of == OWN
    corrections = setting.corrections if own else 0
    return replace(setting, placement=placement, neighbour=setting.neighbour and own, corrections=corrections)


def for_model(settings: Sequence[Setting], has_boundary: bool) -> list[Setting]:
    """Return the settings of a model; without a boundary branch, settings with and without BD are the same."""
    return list(settings) if has_boundary else list(dict.fromkeys(replace(one, bd=NONE) for one in settings))


def base_of(spec: SweepSpec) -> Setting:
    """Return the setting with the first value of each factor."""
    return meaningful(Setting(**{name: _values(spec, name)[0] for name in FACTORS}))


def _values(spec: SweepSpec, name: str) -> list[Any]:
    kind: dict[str, type] = dict.fromkeys(("noise_mm", "misplacement_mm", "threshold"), float)
    kind |= dict.fromkeys(("prompted_slices", "corrections"), int)
    values = list(getattr(spec, name))
    if name == "bd":
        return ["on" if value else "off" for value in values]
    return [kind[name](value) for value in values] if name in kind else values


def _choices(spec: SweepSpec, name: str, known: tuple[Any, ...]) -> None:
    if wrong := [value for value in getattr(spec, name) if value not in known]:
        raise UserError(f"{name}: {wrong[0]!r} does not exist; choose from {', '.join(map(str, known))}")


def _numbers(spec: SweepSpec, name: str, fits: Callable[[float], bool], what: str) -> None:
    for value in getattr(spec, name):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not fits(value):
            raise UserError(f"{name}: {value!r} is not allowed; give {what}")
