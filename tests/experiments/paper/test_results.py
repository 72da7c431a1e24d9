"""Committed report of the phantom programme: each of its numbers leads to a run's folder, a hash and a seed."""

import csv
import hashlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "experiments" / "paper" / "results" / "phantom"
TEXT = (FOLDER / "tables.md").read_text(encoding="utf-8")
ABOUT = (FOLDER / "README.md").read_text(encoding="utf-8")


def rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


TABLE, RUNS = rows("table.csv"), rows("runs.csv")
CONFIGS = json.loads((FOLDER / "configs.json").read_text(encoding="utf-8"))


def runs_of(row: dict[str, str]) -> list[dict[str, str]]:
    same = ("task", "variant", "scoring", "class")
    return [run for run in RUNS if all(run[name] == row[name] for name in same)]


def test_each_hash_belongs_to_a_committed_config():
    assert {row["config_hash"] for row in (*TABLE, *RUNS)} == CONFIGS.keys()
    for config_hash, config in CONFIGS.items():
        assert hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest().startswith(config_hash)


def test_each_run_is_named_by_its_task_variant_seed_and_hash():
    for run in RUNS:
        name = f"{run['task']}-{run['variant']}-fold{run['fold']}-seed{run['seed']}-{run['config_hash']}"
        assert run["run"] == f"runs/{name}"
        assert int(run["cases"]) >= 40


def test_each_number_of_the_table_is_the_mean_of_its_runs():
    checked = 0
    for row in (row for row in TABLE if row["class"] != "macro" and row["metric"] in ("dice", "iou", "nsd", "hd95_mm")):
        own = runs_of(row)
        assert len(own) == int(row["runs"]) and {run["config_hash"] for run in own} == {row["config_hash"]}, row
        if row["mean"]:
            mean = sum(float(run[row["metric"]]) for run in own) / len(own)
            assert float(row["mean"]) == pytest.approx(mean, rel=2e-4, abs=1e-5), row
            checked += 1
    assert checked > 300


def test_the_markdown_has_the_numbers_of_the_table():
    means = {(row["method"], row["class"], row["metric"], row["runs"], row["mean"]) for row in TABLE}
    found = 0
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 23 and re.fullmatch(r"\d+ of \d+", cells[2]):
            method, runs = cells[0].removesuffix(" (exploratory)"), cells[2].split()[0]
            of = [
                float(mean)
                for m, name, metric, n, mean in means
                if (m, name, metric, n) == (method, cells[1], "dice", runs)
            ]
            # Half a unit of the last digit; the table's six digits may lie on the half itself.
            assert any(abs(mean - float(cells[5])) <= 0.500_01e-4 for mean in of), line
            found += 1
    assert found > 80


def test_every_run_of_the_programme_is_there():
    from experiments.paper import phantom
    from experiments.paper.programme import cells

    every = cells(phantom.programme(Path("cohorts"), phantom.Size()))
    masks = {(cell.task.name, cell.variant.name, str(cell.seed)) for cell in every if cell.variant.kind != "probe"}
    assert {(run["task"], run["variant"], run["seed"]) for run in RUNS} == masks
    assert {row["runs"] == row["planned"] for row in TABLE} == {True}
    (number,) = re.findall(r"\*\*All (\d+) runs are done", ABOUT)
    assert len(every) == int(number)


@pytest.mark.parametrize("task", ["spleen", "pancreas", "lung"])
def test_the_sweep_of_prompts_names_its_runs_and_begins_at_their_scores(task):
    swept = [row for row in rows(f"robustness/{task}/summary.csv") if row["class"] != "macro"]
    prompts = {(row["prompt"], row["noise_mm"], row["misplacement_mm"]) for row in swept}
    assert {row["cases"] for row in swept} == {"40"} and len(prompts) == 3 * (1 + 3 + 3)  # noise and misplacement apart
    checked = set()
    for row in swept:
        (name,) = re.findall(r"runs/([^/]+)/run/final", row["model"])
        undisturbed = {key: row[key] for key in ("placement", "noise_mm", "misplacement_mm", "neighbour", "threshold")}
        if (row["prompt"], row["prompted_slices"], *undisturbed.values()) == (
            "point",
            "1",
            "centre",
            "0",
            "0",
            "no",
            "0",
        ):
            (run,) = [
                run
                for run in RUNS
                if run["run"] == f"runs/{name}".replace("{fold}", "0")
                and (run["class"], run["scoring"]) == (row["class"], "one-click")
            ]
            assert float(row["dice_mean"]) == pytest.approx(float(run["dice"]), abs=1e-5)  # six digits are written
            checked.add((run["variant"], row["class"]))
    assert {variant for variant, _ in checked} == {"full", "neither"}


