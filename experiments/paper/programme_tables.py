"""Tables of a programme: two blocks per task, paired comparisons, costs, slice positions, agreement of directions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.paper import failures, figures, robustness
from experiments.paper.gather import (
    CASE_COLUMNS,
    COMPARISON_COLUMNS,
    CONFIGS,
    COST_COLUMNS,
    MACRO,
    METRICS,
    RUN_COLUMNS,
    TABLE_COLUMNS,
    PooledResults,
    case_rows,
    comparisons,
    configs_text,
    cost_rows,
    pooled,
    run_rows,
    table_rows,
)
from experiments.paper.page import Table, markdown, page
from experiments.paper.programme import Programme, cells
from experiments.paper.variants import ONE_CLICK
from sam2_3dmed_jax.evaluation.comparison import TESTS
from sam2_3dmed_jax.evaluation.report.markup import Number, Range
from sam2_3dmed_jax.evaluation.report.wording import name_of, number
from sam2_3dmed_jax.evaluation.result_files import SUMMARY, compressed, table_text, write_files
from sam2_3dmed_jax.evaluation.score_row import AUTOMATIC, PROMPTED, ScoreRow
from sam2_3dmed_jax.metrics.reliability import COLUMNS as BAND


def write_report(programme: Programme, out: Path) -> list[str]:
    """Write the tables of all finished runs and return lines to print."""
    found = pooled(programme, out)
    if not found:
        return [f"no run of {out} has results yet"]
    table, runs = table_rows(found), run_rows(found)
    compared = comparisons(found)
    costs = cost_rows(found, out)
    sections = [*_sections(programme, found, compared), *_costs(costs), *_positions_and_directions(programme, out)]
    sections.append(_variant_list(programme))
    drawn = [*figures.draw(programme, out), *robustness.curves(programme, out), *failures.pictures(programme, out)]
    files = {
        "table.csv": table_text(TABLE_COLUMNS, table),
        "runs.csv": table_text(RUN_COLUMNS, runs),
        "comparison.csv": table_text(COMPARISON_COLUMNS, compared),
        "cases.csv.gz": compressed(table_text(CASE_COLUMNS, case_rows(found))),
        "costs.csv": table_text(COST_COLUMNS, costs),
        CONFIGS: configs_text(cell for entry in found for cell in entry.cells),
        **{figure.file: figure.data for figure in drawn},
        "tables.md": markdown(programme.title, programme.notes, sections, drawn),
        "report.html": page(programme.title, programme.notes, sections, drawn),
    }
    write_files(files, out)
    done = sum(len(entry.cells) for entry in found)
    tables = ", ".join(name for name in files if name.endswith((".csv", ".csv.gz")))
    return [f"tables.md, report.html and {tables} in {out}: {done} results"]


def _sections(
    programme: Programme, found: Sequence[PooledResults], compared: Sequence[ScoreRow]
) -> list[tuple[str, list[Table]]]:
    sections = []
    for task in programme.tasks:
        own = [entry for entry in found if entry.task == task]
        tables = [
            _block(block, [entry for entry in own if entry.summary["block"] == block])
            for block in (AUTOMATIC, PROMPTED)
        ]
        tables = [table for table in (*tables, _reliability(own)) if table.rows]
        if table := _comparison_table(programme, [row for row in compared if row["task"] == task.name]):
            tables.append(table)
        if tables:
            sections.append((task.title, tables))
    return sections


def _block(block: str, found: Sequence[PooledResults]) -> Table:
    header = ["method", "class", "runs", "cases", "empty"]
    for metric in METRICS:
        header += [name_of(metric), "95 % interval", "SD", "median"]
    header += ["SD of seeds (Dice)", "SD of folds (Dice)"]
    rows = []
    for entry in found:
        summary = entry.summary
        for name, values in {**summary["classes"], MACRO: summary["macro"]}.items():
            if name == MACRO and len(summary["macro_classes"]) == 1:
                continue
            cells_: list[Any] = [
                summary["method"] + (" (exploratory)" if entry.variant.exploratory else ""),
                name,
                f"{len(entry.cells)} of {entry.planned}",
                values.get("cases", ""),
                sum(values["empty"].values()) if "empty" in values else "",
            ]
            for metric in METRICS:
                of = values[metric]
                ends = Range(*(number(metric, end) for end in of["ci95"])) if of["ci95"] else ""
                mean = "undefined" if of.get("undefined") else number(metric, of["mean"])
                cells_ += [mean, ends, Number(of.get("sd"), number(metric, 0).digits), number(metric, of.get("median"))]
            cells_ += [Number(values["dice"].get(key)) for key in ("sd_seeds", "sd_folds")]
            rows.append(cells_)
    definitions = found[0].summary if found else {}
    surfaces, empty_policy = (definitions.get(name, "") for name in ("definition", "empty_policy"))
    tolerance = sorted({values["tolerance_mm"] for entry in found for values in entry.summary["classes"].values()})
    what = {AUTOMATIC: "without prompts", PROMPTED: "a prompt shows where the object is"}[block]
    caption = (
        f"Block: {block} ({what}; the two blocks are not ranked against each other). Mean, SD (n - 1) and median over "
        "cases, each the mean over its seeds; per class, macro: mean over classes; intervals: t intervals over cases "
        "and seeds, crossed (over cases only where there is one run per case). NSD at "
        f"{', '.join(f'{value:g}' for value in tolerance)} mm; HD95 in mm, surfaces by '{surfaces}', for an "
        f"empty mask '{empty_policy}'. Empty: results with an empty mask. Exploratory: "
        "settings that must be selected on an inner split, not by this table."
    )
    return Table(caption, header, rows, 2)


def _reliability(found: Sequence[PooledResults]) -> Table:
    """Return the table of reliability at the boundary, which shows whether BD lowers uncertainty."""
    rows = []
    for entry in (entry for entry in found if entry.scoring == ONE_CLICK):
        for name, values in entry.summary["classes"].items():
            if all(metric in values and values[metric]["n"] for metric in BAND):
                cells_: list[Any] = [entry.summary["method"], name, values["band_entropy"]["n"]]
                for metric in BAND:
                    of = values[metric]
                    ends = Range(*(number(metric, end) for end in of["ci95"])) if of["ci95"] else ""
                    cells_ += [number(metric, of["mean"]), ends]
                rows.append(cells_)
    header = ["method", "class", "cases"]
    for metric in BAND:
        header += [name_of(metric), "95 % interval"]
    caption = (
        "Reliability within 5 mm of the reference's boundary, one click each: mean over cases of the entropy of the "
        "probabilities, of their expected calibration error and of their Brier score. A confident miss has no entropy, "
        "so a lower entropy alone is not an advantage."
    )
    return Table(caption, header, rows, 2)


def _comparison_table(programme: Programme, rows: Sequence[ScoreRow]) -> Table | None:
    if not rows:
        return None
    labels = {variant.name: variant.label for variant in programme.rows}
    header = [
        "variant",
        "against",
        "class",
        "metric",
        "cases",
        "seeds",
        "difference",
        "95 % interval",
        "covers",
        *(f"p ({name}, Holm)" for name, *_ in TESTS),
        "kind",
    ]
    body = []
    for row in rows:
        metric = row["metric"]
        if row["difference"] == "" or (metric not in METRICS and metric != "band_entropy"):
            continue
        digits = number(metric, 0).digits
        ends = "" if row["ci95_low"] == "" else Range(Number(row["ci95_low"], digits), Number(row["ci95_high"], digits))
        p = ["" if row[key] == "" else Number(row[key], 4, least=1e-4) for *_, key in TESTS]
        kind = "primary" if row["primary"] else "exploratory"
        difference = Number(row["difference"], digits, sign=True)
        named = [
            labels[row["variant"]],
            labels[row["other"]],
            row["class"],
            name_of(metric),
            row["cases"],
            row["seeds"],
        ]
        body.append([*named, difference, ends, row["covers"], *p, kind])
    caption = (
        "Paired differences, one click each: mean over cases of the variant minus the other, on the seeds of "
        "both, matched by id (none: one of them is not repeated). Primary: Dice and NSD of SAM2-3dMed against "
        "fine-tuned SAM 2, a t test over cases and seeds, crossed, Holm's correction over all tasks, classes and both "
        "metrics together. Wilcoxon's signed-rank test counts only cases as random and takes noise between trainings "
        "for a difference. Covers: what the interval and the first p value count as random; with one seed, another "
        "training may differ more. All other rows are exploratory and have intervals only."
    )
    return Table(caption, header, body, 4)


def _costs(rows: Sequence[ScoreRow]) -> list[tuple[str, list[Table]]]:
    if not rows:
        return []
    header = (
        "task",
        "method",
        "parameters",
        "of SRPP",
        "of BD",
        "TFLOPs per volume",
        "s per volume",
        "host MiB",
        "s per step",
    )
    body = [
        [
            *(row["task"], row["method"], *(int(row[key]) for key in COST_COLUMNS[5:8])),
            *(
                Number(row[key] if row[key] != "" else None, d)
                for key, d in zip(COST_COLUMNS[8:], (4, 2, 0, 3), strict=True)
            ),
        ]
        for row in rows
    ]
    caption = (
        "Costs. Means over volumes, with all objects of a volume together; seconds without volumes during which XLA "
        "compiled. Step: the median over logged steps. Times and memory depend on the machine and its other work, and "
        "differ between runs; FLOPs and parameters do not."
    )
    return [("Costs", [Table(caption, header, body, 2)])]


def _positions_and_directions(programme: Programme, out: Path) -> list[tuple[str, list[Table]]]:
    """Return the tables of slice positions and of agreement of directions, as means over runs."""
    positions, directions = [], []
    every = cells(programme)
    for task in programme.tasks:
        for variant in programme.rows:
            own = [cell for cell in every if cell.task == task and cell.variant.name == variant.name]
            for scoring in variant.scorings:
                files = [cell.scores(out, scoring) / SUMMARY for cell in own if scoring in cell.scorings]
                summaries = [json.loads(file.read_text()) for file in files if file.exists()]
                if summaries and scoring.kind == "positions":
                    means = [_mean([t[key] for t in summaries]) for key in ("abs_error_mm", "right_sign", "r2")]
                    numbers = [Number(value, digits) for value, digits in zip(means, (2, 4, 4), strict=True)]
                    positions.append([task.title, variant.label, len(summaries), *numbers])
                if summaries and scoring.kind == "directions":
                    for labels in summaries[0]["objects"]:
                        of = [t["objects"][labels] for t in summaries if labels in t["objects"]]
                        keys = ("agreement", "dice_upwards", "dice_downwards")
                        means = [_mean([entry[key] for entry in of]) for key in keys]
                        named = [task.title, variant.label, labels, len(summaries), of[0]["cases"]]
                        directions.append([*named, *(Number(value) for value in means)])
    sections = []
    if positions:
        caption = (
            "Predicted distances between slices of held-out scans, over ordered pairs of slices of a window: mean "
            "|predicted - true| in mm, share of pairs in the true order, and R2. The probe only uses the area of the "
            "body and its mean density."
        )
        header = ("task", "method", "runs", "error (mm)", "right order", "R2")
        sections.append(("Slice positions", [Table(caption, header, positions, 2)]))
    if directions:
        caption = (
            "Agreement of directions: Dice between the masks from a click low in the object (propagated upwards) and "
            "one high in it (propagated downwards) on the slices between them; and of each with the reference."
        )
        header = ("task", "method", "labels", "runs", "cases", "agreement", "Dice upwards", "Dice downwards")
        sections.append(("Agreement of directions", [Table(caption, header, directions, 3)]))
    return sections


def _variant_list(programme: Programme) -> tuple[str, list[Table]]:
    rows = [[variant.name, variant.label, variant.sentence] for variant in programme.rows]
    caption = (
        "Variants. table.csv contains each number of the tables with the config hash at the end of its runs' names, "
        "and configs.json the configs; runs.csv has one row per run with folder, hash and seed; scores/ in the run's "
        "folder contains its cases, and a page with pictures of the worst ones. cases.csv.gz has the values of all "
        "cases, from which each mean, interval and p value can be computed again."
    )
    return "Variants", [Table(caption, ("name", "row", "description"), rows, 1)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
