"""The programs of a session are few, and after `warm_up` no prompt compiles another one."""

import re
import threading

import jax
import numpy as np
import pytest

from sam2_3dmed_jax import Prompt, VolumePredictor, new_model
from sam2_3dmed_jax.inference import block_lengths, shape_buckets
from sam2_3dmed_jax.inference import session_programs as session_programs_module
from sam2_3dmed_jax.inference.session_programs import SessionProgram, prepared_meanwhile, session_programs, warm_up
from sam2_3dmed_jax.model.checkpoint import assemble, with_compute_dtype, with_memory_selection
from sam2_3dmed_jax.sam2.parameters import split
from tests.helpers.counted_compilations import counted_compilations

SIZE = 64
MOST_PROGRAMS = 8


def click(index: int, object_id: int = 1, clicks: int = 1) -> Prompt:
    return Prompt(object_id, index, [(10.0 + n, 20.0) for n in range(clicks)], [1] * clicks)


def mask(index: int, object_id: int = 1) -> Prompt:
    drawn = np.zeros((SIZE, SIZE), bool)
    drawn[20:40, 20:40] = True
    return Prompt(object_id, index, mask=drawn)


def slices(depth: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(depth, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize("order", ["sequential", "independent"])
def test_after_warm_up_no_prompt_and_no_correction_compiles_a_program(order):
    jax.clear_caches()
    predictor, reported = VolumePredictor(new_model("nano", SIZE, with_3dmed=True), order), []
    programs = session_programs(predictor)
    assert len(programs) <= MOST_PROGRAMS
    with counted_compilations() as compiled:
        warm_up(predictor, lambda what, done, total, note="": reported.append((done, total)))
    assert reported == [(done + 1, len(programs)) for done in range(len(programs))]
    assert len(compiled) == len(programs), compiled
    with counted_compilations() as compiled:
        session = predictor.start(slices(5))
        session.add([click(2)])
        session.preview()
        session.result()
        session.add([click(2, clicks=3), click(4), mask(1, 2), Prompt(3, 0, box=(5, 5, 30, 30))])
        session.preview()
        session.result()
        many = predictor.start(slices(40))
        many.add([click(index, clicks=1 + index % 29) for index in range(31)])
        many.add([click(3, object_id) for object_id in range(2, 9)])
        many.result()
        many.add([click(5), click(35)])
        many.result()
        predictor.predict(slices(512), [click(500)])
    assert compiled == []


def test_a_gpu_has_as_few_programs_for_an_interactive_session(monkeypatch):
    monkeypatch.setattr(shape_buckets, "object_rows", lambda: (1, 4, 8))
    monkeypatch.setattr("sam2_3dmed_jax.inference.session_programs.object_rows", lambda: (1, 4, 8))
    monkeypatch.setattr(block_lengths, "padding_is_computed", lambda: True)
    predictor = VolumePredictor(new_model("nano", SIZE))
    assert len(session_programs(predictor, block=4)) == MOST_PROGRAMS


def test_a_rule_that_remembers_one_by_one_has_its_program_compiled_too():
    predictor = VolumePredictor(with_memory_selection(new_model("nano", SIZE), "self-sorting"))
    warm_up(predictor)
    with counted_compilations() as compiled:
        session = predictor.start(slices(5))
        session.add([click(2)])
        session.result()
        session.add([click(4), click(3)])
        session.result()
    assert compiled == []


PREDICTED = ["encode_block", "propagate_block", "segment_from_points"]


def test_a_prediction_compiles_each_program_once_in_another_thread_than_encoding(monkeypatch):
    jax.clear_caches()
    predictor = VolumePredictor(new_model("nano", SIZE))
    threads = []
    propagate = session_programs_module.propagate_block
    monkeypatch.setattr(
        session_programs_module,
        "propagate_block",
        lambda *arguments: threads.append(threading.current_thread().name) or propagate(*arguments),
    )
    with counted_compilations() as compiled:
        predictor.predict(slices(5), [click(2)])
    assert sorted(compiled) == [f"jit({name})" for name in PREDICTED]
    assert threads == ["compilation_0"]
    with counted_compilations() as compiled:
        predictor.predict(slices(7), [click(3), click(1, 2)])
    assert compiled == [] and len(threads) == 1
    with counted_compilations() as compiled:
        predictor.predict(slices(5), [mask(1)])
    assert compiled == ["jit(segment_from_masks)"]


def test_the_thread_computes_on_the_default_device_of_its_caller(monkeypatch):
    predictor, devices = VolumePredictor(new_model("nano", SIZE)), []
    program = SessionProgram("program", lambda: devices.append(jax.config.jax_default_device))
    monkeypatch.setattr(session_programs_module, "_programs_after_encoding", lambda *_: [program])
    device = jax.devices("cpu")[0]
    with jax.default_device(device), prepared_meanwhile(predictor, [click(2)], 5):
        pass
    assert devices == [device]


def test_an_error_of_the_encoding_or_of_a_program_ends_the_prediction():
    predictor = VolumePredictor(new_model("nano", SIZE))

    def cancel(what: str, done: int, total: int, note: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predictor.predict(slices(5), [click(2)], cancel)
    predictor.weights = {name: value for name, value in predictor.weights.items() if "mask_decoder" not in name}
    predictor.warm.clear()
    with pytest.raises((KeyError, ValueError)):
        predictor.predict(slices(5), [click(2)])


def test_weights_of_products_and_norms_are_arguments_in_the_compute_dtype_and_results_are_the_same():
    model = new_model("nano", SIZE)
    model = assemble(split(model)[1], with_compute_dtype(model.info, "bfloat16"))
    predictor = VolumePredictor(model)
    kernels = {name: value.dtype for name, value in predictor.weights.items() if name.endswith(".kernel")}
    wide = {name for name, dtype in kernels.items() if dtype == "float32"}
    assert all(re.search(r"image_encoder\.neck|conv_s[01]|obj_ptr_tpos_proj", name) for name in wide)
    assert len(wide) < len(kernels) / 10
    assert not any(value.committed for value in predictor.weights.values())
    expected = VolumePredictor(model)
    expected.weights = split(model)[1]
    found, prompts = predictor.predict(slices(5), [click(2)]), [click(2)]
    np.testing.assert_array_equal(found.mask_logits, expected.predict(slices(5), prompts).mask_logits)


def test_results_do_not_depend_on_the_room_for_prompted_slices_and_tokens(monkeypatch):
    predictor, prompts = VolumePredictor(new_model("nano", SIZE)), [click(2, clicks=2), click(4)]
    expected = predictor.predict(slices(6), prompts)
    monkeypatch.setattr(shape_buckets, "PROMPTED", (16,))
    monkeypatch.setattr("sam2_3dmed_jax.inference.object_batches.PROMPTED", (16,))
    monkeypatch.setattr(shape_buckets, "TOKENS", 5)
    found = predictor.predict(slices(6), prompts)
    # Programs of other shapes sum float32 in other orders.
    np.testing.assert_allclose(found.mask_logits, expected.mask_logits, atol=2e-4)
