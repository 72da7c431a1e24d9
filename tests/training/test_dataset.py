"""The cases of a run."""

import numpy as np
import pytest

from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.training.dataset import split_cases
from tests.helpers.prepared_files import write_prepared

VALUES = np.random.default_rng(0).integers(-100, 200, (3, 8, 8)).astype(np.int16)


@pytest.mark.parametrize(("keep_empty", "train"), [(False, ["a"]), (True, ["a", "b", "c"])])
def test_kept_cases_without_the_classes_are_trained_on_but_not_validated_on(tmp_path, keep_empty, train):
    labels = {"a": 1, "b": 0, "c": 2, "d": 1, "e": 0}  # the value of all voxels of a case
    cases = {name: (VALUES, np.full(VALUES.shape, value, np.uint8)) for name, value in labels.items()}
    dataset = write_prepared(tmp_path / "d", cases, {1: "x", 2: "y"}, keep_empty=keep_empty)
    config = ExperimentConfig(ModelConfig("nano", 64), data=DataConfig(path=str(tmp_path / "d"), classes=(1,)))
    reader = CaseReader(dataset, config.data, 64)
    found = split_cases(reader, config, Split(("a", "b", "c"), ("d", "e"), ()))
    assert [case.id for case in found.train] == train and [case.id for case in found.inner] == ["d"]
    with pytest.raises(UserError, match="no training case holds a class to segment"):
        split_cases(reader, config, Split(("b", "c"), ("d",), ()))
