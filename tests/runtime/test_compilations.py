"""Announcements of long compilations, from the events that JAX reports."""

import json

import jax
import pytest

from sam2_3dmed_jax.runtime import compilation_cache, compilations


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, tmp_path) -> compilations._Watch:
    """A watch of its own that announces each compilation at once, and an empty cache folder."""
    monkeypatch.setenv("SAM2_3DMED_CACHE", str(tmp_path))
    compilation_cache.folder().mkdir(parents=True)
    monkeypatch.setattr(compilations, "PATIENCE", 0.0)
    watch = compilations._Watch()
    monkeypatch.setattr(compilations, "_watch", watch)
    return watch


def request(watch: compilations._Watch, lowering: float = 0.5) -> compilations._Compilation:
    """Report that a program was lowered, and that its executable is needed now."""
    watch.on_duration(compilations._LOWERED, lowering, fun_name="jit(encode_block)")
    watch.on_event(compilations._REQUESTED)
    (compilation,) = watch.running.values()
    return compilation


def test_the_estimate_follows_the_last_compilation_of_a_program_of_this_name(watch, capsys: pytest.CaptureFixture[str]):
    (compilation_cache.folder() / compilations.RATIOS).write_text(json.dumps({"encode_block": 60.0}))
    request(watch).announcement.join()
    assert capsys.readouterr().err == "compiling encode_block (about 30 s, cached afterwards)\n"


def test_a_compilation_teaches_the_next_estimate_and_a_read_from_the_cache_does_not(watch):
    request(watch, lowering=1e-4)
    watch.on_event(compilations._HIT)
    watch.on_duration(compilations._READY, 0.1, fun_name="jit(encode_block)")
    assert compilations._ratios() == {}
    request(watch, lowering=1e-4)
    watch.on_duration(compilations._READY, 0.1, fun_name="jit(encode_block)")
    assert compilations._ratios().keys() == {"encode_block"}


def test_the_compilation_in_progress_is_known_until_it_ends(watch):
    request(watch)
    assert len(compilations.in_progress()) == 1
    watch.on_duration(compilations._READY, 0.1, fun_name="jit(encode_block)")
    assert not compilations.in_progress()


def test_jax_reports_the_name_of_a_program_before_it_compiles(watch, monkeypatch: pytest.MonkeyPatch):
    def tripled(x: jax.Array) -> jax.Array:
        return 3 * x

    names: list[str] = []
    monkeypatch.setattr(watch, "begin", names.append)
    jax.monitoring.register_event_listener(watch.on_event)
    jax.monitoring.register_event_duration_secs_listener(watch.on_duration)
    try:
        jax.jit(tripled).lower(jax.ShapeDtypeStruct((7,), "float32")).compile()
    finally:
        jax.monitoring.unregister_event_listener(watch.on_event)
        jax.monitoring.unregister_event_duration_listener(watch.on_duration)
    assert names == ["tripled"]
