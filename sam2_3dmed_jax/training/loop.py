"""Training loop: data, step, log, checkpoint.

A folder that holds a run is resumed from its newest undamaged checkpoint; batches and log continue as if the run had
never stopped. Ctrl-C and SIGTERM stop it after a step, with its state saved.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax

from sam2_3dmed_jax.config import ExperimentConfig, PreprocessingConfig, TrainingConfig
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.clips import CachedFeatures
from sam2_3dmed_jax.data.pipeline import iterate
from sam2_3dmed_jax.data.prepared import PreparedCase, is_prepared
from sam2_3dmed_jax.data.run_data import DATA_FILE
from sam2_3dmed_jax.data.split_choice import SPLIT_FILE
from sam2_3dmed_jax.errors import Stopped
from sam2_3dmed_jax.model.adapter_file import Adapters, write_adapters
from sam2_3dmed_jax.model.adapters import effective_weights
from sam2_3dmed_jax.model.checkpoint import CheckpointInfo, checkpoint_files, save_weights
from sam2_3dmed_jax.runtime import distributed
from sam2_3dmed_jax.runtime.config_check import check_config
from sam2_3dmed_jax.runtime.folder_lock import one_job
from sam2_3dmed_jax.runtime.local_paths import check_local
from sam2_3dmed_jax.runtime.output_plan import Input, OutputFolder, check_outputs
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.training import compilation
from sam2_3dmed_jax.training.checkpoint import DAMAGED, Checkpoints, restore, set_aside
from sam2_3dmed_jax.training.data_changes import PREPARED, finished_with_changed_data
from sam2_3dmed_jax.training.dataset import check_data, data_files, open_training_cases
from sam2_3dmed_jax.training.features.build import check_features, open_features
from sam2_3dmed_jax.training.feed import StepsInFlight, to_devices
from sam2_3dmed_jax.training.guard import LossGuard
from sam2_3dmed_jax.training.interruption import stop_requests
from sam2_3dmed_jax.training.log import Log, training_note
from sam2_3dmed_jax.training.losses import used_losses
from sam2_3dmed_jax.training.methods import method_of
from sam2_3dmed_jax.training.objective import log_columns
from sam2_3dmed_jax.training.parameter_groups import paths_by_module
from sam2_3dmed_jax.training.profile import Profile
from sam2_3dmed_jax.training.run_folder import CONFIG, RESUME, claim_folder, record
from sam2_3dmed_jax.training.setup import Setup, set_up
from sam2_3dmed_jax.training.sharding import on_host
from sam2_3dmed_jax.training.step import TrainState
from sam2_3dmed_jax.training.utilisation import utilisation
from sam2_3dmed_jax.training.validation import Validation, ValidationResult

ADAPTERS = "adapters"  # folder in a run's folder, for what `training.lora` has trained
# What a run writes in its folder, besides `data/` of a dataset that is not prepared.
RUN_FILES = (
    *(CONFIG, SPLIT_FILE, DATA_FILE, "log.csv", "events", "checkpoints", DAMAGED),
    *("best", "final", ADAPTERS),
)


def train(
    config: ExperimentConfig,
    out: str | os.PathLike[str],
    progress: Progress | None = None,
    setup: Setup | None = None,
    profile: int = 0,
    accept_changed_data: bool = False,
) -> Path:
    """Run or resume an experiment.

    Args:
        config: the experiment.
        out: the run's folder: `config.json`, `split.json`, `data.json`, `log.csv`, TensorBoard events, `checkpoints/`,
            and `final/` at the end; with inner cases also `best/`, the weights of the highest `dice_inner` so far; with
            `training.lora`, `adapters/` has what was trained in both, without the weights it belongs to.
        progress: called at each logged step, and while a dataset is prepared or its slices are encoded first.
        setup: the experiment's setup (`set_up`, `compile_step`), if it exists already; it cannot be used again.
        profile: number of steps in an xprof trace.
        accept_changed_data: resume although cases of the dataset have changed, and record that in `data.json`.

    Returns:
        `out/final`, a native checkpoint. A finished run whose data has changed is left as it is, with a warning.

    Raises:
        UserError: settings or data that do not fit, another experiment's folder, a folder that another process trains
            in, data that has changed since the run began, a loss that is not finite or explodes, only damaged
            checkpoints, or a disk that is full.
        Stopped: Ctrl-C or SIGTERM; the run is saved.
    """
    check_local(out)
    check_config(config)
    run = Path(out)
    _check_outputs(config, run)
    with one_job(run, "choose another --out"):
        return _train(config, run, progress, setup, profile, accept_changed_data)


def _train(
    config: ExperimentConfig,
    run: Path,
    progress: Progress | None,
    setup: Setup | None,
    profile: int,
    accept_changed_data: bool,
) -> Path:
    """Run or resume an experiment in a folder that this process holds; arguments as in `train`."""
    if finished_with_changed_data(config, run, accept_changed_data, progress):
        return run / "final"
    setup = setup or set_up(config)
    config = setup.config
    training, total, method = config.training, config.training.steps, method_of(config.model)
    check_features(config, setup.encoder, check_data(config))
    distributed.run_on_first_process(lambda: claim_folder(run, config))

    reader, cases = open_training_cases(config, run, progress, accept_changed_data)
    preprocessing = reader.preprocessing
    features = open_features(config, setup.encoder, setup.devices, reader, cases.all, progress)
    batches = _batches(config, reader, cases.train, features)
    validation = Validation(setup, reader, cases.inner or cases.train, features)

    state, start = _restore(run, setup)
    if compilation.pays_off(total - start) and isinstance(setup.step, jax.stages.Wrapped):
        setup = compilation.compile_step(setup, reader.stored_slices)
    first_process = distributed.is_first_process()
    columns, modules = log_columns(used_losses(method.losses, training.loss)), paths_by_module(state.weights)
    guard, in_flight = LossGuard(run, batches, training.loss_limit), StepsInFlight()
    validated: ValidationResult | None = None
    reporter = _Reporter(config, start, progress, utilisation(config, setup.devices) if first_process else None)
    with (
        Log(run, start, columns, modules, record(config)) if first_process else nullcontext() as log,
        Checkpoints(run / "checkpoints", training.keep_checkpoints) as checkpoints,
        Profile(run, start, profile if first_process else 0) as trace,
        stop_requests() as stop,
        closing(iterate(batches, start, config.data.workers)) as host_batches,
        distributed.propagate_errors(),  # innermost: any cleanup would wait for a lost process
    ):
        best = distributed.broadcast_from_first(log.best("dice_inner") if log else 0.0)
        for done, batch in enumerate(to_devices(host_batches, setup.sharding), start + 1):
            state, metrics = setup.step(state, setup.frozen, batch)
            trace.after_step(done, state)
            guard.add(done, metrics)
            in_flight.add(metrics)
            stopping = bool(stop.signal) or distributed.preempted(done)
            due = _due(training, done, bool(cases.inner), stopping)
            if due.log or due.save:
                guard.check()
            if due.validate:
                validated = validation.evaluate(state)
                metrics["dice_inner"] = validated.dice
            if due.log:
                values = reporter.report(done, metrics, log)
            if due.validate and validated and values["dice_inner"] > best:
                best = values["dice_inner"]
                provenance = {"steps": done, "dice_inner": best}
                write_native(run / "best", setup, state, preprocessing, provenance, validated.temperature)
            if due.images:
                images = validation.images(state)
                if log:
                    log.images(done, images)
            if due.save:
                checkpoints.save(state, done)
            if stopping and done < total:
                checkpoints.wait()
                raise Stopped(f"stopped; {run} holds step {done} of {total}", stop.signal or signal.SIGTERM)

    if cases.inner and not validated:  # a run that was stopped between its last step and `final/`
        validated = validation.evaluate(state)
    temperature = validated.temperature if validated else None
    write_native(run / "final", setup, state, preprocessing, {"steps": total}, temperature)
    return run / "final"


def _check_outputs(config: ExperimentConfig, run: Path) -> None:
    """Check that the run's folder can be written, and that the run replaces nothing that it reads.

    Raises:
        UserError: it cannot, or would.
    """
    data, init = config.data, config.model.init
    files = {"data.split.file": data.split.file, "data.split.patients": data.split.patients}
    check_outputs(
        [OutputFolder("--out", run, owns=(*RUN_FILES, *([] if is_prepared(data.path) else [PREPARED])))],
        [
            Input("data.path", data.path, lambda: data_files(data.path)),
            *([Input("model.init", init, lambda: checkpoint_files(init))] if init else []),
            *(Input(name, path) for name, path in files.items() if path),
        ],
    )


def write_native(
    path: Path,
    setup: Setup,
    state: TrainState,
    preprocessing: PreprocessingConfig,
    provenance: dict[str, Any],
    temperature: float | None,
) -> None:
    """Write the weights of a state as a native checkpoint, averaged ones with `training.ema`.

    Adapters are merged into them, and also written to `adapters/` next to the checkpoint.

    Args:
        path: the checkpoint's folder.
        setup: of the run.
        state: of the run.
        preprocessing: of the training data, with their modality.
        provenance: further entries of the checkpoint's provenance.
        temperature: fitted on the inner cases of the run, if it has some.

    Raises:
        UserError: it cannot be written.
    """
    config = setup.config
    provenance = {"trained_by": "sam2-3dmed train", **provenance, "data": config.data.path, "init": config.model.init}
    info = CheckpointInfo(replace(config.model, init=""), preprocessing, provenance, temperature)
    weights, scale = on_host(setup.weights(state)), config.training.lora.scale
    if setup.base and distributed.is_first_process():
        base = setup.base
        changed = {name: value for name, value in weights.items() if name in state.weights or name not in base.paths}
        file = path.parent / ADAPTERS / f"{path.name}.safetensors"
        write_adapters(file, Adapters(base.sha256, config.model.init, scale, info, changed), RESUME)
    save_weights(effective_weights(weights, scale), path, info, RESUME)


def _batches(
    config: ExperimentConfig, reader: CaseReader, cases: list[PreparedCase], features: CachedFeatures | None
) -> grain.MapDataset:
    """Return this process's part of the batch of each step."""
    training, hosts = config.training, jax.process_count()
    batches = method_of(config.model).batches(
        reader, cases, config.data, training.batch_size // hosts, training.seed, jax.process_index(), hosts, features
    )
    return batches[: training.steps]


