"""Protocol 'interactive': scripted segmentations with curves computed by hand, files per step, and a real model."""

import contextlib
import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sam2_3dmed_jax import VolumePredictor, new_model, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation import interactive, score_files
from sam2_3dmed_jax.evaluation.comparison import compare_methods
from sam2_3dmed_jax.evaluation.interaction_curves import rows_after, summarise_interactions
from sam2_3dmed_jax.evaluation.interactions import Interaction, area_under_curve, clicks_to
from sam2_3dmed_jax.evaluation.interactive import CorrectedSession, Step, interact
from sam2_3dmed_jax.evaluation.journal import Journal
from sam2_3dmed_jax.evaluation.label_files import find_steps
from sam2_3dmed_jax.evaluation.result_files import read_results
from sam2_3dmed_jax.evaluation.score_cases import evaluate_model
from sam2_3dmed_jax.evaluation.score_files import evaluate_steps
from sam2_3dmed_jax.evaluation.score_row import ScoreRow
from sam2_3dmed_jax.evaluation.settings import EvaluationSettings
from sam2_3dmed_jax.inference.predictor import Result
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts
from sam2_3dmed_jax.prompts.simulated_user import InteractionRules, Refinement, with_prompts
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt
from sam2_3dmed_jax.volume.io import write_nifti
from sam2_3dmed_jax.volume.label_classes import LabelClass, declared_classes

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


# Curves by hand


def test_the_area_is_the_trapezoid_rule_divided_by_the_number_of_clicks():
    assert area_under_curve([0.2, 0.6, 1.0, 1.0]) == pytest.approx((0.4 + 0.8 + 1.0) / 3)
    assert area_under_curve([1.0, 1.0]) == 1.0
    assert math.isnan(area_under_curve([1.0])) and math.isnan(area_under_curve([0.5, math.nan]))


def test_clicks_to_a_dice_are_the_first_interaction_that_reaches_it():
    assert clicks_to(0.8, [0.8, 0.1]) == 0
    assert clicks_to(0.8, [0.5, 0.79, 0.9, 0.7]) == 2
    assert clicks_to(0.8, [0.5, 0.79]) == math.inf


def _row(case: str, dice: Sequence[float], seed: str = "", seconds: float = 1.0, **rules: str) -> ScoreRow:
    interactions = [
        Interaction(
            interaction=number,
            dice=value,
            nsd=math.nan,
            hd95_mm=math.nan,
            empty="",
            clicks=number,
            click="",
            seconds=seconds * (number + 1),
            compiled="yes" if case == "a" and not number else "no",
            initial="box",
            click_rule="mm",
            refinement=rules.get("refinement", "tracked"),
        )
        for number, value in enumerate(dice)
    ]
    return {"case": case, "class": "organ", "seed": seed, "empty": "", "dice": dice[-1], "interactions": interactions}


def test_a_summary_has_the_curve_area_clicks_and_failures_computed_by_hand():
    rows = [_row("a", [0.4, 0.8, 1.0]), _row("b", [0.0, 0.4, 0.6]), {"case": "c", "class": "organ", "seed": ""}]
    found = summarise_interactions(rows)
    assert found["interactions"] == 2 and found["initial"] == "box"
    assert [one["dice"]["mean"] for one in found["curve"]] == pytest.approx([0.2, 0.6, 0.8])
    assert [one["dice"]["n"] for one in found["curve"]] == [2, 2, 2]  # the case without the object is left out
    assert "nsd" not in found["curve"][0] and "nsd" not in found["auc"]
    assert found["auc"]["dice"]["mean"] == pytest.approx((0.75 + 0.35) / 2)
    reached = found["clicks_to"]
    assert (reached["0.80"]["mean"], reached["0.80"]["failures"], reached["0.80"]["failed"]) == (2, 1, ["b"])
    assert reached["0.90"]["mean"] == (2 + 3) / 2 and reached["0.95"]["median"] == 2.5


