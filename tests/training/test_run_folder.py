"""Files of a run that were edited: its config, its log and the names of its checkpoints."""

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from sam2_3dmed_jax.config import ExperimentConfig, ModelConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.folder_lock import LOCK, one_writer
from sam2_3dmed_jax.training.log import Log
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.run_folder import checkpoint_steps, claim_folder, record

CONFIG = ExperimentConfig(ModelConfig("nano", 64))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"config.json: the file is \[\], expected an object"),
        ('{"model": 5}', "config.json: model is 5, expected an object"),
        ("[" * 100_000, "config.json is not JSON"),
        (json.dumps({**record(CONFIG), "training": {"seed": -1}}), "training.seed is -1, expected a number from 0 to"),
        (json.dumps({**record(CONFIG), "training": {"seeds": 1}}), "training.seeds is not a known field"),
        (json.dumps({**record(CONFIG), "extra": 1}), 'config.json: "extra" is not a known field'),
        (json.dumps({**record(CONFIG), "data": {"clips": 5, "objects": 1, "split": 3}}), "data.split is 3"),
    ],
)
def test_an_edited_config_is_refused_by_its_field(tmp_path: Path, text: str, message: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        claim_folder(tmp_path, CONFIG)
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (b"step,loss,seconds\nx,1.0,1.0\n", r"log.csv, line 2: step is 'x', expected a whole number"),
        (b"loss,seconds\n1.0,1.0\n", r"log.csv, line 2: step is '', expected a whole number"),
        (b"\xff\xfe", "log.csv is not a CSV table in UTF-8"),
    ],
)
def test_an_edited_log_is_refused_and_left_as_it_is(tmp_path: Path, log: bytes, message: str):
    (tmp_path / "log.csv").write_bytes(log)
    with pytest.raises(UserError, match=message):
        Log(tmp_path, 2, (), (), {})
    assert (tmp_path / "log.csv").read_bytes() == log


def test_a_best_value_that_is_not_a_number_is_refused(tmp_path: Path):
    (tmp_path / "log.csv").write_text("step,loss,dice_inner,seconds\n1,1.0,x,1.0\n")
    with Log(tmp_path, 2, (), (), {}) as log, pytest.raises(UserError, match=r"log\.csv: dice_inner is 'x'"):
        log.best("dice_inner")


def test_folders_whose_names_are_no_plain_numbers_are_no_checkpoints(tmp_path: Path):
    for name in ("1", "20", "²", "٣", "01", "3.tmp", "1" * 200):
        (tmp_path / name).mkdir()
    assert sorted(checkpoint_steps(tmp_path)) == [1, 20]


def fill(run: Path, limit: int, work: Callable[[], object]) -> str:
    """Return the message of work that writes a file larger than a limit in bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(UserError, match=f"^{run}.* cannot be written .File too large.; ") as caught:
            work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return str(caught.value)


def test_a_full_disk_is_one_sentence_from_the_first_file_of_a_run(tmp_path: Path):
    run = tmp_path / "run"
    assert "config.json" in fill(run, 100, lambda: claim_folder(run, CONFIG))
    assert not list(run.glob("*")) and not list(run.glob(".*"))
    run.mkdir(exist_ok=True)
    assert "log.csv" in fill(run, 20, lambda: Log(run, 0, (), (), {}))
    assert not (run / "log.csv").exists()
    fill(run, 300, lambda: Log(run, 0, (), (), {"setting": "x" * 1000}))  # the events


def test_a_run_of_another_process_is_refused_before_its_model_is_made(tmp_path: Path):
    with one_writer(tmp_path / "run", ""):
        with pytest.raises(UserError, match=r"run is in use by this process since .*choose another --out"):
            train(CONFIG, tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
