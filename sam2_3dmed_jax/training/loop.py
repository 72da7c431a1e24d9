"""The training run as one straight script: data, model, mesh, state, step, loop.

A folder that holds a run is resumed: from its newest checkpoint, with the batches and the log as if never stopped.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
from tensorboardX import SummaryWriter

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.data.pipeline import clip_batches, iterate
from sam2_3dmed_jax.data.prepare_source import Progress as DataProgress
from sam2_3dmed_jax.data.split_choice import SPLIT, how_made
from sam2_3dmed_jax.data.split_files import keep_split
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, save_weights
from sam2_3dmed_jax.training import processes
from sam2_3dmed_jax.training.cases import check_data, open_view, prepared_dataset, training_cases
from sam2_3dmed_jax.training.checkpoint import Checkpoints
from sam2_3dmed_jax.training.feed import to_devices
from sam2_3dmed_jax.training.setup import Setup, set_up
from sam2_3dmed_jax.training.sharding import gathered
from sam2_3dmed_jax.training.step import result

Progress = Callable[[int, int, dict[str, float]], None]  # (steps done, steps, metrics)
COLUMNS = (
    *("step", "loss", "loss_seg", "loss_srpp", "loss_bd", "loss_bce", "loss_dice", "loss_iou", "loss_object_score"),
    *("dice", "gradient_norm", "learning_rate", "seconds"),
)


def train(
    config: ExperimentConfig,
    out: str | os.PathLike[str],
    progress: Progress | None = None,
    data_progress: DataProgress | None = None,
    setup: Setup | None = None,
) -> Path:
    """Run or resume an experiment.

    Args:
        config: the experiment.
        out: the run's folder: `config.json`, `split.json`, `log.csv`, TensorBoard events, `checkpoints/`, and `final/`
            when done.
        progress: called at each logged step.
        data_progress: called with (what, done, total, note) while a dataset is prepared first.
        setup: what `compile_ahead` gave for this experiment; it cannot be used again.

    Returns:
        `out/final`, a native checkpoint.

    Raises:
        UserError: settings or data that do not fit, another experiment's folder, or a loss that is not finite.
    """
    run = Path(out)
    setup = setup or set_up(config)
    config = setup.config
    check_data(config)

    processes.first(lambda: claim_folder(run, config))
    view = open_view(prepared_dataset(config.data.path, run, data_progress), config)
    cases, split = training_cases(view, config)
    how = how_made(config.data, view.dataset.fingerprint)
    processes.first(lambda: keep_split(run / SPLIT, split, how))
    checkpoints = Checkpoints(run / "checkpoints", config.training.keep_checkpoints)
    state, start = checkpoints.restore(setup.state)
    host, hosts = jax.process_index(), jax.process_count()
    here = config.training.batch_size // hosts
    batches = clip_batches(view, cases, config.data, here, config.training.seed, host, hosts)

    log = Log(run, start) if processes.is_first() else None
    total, every = config.training.steps, config.training.log_every
    clips = iterate(batches[:total], start, config.data.workers)
    clock = time.monotonic()
    try:
        for step, batch in enumerate(to_devices(clips, setup.sharding), start):
            state, metrics = setup.step(state, setup.frozen, batch)
            done = step + 1
            if done % every == 0 or done == total:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                if not math.isfinite(values["loss"]):
                    raise UserError(
                        f"{run}: the loss is {values['loss']} at step {done}; lower training.learning_rate or raise "
                        "training.warmup_steps, and start in another folder"
                    )
                values["seconds"], clock = (time.monotonic() - clock) / every, time.monotonic()
                if log:
                    log.write(done, values)
                if log and progress:
                    progress(done, total, values)
            if done % config.training.checkpoint_every == 0 or done == total:
                checkpoints.save(state, done)
            if processes.should_stop(done):
                checkpoints.save(state, done)
                raise KeyboardInterrupt
    except Exception as error:
        processes.end_if_lost(error)
        raise
    finally:
        clips.close()
        checkpoints.close()
        if log:
            log.close()

    provenance = {"trained_by": "sam2-3dmed train", "steps": total, "data": config.data.path, "init": config.model.init}
    final = run / "final"
    info = CheckpointInfo(replace(config.model, init=""), config.data.preprocessing, provenance)
    save_weights(gathered({**result(state), **setup.frozen}), final, info)
    return final


def claim_folder(run: Path, config: ExperimentConfig) -> None:
    """Write `config.json`, or check that the folder's run is of the same experiment.

    Raises:
        UserError: the folder holds another experiment, or other files.
    """
    record = json.loads(json.dumps(dataclasses.asdict(config)))
    file = run / "config.json"
    if file.exists():
        different = sorted(_differences(json.loads(file.read_text()), record))
        if different:
            raise UserError(
                f"{run} holds a run with other settings ({', '.join(different)}); choose another --out or set them back"
            )
        return
    if run.exists() and any(run.iterdir()):
        raise UserError(f"{run} is not empty and holds no run; choose another --out")
    run.mkdir(parents=True, exist_ok=True)
    temporary = run / ".config.json.tmp"
    temporary.write_text(json.dumps(record, indent=2))
    temporary.rename(file)


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    found = []
    for name in {*old, *new}:
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(prefix + name)
    return found


class Log:
    """`log.csv` and TensorBoard scalars; rows past the checkpoint that a run resumes from are dropped."""

    def __init__(self, run: Path, start: int):
        file = run / "log.csv"
        rows = []
        if file.exists():
            with file.open(newline="") as old:
                rows = [row for row in csv.DictReader(old) if int(row["step"]) <= start]
        self._file = file.open("w", newline="")
        self._csv = csv.DictWriter(self._file, COLUMNS)
        self._csv.writeheader()
        self._csv.writerows(rows)
        self._board = SummaryWriter(str(run), purge_step=start + 1 if start else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add one row."""
        self._csv.writerow({"step": step, **{name: repr(value) for name, value in values.items()}})
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        self._board.close()
