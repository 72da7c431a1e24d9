"""Training on clips that grow: one compilation for each length, and the same result after an interruption."""

from dataclasses import replace

import numpy as np
import pytest

from sam2_3dmed_jax import load_model
from sam2_3dmed_jax.data.case_reader import StoredSlices
from sam2_3dmed_jax.sam2.parameters import split
from sam2_3dmed_jax.training.compilation import StepByLength, compile_step
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.setup import set_up
from tests.helpers.quick import ONLY_DECODER
from tests.helpers.run_files import rows
from tests.training.conftest import Small


@pytest.mark.slow  # compiles the step twice
def test_a_run_of_growing_clips_compiles_once_per_length_and_resumes_to_the_same_bits(one_step, tmp_path):
    config = one_step.replace(
        data=replace(one_step.data, slices=3, slices_schedule=((0, 2), (2, 3))),
        training=replace(
            one_step.training,
            steps=4,
            log_every=1,
            checkpoint_every=1,
            images_every=0,
            frozen=ONLY_DECODER,
        ),
    )
    setup = set_up(config)
    jitted = setup.step
    compiled = compile_step(setup, StoredSlices(48, 48, resized=True))
    assert isinstance(compiled.step, StepByLength) and set(compiled.step._steps) == {2, 3}
    small = Small(compiled.config, compiled)

    class StopError(Exception):
        pass

    def stop(what, done, total, note=""):
        if done == 3:
            raise StopError

    small.train(tmp_path / "whole")
    with pytest.raises(StopError):
        small.train(tmp_path / "run", stop)
    small.train(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole") and len(rows(tmp_path / "run")) == 4
    expected = split(load_model(tmp_path / "whole" / "final"))[1]
    for path, value in split(load_model(tmp_path / "run" / "final"))[1].items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)

    # Without compilation before the run, as on accelerators, the jitted step compiles each length once.
    other = replace(small.setup(), step=jitted)
    train(other.config, tmp_path / "jitted", setup=other)
    assert jitted._cache_size() == 2
    assert rows(tmp_path / "jitted") == rows(tmp_path / "whole")
