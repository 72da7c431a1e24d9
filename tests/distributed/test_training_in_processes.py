"""Distributed training: the result, stops, and the end of all processes when one dies.

Starting processes is slow, so the tests share one chain of real runs in two processes: stopped by Ctrl-C, resumed and
process 1 killed, resumed and process 0 killed, resumed to the end; they compare it with an undisturbed run. The chain
runs twice: with slices encoded at each step, and from features that the two processes compute first.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax import load_model
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.phantom import make_case
from sam2_3dmed_jax.sam2.parameters import split
from tests.helpers.prepared_files import write_prepared

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "experiments" / "launch" / "local.py"
STEPS = 20
DEATH_SECONDS = 30  # within which the others end
EXPERIMENT = r"""
from sam2_3dmed_jax.config import *

def get_config():
    return ExperimentConfig(
        model=ModelConfig("nano", 64, srpp=False, bd=False),
        data=DataConfig(path={path!r}, slices=2, split=SplitConfig(folds=2), {changes}),
        # Only the mask decoder is trained, which compiles in a third of the time.
        training=TrainingConfig(
            steps={steps}, batch_size=2, checkpoint_every=2, log_every=1, warmup_steps=1,
            frozen=(r"^(?!sam_mask_decoder\.(?!conv_s))",),
        ),
    )
"""


@dataclass
class Launched:
    """The launcher and its run."""

    process: subprocess.Popen
    run: Path
    output: Path

    def children(self) -> list[int]:
        """Return the process ids, in the order of JAX's process indices."""
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def wait_for_step(self, step: int) -> None:
        """Wait until `log.csv` contains the step."""
        while not any(row["step"] == str(step) for row in rows(self.run)):
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.05)

    def end(self, timeout: float | None = None) -> tuple[int, str]:
        """Return the exit code and the output; fail after `timeout` seconds."""
        return self.process.wait(timeout), self.output.read_text()


def rows(run: Path) -> list[dict[str, str]]:
    if not (run / "log.csv").exists():
        return []
    with (run / "log.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module", params=["slices", "features"])
def launch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("processes")
    cases = {f"p{seed}": make_case(seed, "spleen", 48)[:2] for seed in range(4)}
    write_prepared(folder / "data", cases, {1: "spleen"})
    experiment = folder / "experiment.py"
    cached = request.param == "features"
    changes = f"features={str(folder / 'features')!r}, augmentation={NO_AUGMENTATION!r}" if cached else ""
    experiment.write_text(EXPERIMENT.format(path=str(folder / "data"), steps=STEPS, changes=changes))
    started: list[subprocess.Popen] = []

    def start(name: str, *flags: str) -> Launched:
        words = [sys.executable, str(LAUNCHER), "--processes", "2", "--", "train", str(experiment)]
        output = folder / f"output{len(started)}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                [*words, "--out", str(folder / name), *flags],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return Launched(process, folder / name, output)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()  # its children end with it


@pytest.fixture(scope="module")
def chain(launch) -> dict[str, tuple[int, str]]:
    """The exit code and output of the launcher after each step of the chain."""
    ends, draw = {}, random.Random(0)
    job = launch("disturbed")
    job.wait_for_step(1)
    job.process.send_signal(signal.SIGINT)
    ends["Ctrl-C"] = job.end(DEATH_SECONDS * 4)
    ends["logged at Ctrl-C"] = (len(rows(job.run)), "")
    for index in (1, 0):
        job = launch("disturbed")
        job.wait_for_step(len(rows(job.run)) + draw.randrange(1, 4))
        os.kill(job.children()[index], signal.SIGKILL)
        ends[f"killed {index}"] = job.end(DEATH_SECONDS)
    ends["resumed"] = launch("disturbed").end()
    return ends


@pytest.mark.long
def test_ctrl_c_lets_all_processes_save_a_checkpoint_and_stop(chain):
    code, output = chain["Ctrl-C"]
    assert code == 130, output
    assert output.count("; run the same command again to resume where possible") == 2
    assert output.count("stopped; ") == 2
    assert chain["logged at Ctrl-C"][0] < STEPS


@pytest.mark.long
def test_killing_the_second_process_ends_the_first_in_time_and_both_are_reported(chain):
    code, output = chain["killed 1"]
    assert code == 128 + signal.SIGKILL, output
    assert "error: another process of this run ended or cannot be reached" in output
    assert "error: process 1 of 2 was killed by SIGKILL; the others are ended; the same command resumes" in output


@pytest.mark.long
def test_killing_the_first_process_ends_the_second_in_time_and_the_launcher_reports_it(chain):
    code, output = chain["killed 0"]
    assert code >= 128, output
    assert "error: process 0 of 2 was killed by SIGKILL; the others are ended; the same command resumes" in output


@pytest.mark.long
def test_a_run_that_was_stopped_and_killed_has_the_result_of_an_undisturbed_one(chain, launch):
    assert chain["resumed"][0] == 0, chain["resumed"][1]
    calm, disturbed = launch("calm"), launch("disturbed").run
    code, output = calm.end()
    assert code == 0, output
    assert rows(disturbed) == rows(calm.run)
    assert len(rows(calm.run)) == STEPS
    straight, resumed = (split(load_model(run / "final"))[1] for run in (calm.run, disturbed))
    for path, value in straight.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)


def test_a_user_error_ends_all_processes_with_exit_code_2_and_its_message(launch):
    code, output = launch("refused", "--training.batch_size", "3").end(300)
    assert code == 2
    assert output.count("error: training.batch_size: 3 is not divisible by 2 devices") == 2
