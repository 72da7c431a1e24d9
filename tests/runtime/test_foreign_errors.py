"""Errors, logs and warnings of foreign libraries become one sentence, and nothing else."""

import asyncio
import gc
import logging
import sys
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import pytest
from safetensors import safe_open

from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.runtime import foreign_errors
from sam2_3dmed_jax.runtime.foreign_errors import LOGGERS, foreign, one_line, quiet


def sentence(reason: str) -> str:
    return f"scan.nii is damaged ({reason}); copy it again"


class PanicError(BaseException):
    """As the panics of libraries in Rust, which are no `Exception`."""


@pytest.mark.parametrize("error", [ValueError("bad\n  magic"), PanicError("bad magic"), SystemExit("bad magic")])
def test_any_error_becomes_the_sentence_with_the_librarys_words_on_one_line(error):
    with pytest.raises(UserError) as caught, foreign("nibabel", sentence):
        raise error
    assert str(caught.value) == "scan.nii is damaged (bad magic); copy it again" and caught.value.__cause__ is error


def test_the_librarys_words_are_cut_and_escaped_and_never_empty():
    words = one_line(ValueError("\x1b[2J\ud800" + "x" * 1000))
    assert len(words) <= 200 and words.startswith("\\x1b[2J\\ud800xxx") and words.endswith("...")
    assert one_line(KeyError()) == "KeyError"
    assert one_line(MemoryError()) == "it does not fit into the free memory"


def test_our_own_mistakes_pass_unchanged():
    mistake = UserError("give another file")
    with pytest.raises(UserError) as caught, foreign("nibabel", sentence):
        raise mistake
    assert caught.value is mistake


def test_ctrl_c_passes_also_if_the_library_turns_it_into_its_own_error():
    with pytest.raises(KeyboardInterrupt), foreign("orbax", sentence):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), foreign("orbax", sentence):
        try:
            raise KeyboardInterrupt
        except BaseException as error:
            raise RuntimeError("the loop was stopped") from error


def test_logs_and_warnings_of_the_library_are_silent_in_the_block_and_as_before_after_it(caplog, recwarn):
    logger = logging.getLogger("nibabel.global")
    with quiet("nibabel"):
        logger.critical("qfac not equal to -1 or 1")
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    assert not caplog.records and not recwarn
    logger.critical("later")
    assert [record.message for record in caplog.records] == ["later"]


def test_our_own_warnings_about_files_are_shown():
    with pytest.warns(FileWarning, match="slices are missing"), quiet("pydicom"):
        warnings.warn("slices are missing", FileWarning, stacklevel=1)


def test_threads_that_leave_in_another_order_restore_the_level():
    logger = logging.getLogger("nibabel.global")
    before, filters = logger.level, list(warnings.filters)
    first, second = threading.Event(), threading.Event()

    def short():
        with quiet("nibabel"):
            first.set()
            second.wait(10)

    thread = threading.Thread(target=short)
    thread.start()
    first.wait(10)
    with quiet("nibabel"):
        second.set()
        thread.join()
        assert not logger.isEnabledFor(logging.CRITICAL)
    assert logger.level == before and list(warnings.filters) == filters


def test_real_libraries_write_nothing_on_stderr(tmp_path, capfd):
    header = nib.Nifti1Header().binaryblock
    with pytest.raises(UserError), foreign("nibabel", sentence):
        nib.Nifti1Header(header[:252] + b"\x09\x00" + header[254:70] + b"x").get_best_affine()
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(UserError), foreign("safetensors", sentence), safe_open(tmp_path / "a.safetensors", "numpy"):
        pass
    assert capfd.readouterr().err == ""
    assert "safetensors" in LOGGERS


def test_coroutines_that_orbax_did_not_begin_are_no_warning_also_after_its_block():
    async def begun_never() -> None: ...

    foreign_errors._drop_errors_of_closed_loops.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet("orbax"):
            pass
        coroutine = begun_never()
        del coroutine
        gc.collect()
    foreign_errors._drop_errors_of_closed_loops.cache_clear()
    assert caught == []


def test_closed_loops_of_orbax_are_not_printed_and_other_errors_of_threads_are(monkeypatch, capsys):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: printed.append(unraisable.exc_value))
    foreign_errors._drop_errors_of_closed_loops.cache_clear()
    with quiet("orbax"):
        pass
    other = RuntimeError("another")
    for error in (RuntimeError("Event loop is closed"), other):
        sys.unraisablehook(SimpleNamespace(exc_type=type(error), exc_value=error))
    assert printed == [other]
    foreign_errors._drop_errors_of_closed_loops.cache_clear()


FAILURES = [
    ("ours", "ours.py", "", True),
    ("ours", "ours.py", "OUT of range", True),
    ("_wrap_awaitable", "ours.py", "a/c/0", False),
    ("_open_and_write", "/venv/orbax/checkpoint/type_handlers.py", "a/c/0", False),
    ("ours", "ours.py", 'OUT_OF_RANGE: Error opening "zarr3" driver: Error reading "it\'s/zarr.json"', False),
    ("ours", "ours.py", 'OUT_OF_RANGE: Error writing "a.bias/c/0" in OCDBT database at local file "x/"', False),
    ("ours", "ours.py", 'INTERNAL: Error writing "a.bias/c/0"', False),
]


@pytest.mark.parametrize(("name", "file", "text", "logged"), FAILURES)
def test_failed_tasks_that_nobody_waits_for_are_logged_unless_they_are_of_tensorstore(name, file, text, logged, caplog):
    with quiet("orbax"):
        pass
    namespace: dict[str, Any] = {}
    exec(compile(f"async def {name}():\n    raise ValueError({text!r})", file, "exec"), namespace)
    loop = asyncio.new_event_loop()
    task = loop.create_task(namespace[name]())
    loop.run_until_complete(asyncio.sleep(0))
    del task
    gc.collect()
    loop.close()
    assert len(caplog.records) == logged


@pytest.mark.parametrize(("text", "logged"), [("ours", True), ("OUT_OF_RANGE: Error writing", False)])
def test_failed_futures_that_nobody_waits_for_are_logged_unless_they_are_of_tensorstore(text, logged, caplog):
    with quiet("orbax"):
        pass
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    future.set_exception(ValueError(text))
    del future
    gc.collect()
    loop.close()
    assert len(caplog.records) == logged
