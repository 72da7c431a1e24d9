"""Script of `test_meshes`: train on a mesh of fake devices, and write losses and weights."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.config import (
    DataConfig,
    ExperimentConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    SrppConfig,
    TrainingConfig,
)
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


def with_adapters(out: str) -> ExperimentConfig:
    """Adapters of kernels that are sharded and of kernels that are not, with what combines with them."""
    base = Path(out, "base")
    if not base.exists():
        save_model(new_model("nano", 64, seed=1), base)
    training = replace(
        CONFIG.training, steps=6, learning_rate=1e-4, accumulation=2, ema=0.5, layer_decay=0.9, lora=LoraConfig(rank=4)
    )
    return CONFIG.replace(model=ModelConfig("nano", 64, srpp=False, bd=False, init=str(base)), training=training)


def with_few_weights() -> ExperimentConfig:
    """The mask decoder and two sharded kernels of the trunk train, which compiles faster than everything."""
    training = replace(CONFIG.training, frozen=(r"^(?!sam_mask_decoder\.|image_encoder\.trunk\.blocks\.4\.mlp\.)",))
    return CONFIG.replace(model=replace(CONFIG.model, srpp=False, bd=False), training=training)


def train(config: ExperimentConfig, data: int, fsdp: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    devices = jax.devices()[: data * fsdp]
    setup = set_up(config.replace(mesh=MeshConfig(data, fsdp)), devices)
    batches = [jax.device_put(random_batch(config, i), setup.sharding) for i in range(4)]
    if fsdp > 1:
        assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(setup.state.weights))
    step = setup.step.lower(setup.state, setup.frozen, batches[0]).compile(QUICK)
    state, losses = setup.state, []
    for i in range(config.training.steps):
        state, metrics = step(state, setup.frozen, batches[i % 4])
        losses.append(float(metrics["loss"]))
    return np.array(losses), jax.device_get(state.weights)


if __name__ == "__main__":
    out, mesh, kind = sys.argv[1:]
    data, fsdp = (int(word) for word in mesh.split("x"))
    configs = {"everything": lambda: CONFIG, "few": with_few_weights, "adapters": lambda: with_adapters(out)}
    losses, weights = train(configs[kind](), data, fsdp)
    np.savez(f"{out}/{mesh}.npz", losses=losses, **weights)
