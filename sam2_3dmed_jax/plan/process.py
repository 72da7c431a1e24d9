"""Planning in a child process, which keeps the compilers of other hardware out of the user's process.

The child reads the configuration from a temporary folder and writes its answer there. The log of the compilers is shown
only if the child dies.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.plan.report import HardwarePlan, plan_from_records
from sam2_3dmed_jax.plan.toolchain import ENVIRONMENT
from sam2_3dmed_jax.plan.topologies import parse_topology
from sam2_3dmed_jax.runtime.config_check import check_config
from sam2_3dmed_jax.runtime.user_files import read_json
from sam2_3dmed_jax.training.sharding import check_batch, mesh_shape

Stage = Callable[[str], None]


def plan_experiment(
    config: ExperimentConfig, topology: str, what: str = "train", stage: Stage | None = None
) -> HardwarePlan:
    """Compile the programs of an experiment for a topology and return their memory, traffic and time.

    No data, weights or chips are needed.

    Args:
        config: the experiment. With `model.init` it starts from loaded weights; the file need not exist.
        topology: such as `v5e:4x4` or `h100:8`.
        what: "train" for the train step, or "predict" for encoding and propagating a block of slices on one chip.
        stage: called with the name of each stage.

    Raises:
        UserError: a field is out of its range, the topology is unknown, its compiler is not installed, or the settings
            do not fit it or each other.
    """
    check_config(config)
    chips = parse_topology(topology)
    if what == "train":  # before the compiler starts
        mesh_shape(config.mesh, chips.chips)
        check_batch(chips.chips, config.training.batch_size, config.training.accumulation)
    with tempfile.TemporaryDirectory(prefix="sam2-3dmed-plan-") as name:
        folder = Path(name)
        (folder / "request").write_bytes(pickle.dumps((config, what, chips)))
        stage = stage or (lambda _: None)
        stage("starting the compiler")
        code = _run(folder, stage)
        answer = folder / "answer.json"
        if not answer.exists():
            log = (folder / "log").read_text(errors="replace").strip().splitlines()[-8:]
            end = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
            if code == -9:
                raise UserError(
                    f"--topology {topology}: the compiler was killed, most likely because host memory ran out; use a "
                    "machine with more memory, or a smaller model.image_size or data.slices"
                )
            raise RuntimeError(f"the compiler of {topology} {end}: " + " | ".join(log))
        record = read_json(answer, "run the command again", finite=False)
    if "error" in record:
        raise UserError(record["error"])
    return plan_from_records(config, chips, what, record["programs"])


def _run(folder: Path, stage: Stage) -> int:
    """Run the child until it ends, and pass on the stages that it prints; return its exit code."""
    command = [sys.executable, "-m", "sam2_3dmed_jax.plan.compile", str(folder)]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as child,
    ):
        try:
            assert child.stdout
            for line in child.stdout:
                if line.startswith("stage "):
                    stage(line.removeprefix("stage ").strip())
            return child.wait()
        except BaseException:
            child.kill()
            raise
