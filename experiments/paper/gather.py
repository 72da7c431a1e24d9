"""Tables from the folders of all runs: means, paired differences and costs, each with its runs.

The package computes means, intervals and tests (`evaluation.summary`, `evaluation.comparison`).
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
from sam2_3dmed_jax.evaluation.result_files import SUMMARY, read_fixed_cost, read_results
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.summary import summarise
from sam2_3dmed_jax.metrics.statistics import holm

METRICS = ("dice", "iou", "nsd", "hd95_mm")
FURTHER = ("dice_without_prompted_slices", "fp_ml_outside_extent", "band_entropy", "band_ece", "band_brier")
SPREADS = ("mean", "sd", "median", "q1", "q3", "sd_seeds", "sd_folds", "n")
NAMED = ("task", "block", "variant", "scoring", "method")
TABLE_COLUMNS = (*NAMED, "class", "metric", *SPREADS, "ci95_low", "ci95_high", "runs", "planned", "config_hash")
RUN_COLUMNS = (*NAMED, "class", "fold", "seed", "run", "config_hash", "cases", *METRICS, *FURTHER)
COMPARISON_COLUMNS = ("task", "variant", "other", "seeds", *comparison.COLUMNS)
CASE_COLUMNS = (*NAMED, "class", "fold", "seed", "case", "empty", *METRICS, *FURTHER)
COST_COLUMNS = (*NAMED, "parameters", "srpp", "bd", "tflops", "seconds_a_volume", "peak_host_mib", "step_seconds")
MACRO = "macro"
CONFIGS = "configs.json"


@dataclass(frozen=True)
class PooledResults:
    """All results of a variant's scoring on a task, over folds and seeds."""

    task: Task
    variant: Variant
    scoring: Scoring
    cells: tuple[Cell, ...]  # finished runs
    planned: int
    rows: list[ScoreRow]
    summary: dict[str, Any]

    @property
    def named(self) -> dict[str, str]:
        """Return the columns `NAMED`."""
        values = (self.task.name, self.summary["block"], self.variant.name, self.scoring.name, self.summary["method"])
        return dict(zip(NAMED, values, strict=True))


def pooled(programme: Programme, out: Path) -> list[PooledResults]:
    """Return the results of each task, variant and scoring with finished runs."""
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
                    found.append(PooledResults(task, variant, scoring, done, len(planned), rows, summary))
    return found


def table_rows(found: Iterable[PooledResults]) -> list[ScoreRow]:
    """Return one row per number of the tables, with the config hash at the end of its runs' names."""
    rows = []
    for entry in found:
        common = {
            **entry.named,
            "runs": len(entry.cells),
            "planned": entry.planned,
            "config_hash": entry.cells[0].config_hash,
        }
        for name, values in {**entry.summary["classes"], MACRO: entry.summary["macro"]}.items():
            for metric in (m for m in (*METRICS, *FURTHER) if m in values):
                numbers = {key: values[metric].get(key) for key in SPREADS}
                low, high = values[metric]["ci95"] or (None, None)
                row = {**common, "class": name, "metric": metric, **numbers, "ci95_low": low, "ci95_high": high}
                rows.append({key: "" if value is None else value for key, value in row.items()})
    return rows


def run_rows(found: Iterable[PooledResults]) -> list[ScoreRow]:
    """Return one row per run and class: folder, config hash, seed, and means over cases."""
    rows = []
    for entry in found:
        for cell in entry.cells:
            own = [r for r in entry.rows if str(r["fold"]) == str(cell.fold) and r["seed"] == str(cell.seed)]
            common = {**entry.named, "fold": cell.fold, "seed": cell.seed, "run": f"{RUNS}/{cell.name}"}
            for name in entry.summary["classes"]:
                of_class = [row for row in own if row["class"] == name]
                means = {}
                for metric in (*METRICS, *FURTHER):
                    values = [row[metric] for row in of_class if row[metric] == row[metric]]
                    means[metric] = sum(values) / len(values) if values else ""
                named = {"class": name, "config_hash": cell.config_hash, "cases": len(of_class)}
                rows.append({**common, **named, **means})
    return rows


def case_rows(found: Iterable[PooledResults]) -> list[ScoreRow]:
    """Return one row per result, class, fold, seed and case, from which every mean, interval and p value follows."""
    rows = []
    for entry in found:
        table = [{**row, **entry.named} for row in entry.rows]
        rows += sorted(table, key=lambda row: [str(row[key]) for key in ("class", "fold", "seed", "case")])
    return [{key: "" if value != value else value for key, value in row.items()} for row in rows]


def configs_text(every: Iterable[Cell]) -> str:
    """Return the JSON text of all configs by their hash."""
    common = {cell.config_hash: cell.identity for cell in every}
    return json.dumps(dict(sorted(common.items())), indent=1) + "\n"


def comparisons(found: Sequence[PooledResults]) -> list[ScoreRow]:
    """Return the comparisons of each variant with the one that it names, with equal prompts, on common seeds.

    Only the primary comparison has p values, corrected over all tasks, classes and metrics. The test over cases and
    seeds is the primary one (docs/explanation/evaluation.md).
    """
    of = {(entry.task.name, entry.variant.name): entry for entry in found if entry.scoring == ONE_CLICK}
    rows: list[ScoreRow] = []
    for (task, name), entry in of.items():
        other = of.get((task, entry.variant.against))
        if other is None:
            continue
        seeds = {row["seed"] for row in entry.rows} & {row["seed"] for row in other.rows}
        repeated = "one" not in (entry.variant.seeds, other.variant.seeds)
        sides = [[r for r in e.rows if not repeated or r["seed"] in seeds] for e in (entry, other)]
        try:
            results = comparison.compare_methods(*sides)["results"]
        except UserError:  # some folds are done in only one of them
            continue
        alone = set(entry.summary["macro_classes"])
        for result in results:
            if result["metric"] not in (*METRICS, *FURTHER):
                continue
            primary = (name, other.variant.name) == PRIMARY and result["primary"] and result["class"] in alone
            low, high = result["ci95"] or (None, None)
            common = {"task": task, "variant": name, "other": other.variant.name}
            common["seeds"] = len(seeds) if repeated else ""
            p_values: dict[str, Any] = {}
            if not primary:
                p_values = {key: None for _, *keys in comparison.TESTS for key in keys}
            rows.append({**result, **common, "ci95_low": low, "ci95_high": high, "primary": primary, **p_values})
    for _, p_value, corrected in comparison.TESTS:
        for row, p in zip(rows, holm([row[p_value] for row in rows]), strict=True):
            row[corrected] = p
    return [{key: "" if value is None else value for key, value in row.items()} for row in rows]


def cost_rows(found: Iterable[PooledResults], out: Path) -> list[ScoreRow]:
    """Return the cost of each result at inference, and of a step of training."""
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