def _restore(run: Path, setup: Setup) -> tuple[TrainState, int]:
    """Return the state and step to start from, and move damaged checkpoints away."""
    state, start, damaged = restore(run / "checkpoints", setup.state)
    distributed.barrier("checkpoints: read")
    distributed.run_on_first_process(lambda: set_aside(run / "checkpoints", damaged, start))
    return state, start


class _Due(NamedTuple):
    """What follows a step."""

    log: bool
    validate: bool
    images: bool
    save: bool


def _due(training: TrainingConfig, done: int, has_inner: bool, stopping: bool) -> _Due:
    """Return what follows the step number `done`."""

    def every(interval: int) -> bool:
        return interval > 0 and done % interval == 0

    last = done == training.steps
    validate = has_inner and (last or every(training.validate_every))
    return _Due(
        log=last or validate or every(training.log_every),
        validate=validate,
        images=every(training.images_every),
        save=last or stopping or every(training.checkpoint_every),
    )


class _Reporter:
    """Adds speed to the metrics of logged steps, and reports them to the log and to a progress callback."""

    def __init__(
        self,
        config: ExperimentConfig,
        start: int,
        progress: Progress | None,
        utilisation: Callable[[float], float] | None,
    ):
        """`utilisation` maps seconds per step to model FLOPs utilisation."""
        self._training, self._progress, self._utilisation = config.training, progress, utilisation
        self._clock, self._logged = time.monotonic(), start

    def report(self, done: int, metrics: dict[str, jax.Array], log: Log | None) -> dict[str, float]:
        """Report a step and return its values. `log` is None on all processes but the first, which report nothing."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        values["seconds"] = (time.monotonic() - self._clock) / (done - self._logged)
        if self._utilisation:
            values["mfu"] = self._utilisation(values["seconds"])
        batch_size, total = self._training.batch_size, self._training.steps
        if log:
            log.write(done, {**values, "clips_per_second": batch_size / values["seconds"]})
            if self._progress:
                self._progress("training", done, total, training_note(values, batch_size))
        self._clock, self._logged = time.monotonic(), done
        return values
