"""A plan in a child process: compilers of other hardware have no business in the one that the user is in.

The child gets the configuration in a private folder and leaves its answer there; what the compilers log is kept, and
shown only if they die.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from sam2_3dmed_jax.config import ExperimentConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.plan.report import Plan, make_plan
from sam2_3dmed_jax.plan.toolchain import ENVIRONMENT
from sam2_3dmed_jax.plan.topologies import parse_topology

Stage = Callable[[str], None]


def plan(config: ExperimentConfig, topology: str, what: str = "train", stage: Stage | None = None) -> Plan:
    """Compile what an experiment runs for a topology, and say what it takes. No data, weights or chips are needed.

    Args:
        config: the experiment. `model.init` says that it starts from loaded weights; the file need not exist.
        topology: such as `v5e:4x4` or `h100:8`.
        what: "train", the train step; or "predict", a block of slices encoded and walked on one chip.
        stage: called with what is being done.

    Raises:
        UserError: no such topology, its compiler is not installed, or settings that do not fit it or each other.
    """
    chips = parse_topology(topology)
    with tempfile.TemporaryDirectory(prefix="sam2-3dmed-plan-") as name:
        folder = Path(name)
        (folder / "request").write_bytes(pickle.dumps((config, what, chips)))
        code = _run(folder, stage or (lambda _: None))
        answer = folder / "answer.json"
        if not answer.exists():
            said = (folder / "log").read_text(errors="replace").strip().splitlines()[-8:]
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            if code == -9:
                raise UserError(
                    f"--topology {topology}: the compiler was killed, most likely for want of host memory; plan on a "
                    "machine with more, or a smaller model.image_size or data.slices"
                )
            raise RuntimeError(f"the compiler of {topology} {how}: " + " | ".join(said))
        record = json.loads(answer.read_text())
    if "error" in record:
        raise UserError(record["error"])
    return make_plan(config, chips, what, record["programs"])


def _run(folder: Path, stage: Stage) -> int:
    """Run the child, which says its stages on its standard output; it ends with this process."""
    words = [sys.executable, "-m", "sam2_3dmed_jax.plan.compile", str(folder)]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as child,
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
