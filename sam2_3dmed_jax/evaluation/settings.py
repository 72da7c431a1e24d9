"""What an evaluation scores, how prompts are made for it, and what its rows say of the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.scores import Measure
from sam2_3dmed_jax.evaluation.summary import AUTOMATIC, PROMPTED
from sam2_3dmed_jax.metrics.reliability import WIDTH_MM, check_width
from sam2_3dmed_jax.prompts.protocols import FROM_PREDICTIONS, NEAREST_COMPONENT, check_protocol
from sam2_3dmed_jax.volume.label_classes import LabelClass, Target, painted_values, prompted_targets


@dataclass(frozen=True)
class Plan:
    """What is scored, how, and what stands in each row about the method."""

    classes: Sequence[LabelClass]
    protocol: str = ""  # how prompts were made from the reference; "": there were none
    targets: Sequence[Target] | None = None  # objects, later ones over earlier ones; None: as the classes tell
    clip_slices: int = 6  # D of the protocol 'oracle-clip'
    measure: Measure = field(default_factory=Measure)
    about: dict[str, Any] = field(default_factory=dict)  # columns: method, trained_on_these_cases, fold, seed
    pictures: int = 0  # of the worst rows, for a report
    prompt_files: Mapping[str, str] | None = None  # label maps by case that prompts are made from; None: the reference
    nearest_component: bool = False  # of files: the component nearest to each click is all that is scored
    band_mm: float = WIDTH_MM  # half width, around the boundary, in which probabilities are judged
    save: str = ""  # folder for a model's label maps, CASE.nii.gz on the image's own grid; "": they are not kept

    def __post_init__(self) -> None:
        if self.protocol:
            check_protocol(self.protocol)
        check_width(self.band_mm)
        if self.protocol == "oracle-clip" and self.prompt_files is not None:
            raise UserError(
                "--protocol: oracle-clip tells where an object ends, which no prediction knows; give another"
            )
        painted_values(self.objects)

    @property
    def objects(self) -> list[Target]:
        """The label values of each object."""
        return prompted_targets(self.classes) if self.targets is None else list(self.targets)

    @property
    def block(self) -> str:
        """Of a table: whether the method was told anything of the reference."""
        return PROMPTED if self.protocol and self.prompt_files is None else AUTOMATIC

    @property
    def told_protocol(self) -> str:
        """What stands in the column "protocol", one of `protocol.EXPLAINED` or 'none'."""
        if self.nearest_component:
            return NEAREST_COMPONENT
        return f"{self.protocol}{'' if self.prompt_files is None else FROM_PREDICTIONS}" or "none"
