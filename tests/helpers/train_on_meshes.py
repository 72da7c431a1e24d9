"""Script of `test_meshes`: train on a mesh of fake devices, and write losses and weights."""

import sys

import jax
import numpy as np

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, MeshConfig, ModelConfig, SrppConfig, TrainingConfig
from sam2_3dmed_jax.training.setup import set_up
from tests.helpers.quick import QUICK
from tests.helpers.random_clips import random_batch

STEPS = 20
CONFIG = ExperimentConfig(
    model=ModelConfig("nano", 64, slice_position=SrppConfig(dim=16, layers=1)),
    data=DataConfig(slices=2),
    # With a larger learning rate the loss jumps, and differences of rounding grow with it.
    training=TrainingConfig(steps=STEPS, batch_size=8, warmup_steps=1, learning_rate=1e-5),
)


def train(data: int, fsdp: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    devices = jax.devices()[: data * fsdp]
    setup = set_up(CONFIG.replace(mesh=MeshConfig(data, fsdp)), devices)
    batches = [jax.device_put(random_batch(CONFIG, i), setup.sharding) for i in range(4)]
    step = setup.step.lower(setup.state, setup.frozen, batches[0]).compile(QUICK)
    state, losses = setup.state, []
    for i in range(STEPS):
        state, metrics = step(state, setup.frozen, batches[i % 4])
        losses.append(float(metrics["loss"]))
    return np.array(losses), jax.device_get(state.weights)


if __name__ == "__main__":
    out, mesh = sys.argv[1:]
    data, fsdp = (int(word) for word in mesh.split("x"))
    losses, weights = train(data, fsdp)
    np.savez(f"{out}/{mesh}.npz", losses=losses, **weights)
