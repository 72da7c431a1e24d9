"""Settings of an evaluation: what is scored, how prompts are made, and the columns that describe the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.score_row import AUTOMATIC, PROMPTED
from sam2_3dmed_jax.metrics.mask_pair import MetricSettings
from sam2_3dmed_jax.metrics.reliability import WIDTH_MM, check_width
from sam2_3dmed_jax.prompts.protocols import FROM_PREDICTIONS, INTERACTIVE, NEAREST_COMPONENT, check_protocol
from sam2_3dmed_jax.prompts.simulated_user import InteractionRules
from sam2_3dmed_jax.volume.label_classes import LabelClass, Target, prompted_targets, written_values
from sam2_3dmed_jax.volume.modality import ModalitySources
from sam2_3dmed_jax.volume.zoom import OFF, Zoom


@dataclass(frozen=True)
class EvaluationSettings:
    """What is scored and how, and the columns of each row that describe the method."""

    classes: Sequence[LabelClass]
    protocol: str = ""  # how prompts are made from the reference; "": without prompts
    targets: Sequence[Target] | None = None  # objects, later ones over earlier ones; None: derived from the classes
    clip_slices: int = 6  # D of the protocol 'oracle-clip'
    metrics: MetricSettings = field(default_factory=MetricSettings)
    method_columns: dict[str, Any] = field(default_factory=dict)  # method, trained_on_these_cases, fold, seed
    pictures: int = 0  # number of worst rows that are drawn for a report
    prompt_files: Mapping[str, str] | None = None  # by case, label maps to make prompts from; None: the reference
    nearest_component: bool = False  # of files: score only the component nearest to each click
    band_mm: float = WIDTH_MM  # half width of the band around the boundary in which probabilities are scored
    modality: ModalitySources = field(default_factory=ModalitySources)  # of scans, without the checkpoint
    # Folder for a model's label maps, CASE.nii.gz on the image's own grid, or step_0/CASE.nii.gz and so on of the
    # protocol 'interactive'; "": they are not kept.
    save: str = ""
    interaction: InteractionRules | None = None  # of a model with the protocol 'interactive'
    declared_rules: Mapping[str, str] = field(default_factory=dict)  # of files: fields of `InteractionRules`
    zoom: Zoom = OFF  # of a model, on each object

    def __post_init__(self) -> None:
        if self.protocol and not self.is_interactive:
            check_protocol(self.protocol)
        if self.interaction and not self.is_interactive:
            raise UserError("--interactions and its rules are for --protocol interactive; give it, or leave them out")
        if self.is_interactive and self.prompt_files is not None:
            raise UserError("--prompts-from: corrective clicks of --protocol interactive need references; leave it out")
        if self.is_interactive and self.zoom != OFF:
            raise UserError("--zoom: it is for a single round of prompts, and interactive has several; leave out one")
        check_width(self.band_mm)
        if self.protocol == "oracle-clip" and self.prompt_files is not None:
            raise UserError(
                "--protocol: oracle-clip uses the extent of the object, which no prediction knows; give another"
            )
        if self.protocol == "oracle-clip" and self.zoom != OFF:
            raise UserError("--zoom: it is for whole volumes, and oracle-clip segments clips; leave out one of them")
        written_values(self.objects)

    @property
    def is_interactive(self) -> bool:
        """Whether objects are corrected by clicks after an initial prompt."""
        return self.protocol == INTERACTIVE

    @property
    def rule_columns(self) -> dict[str, str]:
        """The columns of each interaction that describe the simulated user; "" where a rule is not known."""
        rules = asdict(self.interaction) if self.interaction else self.declared_rules
        return {name: rules.get(name, "") for name in ("initial", "click_rule", "refinement")}

    @property
    def objects(self) -> list[Target]:
        """The label values of each object."""
        return prompted_targets(self.classes) if self.targets is None else list(self.targets)

    @property
    def block(self) -> str:
        """The block of result tables: automatic, or prompted from the reference."""
        return PROMPTED if self.protocol and self.prompt_files is None else AUTOMATIC

    @property
    def protocol_column(self) -> str:
        """The value of the column "protocol": a key of `protocols.PROTOCOL_DESCRIPTIONS`, or 'none'."""
        if self.nearest_component:
            return NEAREST_COMPONENT
        return f"{self.protocol}{'' if self.prompt_files is None else FROM_PREDICTIONS}" or "none"