def test_intervals_are_t_intervals_over_cases_within_the_range_of_the_metric():
    found = summarise_interactions([_row("a", [0.4, 0.8]), _row("b", [0.2, 0.6]), _row("c", [0.3, 0.7])])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # Student's t for 2 degrees of freedom, and an SD of 0.1
    assert found["curve"][0]["dice"]["ci95"] == pytest.approx([0.3 - half, 0.3 + half])
    assert found["auc"]["dice"]["ci95"] == pytest.approx([0.5 - half, 0.5 + half])
    assert found["clicks_to"]["0.80"]["ci95"][1] <= 2


def test_interactions_that_compiled_are_left_out_of_the_seconds():
    found = summarise_interactions([_row("a", [0.4, 0.8], seconds=100), _row("b", [0.2, 0.6], seconds=2)])
    first, second = found["seconds_per_interaction"]
    assert (first["mean"], first["n"]) == (2, 1) and second["mean"] == (200 + 4) / 2


def test_seeds_of_a_case_are_averaged_and_each_failure_counts():
    rows = [_row("a", [0.4, 0.8], "0"), _row("a", [0.2, 0.4], "1"), _row("b", [0.0, 1.0], "0"), _row("b", [0, 1], "1")]
    found = summarise_interactions(rows)
    assert found["curve"][1]["dice"]["mean"] == pytest.approx((0.6 + 1) / 2) and found["curve"][1]["dice"]["n"] == 2
    assert found["clicks_to"]["0.80"]["failures"] == 1 and found["clicks_to"]["0.80"]["mean"] == (1.5 + 1) / 2


@pytest.mark.parametrize(
    ("other", "what"), [(_row("b", [0.1]), "interactions"), (_row("b", [0.1, 0.2], refinement="anew"), "refinement")]
)
def test_results_with_other_rules_are_not_summarised_together(other: ScoreRow, what: str):
    with pytest.raises(UserError, match=f"differ in {what}"):
        summarise_interactions([_row("a", [0.1, 0.2]), other])


def test_rows_after_an_interaction_have_its_scores_and_are_compared_as_any_rows():
    rows = [_row("a", [0.4, 0.8]), _row("b", [0.2, 0.5])]
    others = [_row("a", [0.4, 0.7]), _row("b", [0.2, 0.6])]
    assert [row["dice"] for row in rows_after(rows, 0)] == [0.4, 0.2] and not rows_after(rows, 2)
    shared = {"labels": "1", "tolerance_mm": 3.0, "block": "reference-prompted", "definition": ""}
    sides = [[{**row, **shared} for row in rows_after(side, 1)] for side in (rows, others)]
    (dice,) = (entry for entry in compare_methods(*sides)["results"] if entry["metric"] == "dice")
    assert dice["difference"] == pytest.approx(0.0) and dice["cases"] == 2


# The simulated user


class Script:
    """A method that returns scripted label maps and keeps the prompts that it gets."""

    def __init__(self, *maps: np.ndarray):
        self.maps = list(maps)
        self.prompts: list[ObjectPrompts] = []

    def __call__(self, prompts: ObjectPrompts) -> np.ndarray:
        self.prompts.append(prompts)
        return self.maps[len(self.prompts) - 1]


def _organ() -> np.ndarray:
    labels = np.zeros((6, 12, 12), np.uint8)
    labels[1:4, 3:8, 2:7] = 1
    return labels


def _steps(script: Script, reference: np.ndarray, rules: InteractionRules, objects: Sequence = ((1,),)) -> list[Step]:
    return list(interact(script, reference, (3.0, 1.0, 1.0), objects, rules))


def test_a_user_corrects_a_miss_with_a_positive_and_an_excess_with_a_negative_click():
    reference = _organ()
    missed, excess = reference.copy(), reference.copy()
    missed[1:4, 3:6] = 0
    excess[4, 8:11, 8:11] = 1
    script = Script(missed, excess, reference)
    steps = _steps(script, reference, InteractionRules(interactions=2))
    (box,), (positive,), (negative,) = (prompts[1,] for prompts in script.prompts)
    assert box.box == (2.0, 3.0, 6.0, 7.0) and not box.points
    # 3 x 3 x 5 missed voxels: at slices of 3 mm, the in-plane border is nearest, and the first slice counts.
    assert (positive.slice, positive.points, positive.labels) == (1, ((3.0, 4.0),), (1,))
    assert (negative.slice, negative.points, negative.labels) == (4, ((9.0, 9.0),), (0,))
    assert [dict(step.clicks) for step in steps] == [{}, {1: 1}, {1: 2}]
    assert sum(len(prompt.points) for prompt in steps[2].prompts[1,]) == 2


