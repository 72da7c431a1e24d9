"""Cases of a dataset in memory, for the choice of held-out cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sam2_3dmed_jax.data.case_content import CaseContent, RecordedCase

SPLIT_IDS = [f"case_{i:02d}" for i in range(12)]  # of the fixtures `patients` and `splits` in tests/data


@dataclass
class RecordedCases:
    """Ids, fingerprint and, if needed, the files and contents of cases."""

    ids: Sequence[str]
    fingerprint: str
    cases: dict[str, RecordedCase] = field(default_factory=dict)

    def files(self, case_id: str) -> RecordedCase:
        """The SHA-256 of the files of a case."""
        case = self.cases[case_id]
        return RecordedCase(None, case.image_file, case.label_file)

    def content(self, case_id: str, modality: str) -> CaseContent:
        """The content of a case."""
        content = self.cases[case_id].content
        assert content is not None
        return content
