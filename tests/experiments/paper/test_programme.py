"""List of runs: its contents, the names of runs, and the config hash."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.paper import msd, phantom, runner, runs
from experiments.paper.locks import owned, owner
from experiments.paper.programme import Programme, cells, select_part
from experiments.paper.runs import structure
from experiments.paper.variants import OtherMethod, changed
from sam2_3dmed_jax.data.case_reader import TYPICAL_SLICES, StoredSlices
from sam2_3dmed_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def programme() -> Programme:
    return phantom.programme(Path("cohorts"), phantom.Size())


def by_variant(programme: Programme) -> dict:
    return {cell.variant.name: cell.config for cell in cells(programme) if cell.task.name == "spleen"}


def test_each_variant_of_the_paper_exists_and_differs_from_the_base_only_in_its_setting(programme: Programme):
    of = by_variant(programme)
    full = of["full"]
    assert (full.model.srpp, full.model.bd, full.model.slice_position.unit) == (True, True, "slice")
    two_by_two = [(of[name].model.srpp, of[name].model.bd) for name in ("neither", "srpp", "bd", "full")]
    assert two_by_two == [(False, False), (True, False), (False, True), (True, True)]
    position = {name: config.model.slice_position for name, config in of.items() if config.model.kind == "sam2"}
    assert not position["srpp-literal"].to_mask and not position["srpp-memory"].to_mask
    assert position["srpp-memory"].memory and position["learned-position"].order_embedding
    assert (position["mm"].unit, position["mm"].scale) == ("mm", 3 * 4.0)
    loss = {name: config.training.loss for name, config in of.items()}
    assert loss["bd-unsupervised"].bd == loss["context-unsupervised"].srpp == loss["learned-position"].srpp == 0
    assert of["scratch"].model.init == "" and not of["scratch"].data.features
    assert {of[name].data.slices for name in ("d3", "full", "d12")} == {3, 6, 12}
    assert {(loss[n].srpp, loss[n].bd) for n in of if n.startswith("lambda")} == {
        *((0.001, 0.1), (0.1, 0.1), (0.01, 0.01), (0.01, 1.0))
    }
    assert of["unet"].model.kind == "unet" and {"zero-shot", "region-growing", "position-probe"} <= of.keys()
    # Each variant differs in nothing else.
    blank = {"model": full.model, "data": full.data}
    for name in ("neither", "srpp", "bd", "srpp-literal", "srpp-memory", "bd-unsupervised", "mm"):
        same = replace(of[name].model, srpp=True, bd=True, slice_position=full.model.slice_position)
        assert replace(of[name], training=full.training, **{**blank, "data": of[name].data}) == full
        assert same == full.model and replace(loss[name], bd=full.training.loss.bd) == full.training.loss


def test_the_two_by_two_has_eight_seeds_other_variants_three_and_tests_use_forty_phantoms(programme: Programme):
    seeds: dict[str, set[int]] = {}
    for cell in cells(programme):
        seeds.setdefault(cell.variant.name, set()).add(cell.seed)
    assert {len(seeds[name]) for name in ("neither", "srpp", "bd", "full")} == {8}
    once = {"zero-shot", "region-growing", "position-probe"}
    assert {len(seeds[name]) for name in once} == {1}
    assert {len(found) for name, found in seeds.items() if name not in {*once, "neither", "srpp", "bd", "full"}} == {3}
    assert phantom.Size().cases // phantom.Size().folds >= 40 and programme.folds == (0,)


def test_every_run_has_its_own_name_and_a_hash_that_depends_on_its_config(programme: Programme):
    every = cells(programme)
    assert len({cell.name for cell in every}) == len(every)
    hashes: dict[str, set[str]] = {}
    for cell in every:
        hashes.setdefault(cell.config_hash, set()).add(f"{cell.task.name} {cell.variant.name}")
        assert cell.name == f"{cell.task.name}-{cell.variant.name}-fold0-seed{cell.seed}-{cell.config_hash}"
    assert all(len(names) == 1 for names in hashes.values())
    cell = next(cell for cell in every if cell.variant.name == "full")
    other = replace(cell, config=changed(cell.config, training__learning_rate=1e-5))
    saved_more_often = replace(cell, config=changed(cell.config, training__checkpoint_every=7))
    assert other.config_hash != cell.config_hash and saved_more_often.config_hash == cell.config_hash


def test_runs_share_a_step_only_if_it_is_the_same(programme: Programme):
    of = by_variant(programme)
    pancreas = next(c.config for c in cells(programme) if (c.task.name, c.variant.name) == ("pancreas", "full"))
    assert structure(of["full"], TYPICAL_SLICES) == structure(changed(pancreas, training__seed=5), TYPICAL_SLICES)
    assert structure(of["full"], TYPICAL_SLICES) != structure(of["full"], StoredSlices(512, 256, resized=True))
    trained = {
        name: structure(of[name], TYPICAL_SLICES)
        for name in of
        if name not in ("zero-shot", "region-growing", "position-probe")
    }
    assert len(set(trained.values())) == len(trained)


def test_a_process_keeps_the_programs_of_a_few_structures(programme: Programme, tmp_path: Path, monkeypatch):
    @dataclass(frozen=True)
    class Prepared:
        step: object = None

    cleared: list[int] = []
    monkeypatch.setattr(runs, "STEPS", {})
    monkeypatch.setattr(runs, "set_up", lambda config: Prepared())
    monkeypatch.setattr(runs, "compile_step", lambda setup, stored: Prepared(object()))
    reader = SimpleNamespace(stored_slices=TYPICAL_SLICES)
    monkeypatch.setattr(runs, "check_data", lambda config: (reader, []))
    monkeypatch.setattr(runs.jax, "clear_caches", lambda: cleared.append(len(runs.STEPS)))
    cell_runner, of = runs.CellRunner(programme, tmp_path), by_variant(programme)
    first = cell_runner._set_up(of["full"]).step
    assert cell_runner._set_up(changed(of["full"], training__seed=3)).step is first
    for name in ("neither", "srpp", "bd"):
        cell_runner._set_up(of[name])
    assert len(runs.STEPS) == runs.KEPT and not cleared
    cell_runner._set_up(of["mm"])
    assert len(runs.STEPS) == 1 and cleared == [0]
    assert cell_runner._set_up(of["full"]).step is not first


def test_the_decathlon_programme_has_positions_in_slices_and_rows_of_other_methods():
    words = msd.MsdOptions(others=("nnU-Net=preds/{task}/{fold}=no",))
    programme = msd.programme(words)
    every = cells(programme)
    full = next(cell.config for cell in every if cell.name.startswith("lung-full-"))
    assert full.model.preset == "sam2.1_hiera_large" and full.data.slices == 12
    assert full.model.slice_position.unit == "slice" and full.data.preprocessing.window == "lung_medsam"
    others = [cell for cell in every if cell.variant.kind == "files"]
    assert len(others) == 3 * 5 and others[0].variant.name == "others-nnu-net"
    with pytest.raises(UserError, match="NAME=FOLDER=TRAINED"):
        msd.programme(msd.MsdOptions(others=("nnU-Net=preds=perhaps",)))


def test_a_part_of_the_programme_is_selected_by_name_and_an_unknown_name_is_refused(programme: Programme):
    part = select_part(programme, ("lung",), ("full", "unet"), (), (1, 5))
    assert [(cell.variant.name, cell.seed) for cell in cells(part)] == [("full", 1), ("unet", 1), ("full", 5)]
    with pytest.raises(UserError, match="--variants: ful does not exist;"):
        select_part(programme, variants=("ful",))


def test_two_other_methods_with_the_same_name_are_refused(programme: Programme):
    twice = replace(programme, others=(OtherMethod("A b", "x", "no"), OtherMethod("a-b", "y", "no")))
    with pytest.raises(UserError, match="names a run twice"):
        cells(twice)


def test_a_run_has_one_owner_and_is_free_again_when_its_owner_is_killed(tmp_path: Path):
    program = (
        "import sys, time; from pathlib import Path; from experiments.paper.locks import owned\n"
        "with owned(Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", program, str(tmp_path / "run")]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    with owned(tmp_path / "run") as mine:
        assert not mine
    assert f"process {process.pid} on " in owner(tmp_path / "run")
    process.kill()
    process.wait()
    process.stdout.close()
    assert owner(tmp_path / "run") == ""
    with owned(tmp_path / "run") as mine:
        assert mine


def test_the_list_has_state_expected_time_and_folder_of_each_run(programme: Programme, tmp_path: Path):
    part = select_part(programme, ("spleen",), ("full", "neither"), (), (0, 1))
    first, second, *_ = cells(part)
    first.folder(tmp_path).mkdir(parents=True)
    runner._record_done(first, tmp_path, 50.0, 90.0)
    lines = list(runner.run_list(part, tmp_path))
    assert lines[0].split() == ["begun", "0:01:30", f"runs/{first.name}"]  # it has no scores yet
    assert lines[1].split() == [
        "waiting",
        "0:01:30",
        f"runs/{second.name}",
    ]  # estimated from another variant with the same D
    assert lines[4] == "4 runs: 1 begun, 3 waiting" and lines[5].startswith("CPU time: 0:06:00 in all, 0:06:00 left")
