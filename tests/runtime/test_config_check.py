"""Every number of `config.py` has a range, and `train`, `sweep` and `plan` check it before any work."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from sam2_3dmed_jax import config
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import ExperimentConfig, ModelConfig, SrppConfig, SweepSpec, TrainingConfig, UNetConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.sweep.run import read_sweep
from sam2_3dmed_jax.plan.process import plan_experiment
from sam2_3dmed_jax.runtime.config_check import check_config
from sam2_3dmed_jax.runtime.user_files import declared
from sam2_3dmed_jax.sam2.presets import PRESETS
from sam2_3dmed_jax.training.loop import train

CONFIGS = [
    kind
    for _, kind in inspect.getmembers(config, inspect.isclass)
    if dataclasses.is_dataclass(kind) and kind not in (config.Range, config.Regexes)
]
EXPERIMENT = """
from sam2_3dmed_jax.config import *
def get_config():
    return ExperimentConfig(ModelConfig(preset="nano", image_size=64), DataConfig(path="data"))
"""


def has_numbers(kind: Any) -> bool:
    """Whether a type contains int or float."""
    return kind in (int, float) or (get_origin(kind) is not Literal and any(map(has_numbers, get_args(kind))))


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_field_with_numbers_declares_one_range(kind: type):
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        ranges = [mark for mark in declared(kind)[field.name] if isinstance(mark, config.Range)]
        assert len(ranges) == has_numbers(hints[field.name]), f"{kind.__name__}.{field.name}: declare one Range"


@pytest.mark.parametrize("value", [ExperimentConfig(), ExperimentConfig(UNetConfig()), SweepSpec()])
def test_the_defaults_are_accepted(value: ExperimentConfig | SweepSpec):
    check_config(value)


def test_the_presets_are_in_the_ranges_of_their_fields():
    for preset in PRESETS.values():
        for part in (preset, preset.trunk):
            for name, marks in declared(type(part)).items():
                numbers = getattr(part, name)
                for number in numbers if isinstance(numbers, tuple) else (numbers,):
                    assert all(mark.low <= number <= mark.high for mark in marks if number is not None), name


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--data.clips.objects", "0", "data.clips.objects is 0, expected a number from 1 to 255"),
        ("--data.clips.max_stride", "0", "data.clips.max_stride is 0, expected a number from 1 to 65535"),
        ("--data.augmentation.noise", "nan", "data.augmentation.noise is NaN, expected a number from 0 to 1"),
        ("--data.augmentation.scaling", "-0.5", "data.augmentation.scaling is -0.5, expected a number from 0 to 0.9"),
        ("--training.seed", "-1", "training.seed is -1, expected a number from 0 to 4294967295"),
        ("--training.frozen", "[", "training.frozen is ['['], expected regular expressions (unterminated"),
        ("--training.learning_rate", "inf", "training.learning_rate is Infinity, expected a number from 0 to 1000"),
    ],
)
def test_train_refuses_a_field_out_of_its_range_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, message: str
):
    (tmp_path / "e.py").write_text(EXPERIMENT)
    code = main(["train", str(tmp_path / "e.py"), "--out", str(tmp_path / "run"), f"{flag}={value}"])
    lines = capsys.readouterr().err.splitlines()
    assert (code, lines) == (2, [lines[0]]) and lines[0].startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (TrainingConfig(steps="5"), 'training.steps is "5", expected a whole number'),
        (TrainingConfig(frozen=(5,)), r"training.frozen[0] is 5, expected a text"),
        (TrainingConfig(ema=True), "training.ema is true, expected a number"),
        (TrainingConfig(loss=5), "training.loss is 5, expected an object"),
        (TrainingConfig(adam_betas=(0.9, 1.0)), "training.adam_betas is [0.9, 1.0], expected numbers from 0 to"),
        (TrainingConfig(checkpoint_every={1, 2}), "training has a value of a wrong type (set is not"),
    ],
)
def test_an_experiment_file_with_a_value_of_another_type_is_refused(changed: TrainingConfig, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(ExperimentConfig(training=changed))


def test_training_sweeping_and_planning_from_python_check_the_fields_first(tmp_path: Path):
    huge = ExperimentConfig(ModelConfig("nano", 64, slice_position=SrppConfig(layers=2**31)))
    message = "model.slice_position.layers is 2147483648, expected a number from 1 to 64"
    with pytest.raises(UserError, match=message):
        train(huge, tmp_path / "run")
    with pytest.raises(UserError, match=message):
        plan_experiment(huge, "v5e:1x1")
    with pytest.raises(UserError, match=re.escape("threshold is [inf], expected numbers from -1000 to 1000")):
        read_sweep(SweepSpec(threshold=(float("inf"),)))
    assert not (tmp_path / "run").exists()
