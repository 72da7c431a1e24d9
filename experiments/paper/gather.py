"""From the folders of all runs to rows: means, paired differences and costs, each with the runs that it comes from.

Means, intervals and tests are the package's (`evaluation.summary`, `evaluation.comparison`); they are only gathered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.paper import figures
from experiments.paper.programme import PRIMARY, RUNS, Cell, Programme, cells
from experiments.paper.variants import ONE_CLICK, Scoring, Task, Variant
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation import comparison
from sam2_3dmed_jax.evaluation.results import SUMMARY, read_fixed_cost, read_results
from sam2_3dmed_jax.evaluation.summary import Row, summarise
from sam2_3dmed_jax.metrics.statistics import holm

METRICS = ("dice", "iou", "nsd", "hd95_mm")
FURTHER = ("dice_without_prompted_slices", "fp_ml_outside_extent", "band_entropy", "band_ece", "band_brier")
SPREADS = ("mean", "sd", "median", "q1", "q3", "sd_seeds", "sd_folds", "n")
NAMED = ("task", "block", "variant", "scoring", "method")
TABLE_COLUMNS = (*NAMED, "class", "metric", *SPREADS, "ci95_low", "ci95_high", "runs", "planned", "config_hash")
RUN_COLUMNS = (*NAMED, "class", "fold", "seed", "run", "config_hash", "cases", *METRICS, *FURTHER)
COMPARISON_COLUMNS = ("task", "variant", "other", "seeds", *comparison.COLUMNS)
COST_COLUMNS = (*NAMED, "parameters", "srpp", "bd", "tflops", "seconds_a_volume", "peak_host_mib", "step_seconds")
MACRO = "macro"
CONFIGS = "configs.json"


@dataclass(frozen=True)
class Pooled:
    """All results of a variant's scoring on a task, over folds and seeds."""

    task: Task
    variant: Variant
    scoring: Scoring
    cells: tuple[Cell, ...]  # those that are done
    planned: int
    rows: list[Row]
    summary: dict[str, Any]

    @property
    def named(self) -> dict[str, str]:
        """The columns `NAMED`."""
        told = (self.task.name, self.summary["block"], self.variant.name, self.scoring.name, self.summary["method"])
        return dict(zip(NAMED, told, strict=True))


def pooled(programme: Programme, out: Path) -> list[Pooled]:
    """Each variant and scoring on each task that has results."""
    every, found = cells(programme), []
    for task in programme.tasks:
        for variant in programme.rows:
            own = [cell for cell in every if cell.task == task and cell.variant.name == variant.name]
            for scoring in (s for s in variant.scorings if s.kind not in ("positions", "directions")):
                planned = [cell for cell in own if scoring in cell.scorings]
                done = tuple(cell for cell in planned if (cell.scores(out, scoring) / SUMMARY).exists())
                if done:
                    rows = [row for cell in done for row in read_results(cell.scores(out, scoring))]
                    fixed = [read_fixed_cost(cell.scores(out, scoring)) for cell in done]
                    summary = summarise(rows, fixed)
                    found.append(Pooled(task, variant, scoring, done, len(planned), rows, summary))
    return found


def table_rows(found: Iterable[Pooled]) -> list[Row]:
    """A row a number of the tables, with the hash that its runs' folders end with."""
    rows = []
    for entry in found:
        told = {
            **entry.named,
            "runs": len(entry.cells),
            "planned": entry.planned,
            "config_hash": entry.cells[0].digest,
        }
        for name, values in {**entry.summary["classes"], MACRO: entry.summary["macro"]}.items():
            for metric in (m for m in (*METRICS, *FURTHER) if m in values):
                numbers = {key: values[metric].get(key) for key in SPREADS}
                low, high = values[metric]["ci95"] or (None, None)
                row = {**told, "class": name, "metric": metric, **numbers, "ci95_low": low, "ci95_high": high}
                rows.append({key: "" if value is None else value for key, value in row.items()})
    return rows


