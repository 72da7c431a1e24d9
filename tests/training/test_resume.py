"""A run resumes to the same result after signals, damaged checkpoints and a full disk."""

import json
import re
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.folder_lock import LOCK, is_lock
from sam2_3dmed_jax.training.checkpoint import SUMS, restore
from sam2_3dmed_jax.training.run_folder import claim_folder
from tests.helpers.run_files import assert_same_result, rows, signalled, started


def test_a_terminated_and_killed_run_resumes_to_the_result_of_an_uninterrupted_one(small, whole, tmp_path):
    experiment, run = tmp_path / "experiment.py", tmp_path / "run"
    experiment.write_text(
        f"from sam2_3dmed_jax.config import *\n\ndef get_config():\n    return {small.config!r}\n", encoding="utf-8"
    )
    rng = np.random.default_rng(6)

    code, stderr = signalled(experiment, run, int(rng.integers(1, 4)), signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, stderr
    (stopped,) = re.findall(rf"stopped; {run} holds step (\d+) of 12; run the same command again to resume", stderr)
    assert stopped == rows(run)[-1]["step"] and (run / "checkpoints" / stopped / SUMS).exists()
    assert not (run / "final").exists()

    code, stderr = signalled(experiment, run, int(stopped) + int(rng.integers(1, 4)), signal.SIGKILL)
    assert code == -signal.SIGKILL, stderr
    assert rows(run)[: int(stopped)] == rows(whole)[: int(stopped)]

    small.train(run)
    assert_same_result(run, whole)


@pytest.mark.slow
def test_a_second_process_on_a_run_is_refused_and_the_first_one_is_unharmed(small, whole, tmp_path, capsys):
    experiment, run = tmp_path / "experiment.py", tmp_path / "run"
    experiment.write_text(f"from sam2_3dmed_jax.config import *\n\ndef get_config():\n    return {small.config!r}\n")
    first = started(experiment, run)
    while not (run / LOCK).exists():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    assert main(["train", str(experiment), "--out", str(run)]) == 2
    (refusal,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(rf"in use by process {first.pid} on .* since .* \(.*train .*\); wait for it", refusal)
    assert first.wait(600) == 0, first.stderr.read()
    assert_same_result(run, whole)
    assert not [path for path in run.iterdir() if is_lock(path)]


def damaged_copy(whole: Path, run: Path) -> Path:
    for name in ("checkpoints", "config.json", "split.json", "log.csv", "best"):
        (shutil.copytree if (whole / name).is_dir() else shutil.copy)(whole / name, run / name)
    return run / "checkpoints"


def test_a_checkpoint_with_a_truncated_or_changed_file_is_not_used(small, whole, tmp_path):
    (tmp_path / "run").mkdir()
    folder = damaged_copy(whole, tmp_path / "run")
    files = [path for path in (folder / "12").rglob("*") if path.is_file()]
    assert len(files) > 8
    abstract = small.setup().state
    _, step, damaged = restore(folder, abstract)
    assert (step, damaged) == (12, {})
    for file in files:
        content = file.read_bytes()
        damages = content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]) if content else b"more"
        for damage in damages:
            if damage == content:
                continue
            file.write_bytes(damage)
            state, step, damaged = restore(folder, abstract)
            assert step == int(state.step) == 9 and list(damaged) == [12], file
        file.write_bytes(content)
    (folder / "12" / "state" / "_METADATA").unlink()
    assert restore(folder, abstract)[1:] == (9, {12: "state/_METADATA is missing"})
    (folder / "12" / SUMS).unlink()  # as if the process died before it wrote them: only Orbax's checks
    assert restore(folder, abstract)[1] == 9


def test_a_run_resumes_from_before_a_damaged_checkpoint_with_a_warning(small, whole, tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    folder = damaged_copy(whole, run)
    largest = max((path for path in (folder / "12").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    steps = []
    small.train(run, lambda what, done, total, note: steps.append(done))
    assert steps == [10, 11, 12]
    (warning,) = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert f"{folder / '12'} is damaged" in warning and "resumes from step 9" in warning
    assert (run / "damaged" / "12").is_dir() and (folder / "12").is_dir()
    assert_same_result(run, whole)


def test_a_run_with_only_damaged_checkpoints_is_refused_and_keeps_them(small, whole, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    folder = damaged_copy(whole, run)
    for step in ("9", "12"):
        (folder / step / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"every checkpoint is damaged \(12: state/manifest.ocdbt has 0 bytes of \d+, 9:"
    ):
        small.train(run)
    assert {path.name for path in folder.iterdir()} == {"9", "12"} and len(rows(run)) == 12


def test_a_full_disk_stops_the_run_which_resumes_later(small, whole, tmp_path):
    run, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(what: str, done: int, total: int, note: str = "") -> None:
        if done == 6:  # the system refuses larger files from now on, as with a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))

    try:
        with pytest.raises(UserError, match=rf"{run}/checkpoints/6 cannot be written \(File too large\); make room"):
            small.train(run, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert restore(run / "checkpoints", small.setup().state)[1] == 3
    small.train(run)
    assert_same_result(run, whole)


def test_settings_that_are_newer_than_the_run_have_their_defaults(tmp_path):
    config = ExperimentConfig()
    claim_folder(tmp_path / "run", config)
    file = tmp_path / "run" / "config.json"
    old = json.loads(file.read_text())
    del old["training"]["loss_limit"], old["model"]["slice_position"]["to_mask"], old["mesh"]
    file.write_text(json.dumps(old))
    claim_folder(tmp_path / "run", config)
    assert json.loads(file.read_text())["model"]["slice_position"]["to_mask"] is True
    srpp = replace(config.model.slice_position, to_mask=False)
    file.write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"other settings \(model\.slice_position\.to_mask\)"):
        claim_folder(tmp_path / "run", config.replace(model=replace(config.model, slice_position=srpp)))
    file.write_text(file.read_text()[:-9])
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        claim_folder(tmp_path / "run", config)


def test_restoring_without_checkpoints_returns_the_same_state(small, tmp_path):
    state = small.setup().state
    restored, step, damaged = restore(tmp_path / "checkpoints", state)
    assert restored is state and (step, damaged) == (0, {}) and not jax.tree.leaves(state)[0].is_deleted()
