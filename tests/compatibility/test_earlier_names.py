"""Field names of version 0.1 are accepted in experiment files, flags and records until version 0.3."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from sam2_3dmed_jax.commands.experiment_files import read_experiment
from sam2_3dmed_jax.config import (
    EARLIER_NAMES,
    DataConfig,
    EarlierNameWarning,
    ExperimentConfig,
    ModelConfig,
    PromptConfig,
    SplitConfig,
    SrppConfig,
    UNetConfig,
    upgrade_record,
)
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.training.run_folder import claim_folder, record

EXPERIMENT = """
from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, ModelConfig, UNetConfig

def get_config():
    return ExperimentConfig({model}, DataConfig({data}))
"""


@pytest.fixture
def experiment(tmp_path: Path):
    def write(model: str = "ModelConfig('nano', 64)", data: str = "") -> str:
        file = tmp_path / "experiment.py"
        file.write_text(EXPERIMENT.format(model=model, data=data))
        return str(file)

    return write


def at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("path", EARLIER_NAMES.values())
def test_every_replacement_of_an_earlier_name_is_a_field(path: str):
    configs = [ExperimentConfig(), ExperimentConfig(model=UNetConfig())]
    values = [at(config, path) for config in configs if hasattr(config.model, path.split(".")[1]) or path[0] == "d"]
    assert values and not dataclasses.is_dataclass(values[0])


def test_an_earlier_flag_sets_the_field_and_warns_once_in_one_line(experiment, capsys):
    flags = ["--data.box", "0.7", "--data.split=80/20", "--data.noise", "0", "--data.box", "0.6"]
    config = read_experiment(experiment(), flags)
    assert config.data.prompts.box_prompt_probability == 0.6 and config.data.split.method == "80/20"
    assert config.data.augmentation.noise == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: --data.box is now --data.prompts.box_prompt_probability",
        "warning: --data.split is now --data.split.method",
        "warning: --data.noise is now --data.augmentation.noise",
    ]


def test_todays_names_do_not_warn(experiment, capsys):
    flags = ["--data.prompts.box_prompt_probability", "0.7", "--data.split.folds", "3", "--data.fold", "1"]
    assert read_experiment(experiment(), flags).data.split.folds == 3
    assert capsys.readouterr().err == ""


def test_an_earlier_keyword_in_an_experiment_file_sets_the_field_and_warns(experiment, capsys):
    config = read_experiment(experiment(data="box=0.1, split='80/20', split_seed=4, rotation=0.0"))
    assert config.data.prompts == PromptConfig(box_prompt_probability=0.1)
    assert config.data.split == SplitConfig(method="80/20", seed=4) and config.data.augmentation.rotation == 0
    assert "warning: data.split_seed is now data.split.seed" in capsys.readouterr().err.splitlines()


def test_an_earlier_keyword_keeps_the_other_fields_of_its_group():
    data = DataConfig(prompts=PromptConfig(0.4, 0.3))
    with pytest.warns(EarlierNameWarning, match=r"data\.box is now data\.prompts\.box_prompt_probability"):
        changed = dataclasses.replace(data, box=0.1)
    assert changed == DataConfig(prompts=PromptConfig(0.1, 0.3))
    with pytest.warns(EarlierNameWarning):
        assert SrppConfig(told_order=True) == SrppConfig(order_embedding=True)


def test_an_unknown_keyword_is_still_an_error():
    with pytest.raises(TypeError, match="boxes"):
        DataConfig(boxes=0.1)
    with pytest.raises(TypeError):
        DataConfig("data", (1,), 6, 2)  # the fourth field of version 0.1 was `objects`


def test_the_earlier_config_of_a_unet_becomes_todays(experiment, capsys):
    config = read_experiment(
        experiment("ModelConfig(kind='unet', unet=UNetConfig(features=8), compute_dtype='bfloat16')"),
        ["--model.unet.patch", "8", "16", "16"],
    )
    assert config.model == UNetConfig(patch=(8, 16, 16), features=8, compute_dtype="bfloat16")
    assert "warning: --model.unet.patch is now --model.patch" in capsys.readouterr().err.splitlines()
    config = read_experiment(experiment("ModelConfig(init='CKPT')"), ["--model.kind", "unet"])
    assert config.model == UNetConfig(init="CKPT")


# Fields of data that version 0.1 had under no name.
NEW_FIELDS = (
    ("clips", "context_before_probability"),
    ("prompts", "negative_point_probability"),
    ("prompts", "absent_object_probability"),
    ("clips", "zoom_probability"),
    ("prompts", "mask_prompt_probability"),
    ("prompts", "prompted_slices"),
    ("prompts", "corrections"),
)


def earlier_record(config: ExperimentConfig) -> dict[str, Any]:
    """The record that version 0.1 would have written; it had the fields of both kinds of model."""
    new = record(config)
    unet = record(ExperimentConfig(model=UNetConfig()))["model"]
    sam2 = record(ExperimentConfig())["model"]
    model = new["model"]
    earlier_model = {**sam2, **{name: value for name, value in model.items() if name in sam2}}
    earlier_model["unet"] = {**unet, **(model if model["kind"] == "unet" else {})}
    for name in ("compute_dtype", "init", "kind"):
        del earlier_model["unet"][name]
    srpp = earlier_model["slice_position"]
    srpp["told_order"] = srpp.pop("order_embedding")
    data = {name: value for name, value in new["data"].items() if not isinstance(value, dict) or name[:3] == "pre"}
    for path, current in EARLIER_NAMES.items():
        if path.startswith("data."):
            _, group, name = current.split(".")
            data[path.removeprefix("data.")] = new["data"][group][name]
    return {**new, "model": earlier_model, "data": data}


@pytest.mark.parametrize(
    "config",
    [
        ExperimentConfig(ModelConfig("nano", 64, slice_position=SrppConfig(window=6, order_embedding=True))),
        ExperimentConfig(data=DataConfig(split=SplitConfig(method="80/20", seed=3), prompts=PromptConfig(0.9, 0.1))),
        ExperimentConfig(UNetConfig(features=8, classes=(1, 2), init="CKPT")),
    ],
)
def test_a_run_with_an_earlier_record_is_the_same_run(tmp_path: Path, config: ExperimentConfig):
    earlier = earlier_record(config)
    assert upgrade_record(record(config)) == record(config)
    expected = record(config)
    for group, name in NEW_FIELDS:
        del expected["data"][group][name]
    assert upgrade_record(earlier) == expected
    file = tmp_path / "run" / "config.json"
    file.parent.mkdir()
    for name in ("learning_rate_floor", "adam_betas"):  # fields that version 0.1 did not have
        del earlier["training"][name]
    file.write_text(json.dumps(earlier))
    other = dataclasses.replace(config.data, prompts=PromptConfig(0.55))
    with pytest.raises(UserError, match=r"other settings \(data\.prompts\.box_prompt_probability"):
        claim_folder(tmp_path / "run", config.replace(data=other))
    claim_folder(tmp_path / "run", config)
    assert json.loads(file.read_text()) == record(config)


def test_a_run_of_the_other_kind_of_model_is_refused(tmp_path: Path):
    claim_folder(tmp_path / "run", ExperimentConfig(UNetConfig(classes=(1,))))
    with pytest.raises(UserError, match=r"other settings \(model\.kind\)"):
        claim_folder(tmp_path / "run", ExperimentConfig())


def test_other_warnings_of_an_experiment_file_are_kept(tmp_path: Path):
    file = tmp_path / "experiment.py"
    file.write_text(
        "import warnings\nfrom sam2_3dmed_jax.config import ExperimentConfig\n"
        "def get_config():\n    warnings.warn('of the user')\n    return ExperimentConfig()\n"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_experiment(str(file))
    assert [str(warning.message) for warning in caught] == ["of the user"]