def test_without_an_initial_prompt_the_first_mask_is_empty_and_nothing_is_segmented():
    reference = _organ()
    script = Script(reference)
    steps = _steps(script, reference, InteractionRules(initial="none", interactions=1))
    assert not steps[0].labels.any() and steps[0].cost is None and not steps[0].prompts
    ((click,),) = script.prompts[0].values()
    assert (click.slice, click.points, click.labels) == (1, ((4.0, 5.0),), (1,))


def test_an_initial_click_is_the_one_of_the_protocol_one_click():
    script = Script(_organ())
    _steps(script, _organ(), InteractionRules(initial="click", interactions=1))
    ((click,),) = script.prompts[0].values()
    assert (click.slice, click.points) == (1, ((4.0, 5.0),))


def test_a_perfect_mask_gets_no_click_and_stays():
    script = Script(_organ())
    steps = _steps(script, _organ(), InteractionRules(interactions=3))
    assert len(script.prompts) == 1 and len(steps) == 4
    assert all((step.labels == _organ()).all() and step.cost is None for step in steps[1:])


def test_each_object_of_a_case_gets_its_own_click():
    reference = _organ()
    reference[1:4, 9:12, 9:12] = 2
    only_first = np.where(reference == 1, 1, 0)
    script = Script(np.zeros_like(reference), only_first, reference)
    _steps(script, reference, InteractionRules(interactions=3), [(1,), (2,)])
    assert [sorted(prompts) for prompts in script.prompts] == [[(1,), (2,)], [(1,), (2,)], [(2,)]]


def test_an_organ_is_corrected_together_with_the_tumour_inside_it():
    reference = _organ()
    reference[2, 4:6, 3:5] = 2
    without_tumour = np.where(reference, 1, 0)
    script = Script(without_tumour, reference)
    _steps(script, reference, InteractionRules(interactions=1), [(1, 2), (2,)])
    assert sorted(script.prompts[0]) == [(1, 2), (2,)]
    ((tumour, (click,)),) = script.prompts[1].items()  # the union of both labels is perfect
    assert tumour == (2,) and click.object_id == 2 and click.labels == (1,)


def test_an_object_that_the_reference_lacks_is_not_prompted():
    script = Script(_organ())
    steps = _steps(script, _organ(), InteractionRules(interactions=1), [(1,), (3,)])
    assert list(steps[-1].prompts) == [(1,)]


def test_a_click_replaces_a_mask_on_its_slice_and_joins_a_box():
    mask = VoxelPrompt(1, 2, mask=np.ones((4, 4), bool))
    click = VoxelPrompt(1, 2, ((1.0, 2.0),), (0,))
    assert with_prompts({(1,): [mask]}, {(1,): [click]}) == {(1,): [click]}
    ((both,),) = with_prompts({(1,): [VoxelPrompt(1, 2, box=(0, 0, 3, 3))]}, {(1,): [click]}).values()
    assert both.box == (0, 0, 3, 3) and both.points == click.points


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"interactions": 0}, "--interactions: 0 is not a number of corrections; give 1 to 100"),
        ({"interactions": 101}, "--interactions"),
        ({"initial": "mask"}, "--initial: 'mask' does not exist; choose one of box, click, none"),
        ({"click_rule": "cm"}, "--click-rule: 'cm' does not exist"),
        ({"refinement": "none"}, "--refinement: 'none' does not exist"),
    ],
)
def test_wrong_rules_are_refused(rules: dict, message: str):
    with pytest.raises(UserError, match=message):
        InteractionRules(**rules)


