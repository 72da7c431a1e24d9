"""The table of losses: what follows from an entry, and errors where one is missing."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import pytest

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, LossConfig, ModelConfig, SrppConfig, TrainingConfig
from sam2_3dmed_jax.training import losses, methods
from sam2_3dmed_jax.training.losses import LOGGED_ONLY, LOSSES, Loss, Term, used_losses
from sam2_3dmed_jax.training.methods.clips import ClipMethod
from sam2_3dmed_jax.training.objective import check_loss_weights, log_columns, objective
from sam2_3dmed_jax.training.setup import abstract_run, set_up
from sam2_3dmed_jax.training.sharding import make_mesh
from tests.helpers.quick import QUICK
from tests.helpers.random_clips import random_batch

CONFIG = ExperimentConfig(
    model=ModelConfig("nano", 64, srpp=False, bd=False, slice_position=SrppConfig(dim=16, layers=1)),
    data=DataConfig(slices=2),
    # Only the mask decoder trains, which takes a third of the time to compile.
    training=TrainingConfig(batch_size=2, warmup_steps=1, frozen=(r"^(?!sam_mask_decoder\.(?!conv_s))",)),
)
NO_WEIGHTS = LossConfig(bce=0.0, dice=0.0, iou=0.0, object_score=0.0)


@dataclass(frozen=True)
class DummyLossConfig(LossConfig):
    dummy: float = 3.0


def dummy(x, model):
    """Mean absolute logit of the chosen masks."""
    chosen = x.slices.chosen
    return Term(jnp.abs(chosen).mean((-2, -1)).sum(), jnp.asarray(chosen.shape[0] * chosen.shape[1], jnp.float32))


def add_loss(monkeypatch, *entries):
    monkeypatch.setitem(LOSSES, "sam2", (*LOSSES["sam2"], *entries))


def test_the_columns_of_the_log_follow_from_the_table():
    of_clips = "loss_seg loss_srpp loss_bd loss_bce loss_dice loss_iou loss_object_score dice"
    assert log_columns(used_losses(LOSSES["sam2"], LossConfig())) == tuple(of_clips.split())
    assert log_columns(LOSSES["sam2"]) == tuple(of_clips.replace("loss_dice", "loss_focal loss_dice").split())
    assert log_columns(LOSSES["unet"]) == ("loss_seg", "loss_ce", "loss_dice", "dice")


def test_a_new_loss_of_one_function_and_one_entry_is_trained_and_logged(monkeypatch):
    add_loss(monkeypatch, Loss("loss_dummy", dummy, weight=2.0), Loss("dummy", dummy, weight=LOGGED_ONLY))
    setup = set_up(CONFIG.replace(training=replace(CONFIG.training, loss=NO_WEIGHTS)))
    batch = jax.device_put(random_batch(CONFIG, 0), setup.sharding)
    step = setup.step.lower(setup.state, setup.frozen, batch).compile(QUICK)
    _, metrics = step(setup.state, setup.frozen, batch)
    assert float(metrics["loss"]) == pytest.approx(2 * float(metrics["loss_dummy"])) and metrics["loss"] > 0
    assert metrics["gradient_norm"] > 0  # of this loss alone
    assert metrics["dummy"] == metrics["loss_dummy"]
    columns = log_columns(methods.method_of(CONFIG.model).losses)
    assert columns.index("loss_dummy") == columns.index("loss_object_score") + 1 and columns[-1] == "dummy"


def test_a_new_loss_may_have_its_weight_in_the_config(monkeypatch):
    add_loss(monkeypatch, Loss("loss_dummy", dummy, weight="dummy", in_segmentation=False))
    check_loss_weights(DummyLossConfig())
    terms = {
        "loss_bce": Term(jnp.asarray(4.0), jnp.asarray(2.0)),
        "loss_dummy": Term(jnp.asarray(5.0), jnp.asarray(1.0)),
    }
    total, values = objective(terms, LOSSES["sam2"], DummyLossConfig(), jnp.asarray(0))
    assert float(total) == 2 + 3 * 5 and float(values["loss_seg"]) == 2


def test_a_returned_term_without_an_entry_is_an_error_before_training(monkeypatch):
    terms = ClipMethod.terms
    monkeypatch.setattr(
        ClipMethod,
        "terms",
        lambda self, out, batch, weights: {**terms(self, out, batch), "loss_new": terms(self, out, batch)["dice"]},
    )
    run = abstract_run(CONFIG, make_mesh(CONFIG.mesh))
    with pytest.raises(ValueError, match="the model returns loss_new without an entry in LOSSES"):
        run.step.trace(run.state, run.frozen, run.batch)


def test_a_weight_without_a_loss_is_an_error_when_the_step_is_built():
    config = CONFIG.replace(training=replace(CONFIG.training, loss=DummyLossConfig()))
    with pytest.raises(ValueError, match=r"training\.loss: no loss has the weight dummy; add its entry to LOSSES"):
        abstract_run(config, make_mesh(config.mesh))


def test_a_loss_without_its_weight_is_an_error_when_the_step_is_built(monkeypatch):
    add_loss(monkeypatch, Loss("loss_dummy", dummy, weight="dummy"))
    with pytest.raises(ValueError, match="has the weight dummy, which is not a field of LossConfig"):
        abstract_run(CONFIG, make_mesh(CONFIG.mesh))


def test_every_entry_is_computed_for_the_models_that_have_it():
    weighted = replace(CONFIG.training, loss=LossConfig(focal=20.0))
    everything = CONFIG.replace(model=replace(CONFIG.model, srpp=True, bd=True), training=weighted)
    run = abstract_run(everything, make_mesh(CONFIG.mesh))
    metrics = run.step.trace(run.state, run.frozen, run.batch).out_info[1]
    assert {loss.column for loss in losses.LOSSES["sam2"]} <= set(metrics)
