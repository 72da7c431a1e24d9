"""The training run as one straight script: data, model, mesh, state, step, loop.

A folder that holds a run is resumed: from its newest undamaged checkpoint, with the batches and the log as if never
stopped. Ctrl-C and SIGTERM stop it at a step boundary, saved.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.data.pipeline import iterate
from sam2_3dmed_jax.data.prepare.source import Progress as DataProgress
from sam2_3dmed_jax.data.split_choice import SPLIT, how_made
from sam2_3dmed_jax.data.split_files import keep_split
from sam2_3dmed_jax.errors import Stopped
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, save_weights
from sam2_3dmed_jax.runtime import distributed
from sam2_3dmed_jax.runtime.disk import writing
from sam2_3dmed_jax.training import compilation
from sam2_3dmed_jax.training.checkpoint import Checkpoints, restore, set_aside
from sam2_3dmed_jax.training.dataset import check_data, open_view, prepared_dataset, split_cases
from sam2_3dmed_jax.training.features.make import check_features, open_features
from sam2_3dmed_jax.training.feed import to_devices
from sam2_3dmed_jax.training.forward import make_forward
from sam2_3dmed_jax.training.guard import LossGuard
from sam2_3dmed_jax.training.interruption import stop_requests
from sam2_3dmed_jax.training.log import Log
from sam2_3dmed_jax.training.methods import method_of
from sam2_3dmed_jax.training.parameter_groups import by_part
from sam2_3dmed_jax.training.profile import Profile
from sam2_3dmed_jax.training.run_folder import claim_folder, record
from sam2_3dmed_jax.training.setup import Setup, set_up
from sam2_3dmed_jax.training.sharding import whole
from sam2_3dmed_jax.training.step import TrainState, result
from sam2_3dmed_jax.training.utilisation import utilisation
from sam2_3dmed_jax.training.validation import fixed_batches, inner_dice

Progress = Callable[[int, int, dict[str, float]], None]  # (steps done, steps, metrics)


def train(
    config: ExperimentConfig,
    out: str | os.PathLike[str],
    progress: Progress | None = None,
    data_progress: DataProgress | None = None,
    setup: Setup | None = None,
    profile: int = 0,
) -> Path:
    """Run or resume an experiment.

    Args:
        config: the experiment.
        out: the run's folder: `config.json`, `split.json`, `log.csv`, TensorBoard events, `checkpoints/`, and `final/`
            when done; with inner cases `best/`, the weights of the highest `dice_inner` so far.
        progress: called at each logged step.
        data_progress: called with (what, done, total, note) while a dataset is prepared first.
        setup: that of this experiment, if there is one (`set_up`, `compile_step`); it cannot be used again.
        profile: number of steps to write an xprof trace of.

    Returns:
        `out/final`, a native checkpoint.

    Raises:
        UserError: settings or data that do not fit, another experiment's folder, a loss that is not finite or explodes,
            only damaged checkpoints, or a disk that is full.
        Stopped: Ctrl-C or SIGTERM; the run is saved.
    """
    run = Path(out)
    setup = setup or set_up(config)
    config = setup.config
    training, total, method = config.training, config.training.steps, method_of(config.model)
    check_data(config)
    check_features(config, setup.encoder)

    distributed.first(lambda: claim_folder(run, config))
    view = open_view(prepared_dataset(config, run, data_progress), config)
    cases, inner, split = split_cases(view, config)
    how = how_made(config.data, view.dataset.fingerprint)
    distributed.first(lambda: keep_split(run / SPLIT, split, how))
    features = open_features(config, setup.encoder, setup.devices, view, [*cases, *inner], data_progress)
    state, start, damaged = restore(run / "checkpoints", setup.state)
    distributed.all_here("checkpoints: read")
    distributed.first(lambda: set_aside(run / "checkpoints", damaged, start))
    if compilation.pays(total - start) and isinstance(setup.step, jax.stages.Wrapped):
        setup = compilation.compile_step(setup)
    host, hosts = jax.process_index(), jax.process_count()
    here = training.batch_size // hosts
    batches = method.batches(view, cases, config.data, here, training.seed, host, hosts, features)[:total]
    fixed, drawn = (
        fixed_batches(method, view, inner or cases, config.data, training, host, hosts, source)
        for source in (features, None)
    )
    forward = make_forward(config.model, setup.sharding.mesh, features is None)

    guard, clock, logged = LossGuard(run, batches, training.loss_limit), time.monotonic(), start
    speaks = distributed.is_first()
    used = utilisation(config, setup.devices) if speaks else None
    with (
        Log(run, start, method.losses, by_part(state.weights), record(config)) if speaks else nullcontext() as log,
        Checkpoints(run / "checkpoints", training.keep_checkpoints) as checkpoints,
        Profile(run, start, profile if speaks else 0) as trace,
        stop_requests() as stop,
        closing(iterate(batches, start, config.data.workers)) as clips,
        distributed.ending_together(),  # innermost: what tidies up would wait for a process that is lost
    ):
        best = distributed.agreed(log.best("dice_inner") if log else 0.0)
        for done, batch in enumerate(to_devices(clips, setup.sharding), start + 1):
            state, metrics = setup.step(state, setup.frozen, batch)
            trace.after(done, state)
            guard.add(done, metrics)
            last, stopping = done == total, bool(stop.signal) or distributed.should_stop(done)
            validates = bool(inner) and (last or _due(done, training.validate_every))
            saves = last or stopping or _due(done, training.checkpoint_every)
            logs = last or validates or _due(done, training.log_every)
            if logs or saves:
                guard.check()
            if validates:
                metrics["dice_inner"] = inner_dice(setup, forward, state, fixed, config.data.workers)
            if logs:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                values["seconds"] = (time.monotonic() - clock) / (done - logged)
                if used:
                    values["mfu"] = used(values["seconds"])
                if log:
                    log.write(done, {**values, "clips_per_second": training.batch_size / values["seconds"]})
                if progress and speaks:
                    progress(done, total, {**values, "batch_size": training.batch_size})
                clock, logged = time.monotonic(), done
            if validates and values["dice_inner"] > best:
                best = values["dice_inner"]
                write_native(run / "best", setup, state, {"steps": done, "dice_inner": best})
            if _due(done, training.images_every):
                (on_devices,) = to_devices([fixed[0]], setup.sharding)
                seen = forward(result(state), setup.frozen, on_devices)
                if log:
                    log.images(done, method.pictures(drawn[0], seen.shown))
            if saves:
                checkpoints.save(state, done)
            if stopping and not last:
                checkpoints.wait()
                raise Stopped(f"stopped; {run} holds step {done} of {total}", stop.signal or signal.SIGTERM)

    write_native(run / "final", setup, state, {"steps": total})
    return run / "final"


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def write_native(path: Path, setup: Setup, state: TrainState, provenance: dict[str, Any]) -> None:
    """Write the weights to use as a native checkpoint.

    Raises:
        UserError: it cannot be written.
    """
    config = setup.config
    told = {"trained_by": "sam2-3dmed train", **provenance, "data": config.data.path, "init": config.model.init}
    info = CheckpointInfo(replace(config.model, init=""), config.data.preprocessing, told)
    with writing(path):
        save_weights(whole(setup.weights(state)), path, info)
