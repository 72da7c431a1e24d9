"""The clips of the validation in a run."""

from dataclasses import replace

import numpy as np

from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.data.warp import IDENTITY
from sam2_3dmed_jax.training.dataset import open_case_reader
from sam2_3dmed_jax.training.methods import method_of
from sam2_3dmed_jax.training.validation import fixed_batches


def test_validation_clips_are_unaugmented_and_the_same_for_every_seed(small_config):
    reader = open_case_reader(read_prepared(small_config.data.path), small_config)
    cases, training = reader.dataset.cases[:2], replace(small_config.training, validation_clips=3)
    one, two = (
        fixed_batches(
            method_of(small_config.model), reader, cases, small_config.data, replace(training, seed=seed), 0, 1
        )[:]
        for seed in (0, 1)
    )
    assert len(one) == 2  # two clips each
    for i in range(2):
        for name, value in one[i].items():
            np.testing.assert_array_equal(value, two[i][name])
        assert (one[i]["point_labels"][..., 0] == 1).all()  # a click
    raw = {reader.read(case, [d])[0][0].tobytes() for case in cases for d in range(case.shape[0])}
    assert one[0]["grey"][0, 0].tobytes() in raw
    assert (one[0]["inverse_map"] == IDENTITY).all() and (one[0]["intensity"] == (1, 0, 1, 0)).all()
