"""Rows of scores: one per case, class and seed, with the columns of `cases.csv`."""

from __future__ import annotations

from typing import Any

# One row. Keys: the columns of `result_files.case_columns()`, which include one per registered metric; "lesions":
# list[Lesion], of tumours; "by_distance": Distances, of prompted classes; "reliability": Bins, where probabilities are
# known; "interactions": list[Interaction], of the protocol 'interactive'; `worst_cases.PICTURE`, of rows that a report
# draws. It is a plain dict because metrics are registered at run time and because journals store it as JSON.
ScoreRow = dict[str, Any]

AUTOMATIC, PROMPTED = "automatic", "reference-prompted"  # values of the column "block"