# Files per step


def _part(rows: int) -> np.ndarray:
    """Return the upper part of the organ: a Dice of 2 n / (n + 5) for n of its 5 rows."""
    labels = _organ()
    labels[:, 3 + rows :] = 0
    return labels


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases after 0, 1 and 2 clicks, and their references."""
    return _write_steps(tmp_path)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The results of the command for the same files, and what it printed."""
    folder = tmp_path_factory.mktemp("scored")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*_words(_write_steps(folder), folder / "out"), "--initial", "box"]) == 0
    return folder / "out", printed.getvalue()


def _write_steps(tmp_path: Path) -> tuple[Path, Path]:
    steps = {0: {"a": 2, "b": 1}, 1: {"a": 4, "b": 3}, 2: {"a": 5, "b": 3}}
    for step, cases in steps.items():
        for case, rows in cases.items():
            write_nifti(tmp_path / "method" / f"step_{step}" / f"{case}.nii.gz", _part(rows).T, AFFINE)
    for case in "ab":
        write_nifti(tmp_path / "references" / f"{case}.nii.gz", _organ().T, AFFINE)
    return tmp_path / "method", tmp_path / "references"


def _words(folders: tuple[Path, Path], out: Path) -> list[str]:
    method, references = map(str, folders)
    return [
        *("evaluate", "--predictions", method, "--references", references, "--classes", "1=organ", "--out", str(out)),
        *("--protocol", "interactive"),
    ]


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_of_any_method_per_step_have_the_curve_computed_by_hand(scored: tuple[Path, str]):
    out, printed = scored
    dice = {(row["case"], row["interaction"]): float(row["dice"]) for row in _table(out / "interactions.csv")}
    expected = {"a": (4 / 7, 8 / 9, 1.0), "b": (2 / 6, 6 / 8, 6 / 8)}
    assert dice == {(c, str(k)): pytest.approx(v, rel=1e-5) for c, of in expected.items() for k, v in enumerate(of)}
    found = json.loads((out / "summary.json").read_text())["classes"]["organ"]["interactive"]
    means = [sum(of[k] for of in expected.values()) / 2 for k in range(3)]
    assert [one["dice"]["mean"] for one in found["curve"]] == pytest.approx(means)
    assert (found["initial"], found["click_rule"], found["refinement"]) == ("box", "", "")  # as far as declared
    areas = [(of[0] / 2 + of[1] + of[2] / 2) / 2 for of in expected.values()]
    assert found["auc"]["dice"]["mean"] == pytest.approx(sum(areas) / 2)
    assert (found["clicks_to"]["0.80"]["mean"], found["clicks_to"]["0.80"]["failed"]) == ((1 + 3) / 2, ["b"])
    assert {row["case"]: float(row["dice"]) for row in _table(out / "cases.csv")} == {"a": 1.0, "b": 0.75}
    assert "organ: Dice after 0 to 2 clicks 0.452 0.819 0.875" in printed and "0.80 after 2.0 (1 never)" in printed


def test_the_report_shows_the_curves_with_intervals_and_the_failures(scored: tuple[Path, str]):
    page = (scored[0] / "report.html").read_text()
    assert "Corrective clicks</h2>" in page and "Curves of Dice. organ after 0: 0.4524" in page
    assert "clicks to Dice 0.80" in page and "counts as N + 1" in page and "Curves of HD95" in page


def test_results_read_back_have_the_same_summary_until_another_protocol_replaces_them(
    scored: tuple[Path, str], folders: tuple[Path, Path], tmp_path: Path
):
    out, again = scored[0], tmp_path / "again"
    assert main(["evaluate", "--results", str(out), "--out", str(again)]) == 0
    one, other = (
        json.loads((folder / "summary.json").read_text())["classes"]["organ"]["interactive"] for folder in (out, again)
    )
    assert [c["dice"]["mean"] for c in one["curve"]] == pytest.approx([c["dice"]["mean"] for c in other["curve"]], 1e-5)
    assert one["clicks_to"] == other["clicks_to"]
    assert (out / "interactions.csv").read_text() == (again / "interactions.csv").read_text()
    last = [*_words(folders, again)[:-1], "box-mid", "--metrics", "overlap"]
    last[2] = str(folders[0] / "step_2")
    assert main(last) == 0
    assert not (again / "interactions.csv").exists() and "interactions" not in read_results(again)[0]


