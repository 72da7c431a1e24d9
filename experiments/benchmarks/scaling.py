"""Weak scaling of the compiled train step: network traffic per chip on 1 to 8 chips, with one clip per chip.

    python experiments/benchmarks/scaling.py [--preset sam2.1_hiera_tiny] [--image-size 512] [--slices 6]

No chips are needed: XLA's TPU compiler reports what the program sends (`sam2-3dmed plan`). A collective with the same
traffic on 2 and on 8 chips scales. The script also prints the bytes of optimizer state of frozen parameters.
"""

import argparse
from dataclasses import replace

import jax
import numpy as np

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, MeshConfig, ModelConfig, TrainingConfig
from sam2_3dmed_jax.plan.process import plan_experiment
from sam2_3dmed_jax.training.setup import abstract_run
from sam2_3dmed_jax.training.sharding import make_mesh

TOPOLOGIES = {1: "v5e:1x1", 2: "v5e:1x2", 4: "v5e:2x2", 8: "v5e:2x4"}
MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (1, 8)]
KINDS = ("all-gather", "all-reduce", "reduce-scatter")


def experiment(preset: str, image_size: int, slices: int) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(preset, image_size, init="pretrained", compute_dtype="bfloat16"),
        data=DataConfig(slices=slices),
        training=TrainingConfig(remat_slices="all"),
    )


def frozen_state_bytes(config: ExperimentConfig) -> int:
    """Return the bytes of optimizer state beyond two moments per trained parameter and the two step counts."""
    run = abstract_run(config, make_mesh(MeshConfig(1, 1), jax.devices()[:1]))
    held = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(run.state.optimizer))
    counts = sum(leaf.size * 4 for leaf in jax.tree.leaves(run.state.optimizer) if leaf.shape == ())
    trained = sum(leaf.size * 4 for leaf in run.state.weights.values())
    return held - counts - 2 * trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="sam2.1_hiera_tiny")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=6)
    parser.add_argument("--meshes", nargs="*", default=[f"{d}x{f}" for d, f in MESHES], help="data x fsdp")
    options = parser.parse_args()
    config = experiment(options.preset, options.image_size, options.slices)
    setting = f"{options.preset}, {options.image_size} px, D = {options.slices}"
    print(f"Train step: {setting}, encoder frozen, bfloat16, one clip per chip (v5e), MB per chip and step\n")
    print(f"optimizer state of frozen parts: {frozen_state_bytes(config)} bytes\n")
    print(f"| mesh (data x fsdp) | HBM | {' | '.join(KINDS)} | other |\n|---|---|{'---|' * (len(KINDS) + 1)}")
    for words in options.meshes:
        data, fsdp = (int(word) for word in words.split("x"))
        training = replace(config.training, batch_size=data * fsdp)
        meshed = config.replace(training=training, mesh=MeshConfig(data, fsdp))
        report = plan_experiment(meshed, TOPOLOGIES[data * fsdp])
        (program,) = report.programs
        sent = program.collective_bytes or {}
        cells = [sent.get(kind, 0) for kind in KINDS]
        row = [program.total, *cells, sum(sent.values()) - sum(cells)]
        print(f"| {data} x {fsdp} | {' | '.join(f'{value / 1e6:.2f}' for value in row)} |", flush=True)


if __name__ == "__main__":
    main()
