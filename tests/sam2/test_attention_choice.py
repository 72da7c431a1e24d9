"""The choice of attention on GPUs: its table, the self-check of the kernel, and where the choice takes effect."""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_3dmed_jax.plan.target import target_chip
from sam2_3dmed_jax.runtime.chips import CHIPS
from sam2_3dmed_jax.sam2 import attention, attention_choice, triton_attention, triton_self_check
from sam2_3dmed_jax.sam2.attention_choice import AttentionWarning, force_attention, gpu_attention, target_gpu
from tests.helpers.attention_operands import operands, plain


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose GPU is an H100, in which no self-check has run."""
    monkeypatch.setattr(attention_choice, "local_capability", lambda: (9, 0))
    attention_choice._kernel_fault.cache_clear()
    yield
    attention_choice._kernel_fault.cache_clear()


@pytest.fixture
def interpreted_check(monkeypatch):
    """The self-check in Pallas' interpreter, with one small attention."""
    monkeypatch.setattr(triton_self_check, "SHAPES", ((20, 40, 1, 16, 16),))
    check = triton_self_check.kernel_fault
    monkeypatch.setattr(triton_self_check, "kernel_fault", lambda capability: check(capability, interpret=True))


@pytest.mark.parametrize(
    ("capability", "dtype", "path", "reason"),
    [
        ((8, 0), "bfloat16", "triton", "Pallas-Triton"),
        ((12, 0), "bfloat16", "triton", "Pallas-Triton"),
        ((7, 5), "bfloat16", "wide", "compute capability 7.5 is below 8.0"),
        ((9, 0), "float32", "wide", "not in float32"),
        (None, "bfloat16", "wide", "no NVIDIA GPU"),
    ],
)
def test_the_kernel_is_for_bfloat16_on_ampere_and_later(capability, dtype, path, reason):
    choice = gpu_attention(capability, dtype)
    assert choice.path == path and reason in choice.reason
    assert choice.capability == (capability if path == "triton" else None)


def test_a_jax_without_pallas_triton_computes_in_plain_xla(monkeypatch):
    monkeypatch.setattr(attention_choice, "_has_pallas_triton", lambda: False)
    choice = gpu_attention((9, 0), "bfloat16")
    assert choice.path == "wide" and "no Pallas-Triton" in choice.reason


def test_heads_wider_than_the_kernels_blocks_compute_in_plain_xla():
    choice = gpu_attention((9, 0), "bfloat16", channels=320)
    assert choice.path == "wide" and "320 channels" in choice.reason


def test_a_kernel_that_passes_its_self_check_is_chosen_also_while_tracing(gpu, interpreted_check):
    choices = []

    @jax.jit
    def function(x):
        choices.append(attention_choice.chosen_attention(x.dtype))
        return jax.lax.scan(lambda x, _: (x, choices.append(attention_choice.chosen_attention(x.dtype))), x, length=2)

    function(jnp.zeros((), jnp.bfloat16))
    assert [choice.path for choice in choices] == ["triton"] * 2


@pytest.mark.parametrize("broken", ["wrong", "not a number", "raises"])
def test_a_kernel_that_fails_its_self_check_is_replaced_with_one_warning(monkeypatch, gpu, interpreted_check, broken):
    right = triton_attention.forward

    def forward(*arguments, **settings):
        if broken == "raises":
            raise RuntimeError("out of shared memory\nand more")
        out, logsumexp = right(*arguments, **settings)
        return (out * 1.1 if broken == "wrong" else out * jnp.nan), logsumexp

    monkeypatch.setattr(triton_attention, "forward", forward)
    with pytest.warns(AttentionWarning, match="failed its self-check"):
        choice = attention_choice.chosen_attention("bfloat16")
    assert choice.path == "wide" and "failed its self-check" in choice.reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attention_choice.chosen_attention("bfloat16") == choice


def test_programs_for_another_gpu_do_not_use_the_local_one(gpu):
    with target_gpu((8, 0)):
        assert attention_choice.chosen_attention("bfloat16").capability == (8, 0)
    with target_gpu(None):
        assert attention_choice.chosen_attention("bfloat16").path == "wide"


@pytest.mark.parametrize("path", ["wide", "triton", "blocked"])
def test_a_forced_implementation_computes_the_same_attention(monkeypatch, path):
    monkeypatch.setattr(attention, "MAX_SCORES", 100)
    q, k, v, gradient = operands(20, 24, 1, 16, 16)
    with force_attention(path):
        out, vjp = jax.vjp(jax.jit(attention.attend), q, k, v)
        results = out, *vjp(gradient)
    for result, expected in zip(results, plain(q, k, v, None, gradient), strict=True):
        np.testing.assert_allclose(result, expected, atol=2e-6)


def test_without_a_gpu_the_kernels_are_not_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "sam2_3dmed_jax.sam2.triton_attention", None)  # importing it raises
    monkeypatch.setattr(attention, "MAX_SCORES", 100)
    q, k, v, _ = operands(20, 24, 1, 16, 16, jnp.bfloat16)
    assert jax.jit(attention.attend)(q, k, v).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(1, 4096, 28736, 1, 256, 64), (25, 196, 196, 4, 96, 96)])  # memories, and a window
@pytest.mark.parametrize("chip", ["h100", "a100"])
def test_on_a_gpu_attention_is_one_kernel_forward_and_two_backward(chip, shape):
    b, n, m, heads, d, dv = shape
    arrays = [
        jax.ShapeDtypeStruct(x, jnp.bfloat16)
        for x in ((b, n, heads, d), (b, m, heads, d), (b, m, heads, dv), (b, n, heads, dv))
    ]

    def gradients(q, k, v, valid, gradient):
        out, vjp = jax.vjp(lambda q, k, v: attention.attend(q, k, v, valid), q, k, v)
        return out, vjp(gradient)

    valid = jax.ShapeDtypeStruct((b, m), bool)
    with target_chip(CHIPS[chip]):
        forward = jax.jit(attention.attend).trace(*arrays[:3], valid).lower(lowering_platforms=("cuda",)).as_text()
        both = jax.jit(gradients).trace(*arrays[:3], valid, arrays[3]).lower(lowering_platforms=("cuda",)).as_text()
    assert forward.count("@__gpu$xla.gpu.triton(") == 1 and both.count("@__gpu$xla.gpu.triton(") == 3
    assert "stablehlo.while" not in both