def test_a_missing_file_of_a_step_counts_as_empty(folders: tuple[Path, Path]):
    (folders[0] / "step_0" / "b.nii.gz").unlink()
    steps, _ = find_steps(*folders)
    _, row = evaluate_steps(steps, EvaluationSettings([LabelClass("organ", (1,))], "interactive"))
    assert [(one["dice"], one["empty"]) for one in row["interactions"]] == [(0, "prediction"), (0.75, ""), (0.75, "")]


def test_finished_cases_of_files_are_not_scored_again(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps, _ = find_steps(*folders)
    settings = EvaluationSettings([LabelClass("organ", (1,))], "interactive")
    rows = evaluate_steps(steps, settings)
    Journal(tmp_path, {}).add("a", rows[:1])
    read = []
    read_pair = score_files.read_pair
    monkeypatch.setattr(
        score_files, "read_pair", lambda pair, *rest: (read.append(pair.case), read_pair(pair, *rest))[1]
    )
    again = evaluate_steps(steps, settings, journal=Journal(tmp_path, {}))
    assert read == ["b"] * 3 and repr(again) == repr(rows)


def _mistake(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    assert main(words) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert len(line) <= 307
    return line


def test_wrong_arguments_are_refused_before_anything_is_written(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    words = _words(folders, out)
    assert "--interactions: 0 is not a number" in _mistake(capsys, [*words, "--interactions", "0"])
    assert "folders of 2 interactions after the initial prompt" in _mistake(capsys, [*words, "--interactions", "3"])
    assert "--click-rule: 'cm' does not exist" in _mistake(capsys, [*words, "--click-rule", "cm"])
    box = [*words[:-1], "box-mid"]
    assert "--initial is for --protocol interactive" in _mistake(capsys, [*box, "--initial", "click"])
    results = ["evaluate", "--results", str(out), "--out", str(out), "--interactions", "3"]
    assert "--interactions: finished results cannot change" in _mistake(capsys, results)
    (folders[0] / "step_1").rename(folders[0] / "step_4")
    assert "step_1 does not exist" in _mistake(capsys, words)
    assert not out.exists()


def test_interactive_needs_references_and_its_rules_need_it():
    settings = [LabelClass("organ", (1,))]
    with pytest.raises(UserError, match=r"--prompts-from: corrective clicks .* need references"):
        EvaluationSettings(settings, "interactive", prompt_files={"a": "a.nii.gz"})
    with pytest.raises(UserError, match="for --protocol interactive"):
        EvaluationSettings(settings, "one-click", interaction=InteractionRules())


# A model

SPEC = """
from sam2_3dmed_jax.config import SweepSpec

def get_spec():
    return SweepSpec(prompt=("box",), misplacement_mm=(0.0,), metrics="overlap")
"""


@pytest.mark.parametrize(("refinement", "sessions", "added"), [("tracked", 1, [1, 1]), ("anew", 3, [1, 2])])
def test_a_correction_is_added_to_the_session_or_all_prompts_to_a_new_one(
    refinement: Refinement, sessions: int, added: list[int], monkeypatch: pytest.MonkeyPatch
):
    opened: list[SimpleNamespace] = []
    calls: list[int] = []

    def session(*_: object) -> SimpleNamespace:
        opened.append(SimpleNamespace(add=lambda prompts: calls.append(len(prompts)), result=lambda: RESULT))
        return opened[-1]

    monkeypatch.setattr(interactive, "Session", session)
    predictor: Any = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(image_size=8)))
    store: Any = SimpleNamespace(depth=2)
    corrected = CorrectedSession(predictor, store, (8, 8), refinement)
    assert not corrected.labels().any() and corrected.labels().shape == (2, 8, 8)
    corrected.add({})
    assert corrected.result is None
    corrected.add({(1,): [VoxelPrompt(1, 0, box=(1, 1, 2, 2))]})
    corrected.add({(1,): [VoxelPrompt(1, 1, ((3.0, 3.0),), (1,))]})
    assert (len(opened), calls) == (sessions, added) and corrected.labels().all()


RESULT = Result((1,), np.ones((1, 2, 2, 2), np.float32), np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))