def run_rows(found: Iterable[Pooled]) -> list[Row]:
    """A row a run and class: its folder, hash and seed, and its means over cases."""
    rows = []
    for entry in found:
        for cell in entry.cells:
            own = [r for r in entry.rows if str(r["fold"]) == str(cell.fold) and r["seed"] == str(cell.seed)]
            told = {**entry.named, "fold": cell.fold, "seed": cell.seed, "run": f"{RUNS}/{cell.name}"}
            for name in entry.summary["classes"]:
                of_class = [row for row in own if row["class"] == name]
                means = {}
                for metric in (*METRICS, *FURTHER):
                    values = [row[metric] for row in of_class if row[metric] == row[metric]]
                    means[metric] = sum(values) / len(values) if values else ""
                named = {"class": name, "config_hash": cell.digest, "cases": len(of_class)}
                rows.append({**told, **named, **means})
    return rows


def configs_text(every: Iterable[Cell]) -> str:
    """What each hash was made of, by hash."""
    told = {cell.digest: cell.identity for cell in every}
    return json.dumps(dict(sorted(told.items())), indent=1) + "\n"


def comparisons(found: Sequence[Pooled]) -> list[Row]:
    """Each variant against the one that it names, prompted alike, on the seeds that both have.

    p values stand at the primary comparison alone, corrected over tasks, classes and metrics together (METHOD.md).
    """
    of = {(entry.task.name, entry.variant.name): entry for entry in found if entry.scoring == ONE_CLICK}
    rows: list[Row] = []
    for (task, name), entry in of.items():
        other = of.get((task, entry.variant.against))
        if other is None:
            continue
        seeds = {row["seed"] for row in entry.rows} & {row["seed"] for row in other.rows}
        repeated = "one" not in (entry.variant.seeds, other.variant.seeds)
        sides = [[r for r in e.rows if not repeated or r["seed"] in seeds] for e in (entry, other)]
        try:
            results = comparison.compare(*sides)["results"]
        except UserError:  # folds that are done in one only
            continue
        alone = set(entry.summary["macro_classes"])
        for result in results:
            if result["metric"] not in (*METRICS, *FURTHER):
                continue
            primary = (name, other.variant.name) == PRIMARY and result["primary"] and result["class"] in alone
            low, high = result["ci95"] or (None, None)
            told = {"task": task, "variant": name, "other": other.variant.name, "seeds": len(seeds) if repeated else ""}
            p = result["p_wilcoxon"] if primary else None
            rows.append({**result, **told, "ci95_low": low, "ci95_high": high, "primary": primary, "p_wilcoxon": p})
    for row, p in zip(rows, holm([row["p_wilcoxon"] for row in rows]), strict=True):
        row["p_holm"] = p
    return [{key: "" if value is None else value for key, value in row.items()} for row in rows]


def cost_rows(found: Iterable[Pooled], out: Path) -> list[Row]:
    """What each result costs at inference, and a step of training."""
    rows = []
    for entry in found:
        cost = entry.summary["cost"]
        if not cost or not cost["parameters"]:
            continue
        seconds = [figures.step_seconds(cell.folder(out) / "run" / "log.csv") for cell in entry.cells]
        seconds = [value for value in seconds if value is not None]
        sizes = cost["parameters"]
        row = {
            **entry.named,
            **{key: sizes[name] for key, name in zip(COST_COLUMNS[5:8], ("total", "srpp", "bd"), strict=True)},
            "tflops": cost["tflops_a_volume"]["mean"],
            "seconds_a_volume": cost["seconds_a_volume"]["mean"],
            "peak_host_mib": cost["peak_host_mib"],
            "step_seconds": sorted(seconds)[len(seconds) // 2] if seconds else None,
        }
        rows.append({key: "" if value is None else value for key, value in row.items()})
    return rows
