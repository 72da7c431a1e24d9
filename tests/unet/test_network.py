"""The U-Net: shapes at each resolution, and a gradient step that lowers the loss."""

import jax
import jax.numpy as jnp
import numpy as np

from sam2_3dmed_jax.config import LossConfig, UNetConfig
from sam2_3dmed_jax.model.build import abstract_model, random_weights
from sam2_3dmed_jax.sam2.parameters import merge
from sam2_3dmed_jax.training.methods import method_of
from sam2_3dmed_jax.training.objective import objective
from tests.helpers.quick import QUICK

NET = UNetConfig(patch=(4, 16, 16), spacing=(5.0, 1.0, 1.0), features=4, blocks=(1, 1, 2), classes=(1, 3))
MODEL = NET


def test_the_decoder_has_logits_of_background_and_classes_at_each_resolution():
    graphdef, weights = abstract_model(MODEL)
    out = jax.eval_shape(
        lambda weights, x: merge(graphdef, weights).deep_supervision_logits(x),
        weights,
        jax.ShapeDtypeStruct((2, 4, 16, 16), "f4"),
    )
    assert [x.shape for x in out] == [(2, 4, 16, 16, 3), (2, 4, 8, 8, 3)]


def test_a_gradient_step_lowers_the_loss_and_only_the_coarsest_head_has_no_gradient():
    method, (graphdef, _) = method_of(MODEL), abstract_model(MODEL)
    weights = random_weights(MODEL, 0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2, 4, 16, 16)).astype(np.uint8)
    batch = {"image": jnp.asarray(labels / 2 + rng.normal(0, 0.1, labels.shape), jnp.float32), "labels": labels}

    def loss(weights):
        terms = method.terms(method.forward(merge(graphdef, weights), batch), batch)
        return objective(terms, method.losses, LossConfig(), 0)[0]

    step = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
    before, gradient = step(weights)
    after, _ = step({path: x - 0.02 * gradient[path] for path, x in weights.items()})
    assert after < before
    without_gradient = {path for path, g in gradient.items() if not jnp.abs(g).max() > 0}
    assert without_gradient == {f"decoder.0.head.{name}" for name in ("kernel", "bias")}