@pytest.mark.slow
def test_a_model_is_corrected_in_one_session_and_its_saved_steps_have_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = write_phantom_dataset(tmp_path / "data", 2, 0, "spleen", matrix=48)
    dataset = read_dataset(data)
    predictor = VolumePredictor(new_model("nano", 64))
    encoded = []
    encode = VolumePredictor.encode
    monkeypatch.setattr(VolumePredictor, "encode", lambda *args: (encoded.append(args), encode(*args))[1])
    rules, saved = InteractionRules(interactions=1), tmp_path / "saved"
    settings = EvaluationSettings(declared_classes(dataset.labels), "interactive", interaction=rules, save=str(saved))
    rows = evaluate_model(predictor, dataset.cases, settings)
    assert len(encoded) == 2  # one per case, however many clicks
    for row in rows:
        first, second = row["interactions"]
        assert (first["interaction"], first["clicks"], first["click"]) == (0, 0, "") and first["seconds"] > 0
        assert (second["interaction"], second["clicks"], second["dice"]) == (1, 1, row["dice"])
        assert row["tflops"] > 0 and row["protocol"] == "interactive" and row["seconds"] > second["seconds"]
        clicked, *_ = second["click"].split()
        assert clicked in row["prompt_slices"].split()  # a click makes its slice a prompted slice

    steps, _ = find_steps(saved, data / "labelsTr")
    from_files = evaluate_steps(steps, replace(settings, interaction=None, save=""))
    for row, other in zip(rows, from_files, strict=True):
        for metric in ("dice", "nsd", "hd95_mm"):
            assert [one[metric] for one in row["interactions"]] == [one[metric] for one in other["interactions"]]

    Journal(tmp_path / "out", {}).add(dataset.cases[0].id, rows[:1])
    again = evaluate_model(predictor, dataset.cases, settings, journal=Journal(tmp_path / "out", {}))
    assert len(encoded) == 3
    assert [row["interactions"][1]["dice"] for row in again] == [row["interactions"][1]["dice"] for row in rows]


@pytest.mark.slow
def test_a_sweep_with_corrections_has_the_scores_of_the_command(tmp_path: Path):
    data = str(write_phantom_dataset(tmp_path / "data", 5, 0, "spleen", matrix=48))
    checkpoint = str(tmp_path / "ckpt")
    save_model(new_model("nano", 64), checkpoint)
    words = ["evaluate", checkpoint, data, "--metrics", "overlap", "--out", str(tmp_path / "scores")]
    assert main([*words, "--protocol", "interactive", "--interactions", "1"]) == 0
    rows = _table(tmp_path / "scores" / "interactions.csv")
    assert [(row["interaction"], row["clicks"], row["nsd"]) for row in rows] == [("0", "0", "nan"), ("1", "1", "nan")]
    assert {(row["initial"], row["click_rule"], row["refinement"]) for row in rows} == {("box", "mm", "tracked")}
    assert not list((tmp_path / "scores").glob(".unfinished*"))

    (tmp_path / "spec.py").write_text(SPEC)
    words = ["sweep", str(tmp_path / "spec.py"), "--checkpoints", checkpoint, "--data", data]
    assert main([*words, "--corrections", "0", "1", "--out", str(tmp_path / "sweep")]) == 0
    swept = {(row["case"], row["corrections"]): float(row["dice"]) for row in _table(tmp_path / "sweep" / "sweep.csv")}
    assert swept == {(row["case"], row["interaction"]): pytest.approx(float(row["dice"]), rel=1e-5) for row in rows}
    assert "corrective clicks" in (tmp_path / "sweep" / "report.html").read_text()