def test_the_numbers_in_the_text_are_in_the_tables():
    text = " ".join(ABOUT.split())

    def difference(variant, other, metric):
        (row,) = [
            row
            for row in rows("comparison.csv")
            if (row["task"], row["variant"], row["other"], row["metric"]) == ("spleen", variant, other, metric)
        ]
        return f"{float(row['difference']):+.4f}", f"{float(row['ci95_low']):.4f} to {float(row['ci95_high']):.4f}"

    for sentence in (
        "Dice {} (95 % interval {})".format(*difference("full", "neither", "dice")),
        "NSD {} ({})".format(*difference("full", "neither", "nsd")),
        "(alone: Dice {}, {})".format(*difference("srpp", "neither", "dice")),
        "({} against the whole, {})".format(*difference("bd-unsupervised", "full", "dice")),
    ):
        assert sentence in text, sentence
    survive = {row["task"] for row in rows("comparison.csv") if row["p_holm"] and float(row["p_holm"]) < 0.05}
    assert survive == {"spleen"}

    dice = {
        (row["variant"], row["scoring"]): float(row["mean"])
        for row in TABLE
        if (row["task"], row["class"], row["metric"]) == ("spleen", "spleen", "dice")
    }
    assert f"Dice {dice['unet', 'nearest-component']:.4f} for {dice['full', 'one-click']:.4f}" in text
    off, base = (
        next(
            row
            for row in rows("robustness/spleen/summary.csv")
            if "-full-" in row["model"] and (row["prompt"], row["neighbour"]) == ("point", neighbour)
        )
        for neighbour in ("yes", "no")
    )
    sentence = (
        f"{float(off['moved_mm']):.0f} mm off, outside of the spleen, it gives Dice {float(off['dice_mean']):.4f} for"
    )
    assert f"{sentence} {float(base['dice_mean']):.4f}" in text


def mean(task: str, variant: str, class_: str, metric: str, scoring: str = "one-click") -> float:
    named = (task, variant, class_, metric, scoring)
    keys = ("task", "variant", "class", "metric", "scoring")
    (row,) = [row for row in TABLE if tuple(row[key] for key in keys) == named]
    return float(row["mean"])


def test_the_text_states_that_no_variant_of_sam_2_finds_a_nodule_beyond_the_click_and_that_controls_do():
    text = " ".join(ABOUT.split())
    assert "No SAM 2 variant finds a nodule on any slice other than the clicked one" in text
    metric = "dice_without_prompted_slices"
    elsewhere = {
        (row["variant"], row["scoring"]): float(row["mean"])
        for row in TABLE
        if (row["task"], row["class"], row["metric"]) == ("lung", "cancer", metric)
    }
    grown, component = elsewhere.pop(("region-growing", "one-click")), elsewhere.pop(("unet", "nearest-component"))
    assert elsewhere.pop(("unet", "automatic")) > 0 and len(elsewhere) > 18 and set(elsewhere.values()) == {0.0}
    assert f"region growing reaches Dice {grown:.4f} without the clicked slice" in text
    assert f"the U-Net's component nearest to the click {component:.4f}" in text


def test_the_text_states_the_failures_on_the_pancreas():
    text = " ".join(ABOUT.split())
    pancreas, tumour, union = (
        mean("pancreas", "full", name, "dice") for name in ("pancreas", "cancer", "pancreas+cancer")
    )
    assert f"Dice of the pancreas is {pancreas:.4f}, and of its tumour {tumour:.4f}, but {union:.4f} of" in text
    assert "The U-Net finds no tumour of the pancreas" in text
    scorings = ("automatic", "nearest-component", "prompts")
    assert {mean("pancreas", "unet", "cancer", "dice", scoring) for scoring in scorings} == {0.0}


def test_the_text_states_where_srpp_reads_positions_worse_than_its_probe():
    def errors(task: str) -> str:
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines()]
        named = {line[1]: line for line in cells if line[0] == task and len(line) == 6}
        probe, srpp = named["Probe: body area and mean HU"], named["SAM2-3dMed"]
        ahead, behind = sorted((probe[3], srpp[3]), key=float)
        assert (ahead == probe[3]) == (not task.startswith("Lung"))
        return f"{ahead} mm for {behind} mm"

    text = " ".join(ABOUT.split())
    for task in ("Spleen (phantoms)", "Pancreas and tumour (phantoms)", "Lung nodule (phantoms)"):
        assert errors(task) in text, task


def test_the_text_states_the_weight_of_cross_entropy_in_the_configs():
    weights = [config["config"]["training"]["loss"]["bce"] for config in CONFIGS.values()]
    sentence = f"{weights.count(10.0)} of the {len(weights)} configs weigh binary cross-entropy by 10"
    assert sentence in " ".join(ABOUT.split())
    assert {
        run["variant"] for run in RUNS if CONFIGS[run["config_hash"]]["config"]["training"]["loss"]["bce"] == 1
    } == {"unet"}
    untrained = [c for c in CONFIGS.values() if c["kind"] != "trained" and c["config"]["training"]["loss"]["bce"] == 10]
    assert len(untrained) == 6 and "Six of the 57 train nothing" in ABOUT


def test_every_figure_and_the_page_exist():
    named = re.findall(r"!\[[^\]]*\]\((figures/[^)]+)\)", TEXT)
    assert len(named) > 15
    assert {path.relative_to(FOLDER).as_posix() for path in (FOLDER / "figures").iterdir()} == set(named)
    assert "cannot show that SRPP or BD helps on patients" in (FOLDER / "report.html").read_text(encoding="utf-8")


def test_the_text_states_command_machine_and_date():
    (line,) = re.findall(r"```sh\n(python -m experiments.paper.phantom --out phantom_programme)\n", ABOUT)
    assert line in (ROOT / "experiments" / "paper" / "README.md").read_text(encoding="utf-8")
    for pattern in (
        r"\b2026-\d\d-\d\d\b",
        r"\bcommit [0-9a-f]{7}\b",
        r"\b2 cores\b",
        r"\bjax \d",
        "cannot show",
        "research use only",
    ):
        assert re.search(pattern, ABOUT), pattern
