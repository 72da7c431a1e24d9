"""A run with LoRA, averaged weights, accumulation and rematerialisation: one compiled step for all tests."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sam2_3dmed_jax import new_model, save_model
from sam2_3dmed_jax.config import ExperimentConfig, LoraConfig, UNetConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.model.adapter_file import read_adapters
from sam2_3dmed_jax.model.adapters import effective_weights, is_adapter
from sam2_3dmed_jax.model.checkpoint import read_info, read_weights
from sam2_3dmed_jax.sam2.parameters import digest
from sam2_3dmed_jax.training.dataset import check_data
from sam2_3dmed_jax.training.loop import train
from sam2_3dmed_jax.training.methods import method_of
from sam2_3dmed_jax.training.setup import Setup, abstract_batch, abstract_run, set_up, starting_weights
from sam2_3dmed_jax.training.sharding import make_mesh
from tests.helpers.quick import QUICK
from tests.helpers.run_files import rows
from tests.training.conftest import PHANTOM_SLICES
from weights_conversion.__main__ import main as convert
from weights_conversion.compare import compare_checkpoints

MODULES = (r"trunk\.blocks\.4\.attn\.", "^memory_attention")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that the run starts from."""
    folder = tmp_path_factory.mktemp("weights") / "base"
    save_model(new_model("nano", 64, seed=5), folder)
    return folder


@pytest.fixture(scope="module")
def config(one_step: ExperimentConfig, base: Path) -> ExperimentConfig:
    training = replace(
        one_step.training,
        steps=4,
        checkpoint_every=2,
        log_every=1,
        images_every=0,
        ema=0.5,
        accumulation=2,
        remat_slices="dots",
        learning_rate=1e-2,
        lora=LoraConfig(rank=2, modules=MODULES),
    )
    return one_step.replace(model=replace(one_step.model, init=str(base)), training=training)


def with_training(config: ExperimentConfig, **changes) -> ExperimentConfig:
    return config.replace(training=replace(config.training, **changes))


def trained_paths(config: ExperimentConfig) -> set[str]:
    """What a run would train; nothing is computed or read."""
    return set(abstract_run(config, make_mesh(config.mesh)).state.weights)


@pytest.fixture(scope="module")
def new(config: ExperimentConfig) -> Setup:
    """The setup before its first step; no test gives its state away."""
    return set_up(config)


@dataclass(frozen=True)
class Adapted:
    """The compiled setup, and its finished run."""

    setup: Setup
    run: Path

    def fresh(self) -> Setup:
        return replace(self.setup, state=jax.tree.map(jnp.copy, self.setup.state))


@pytest.fixture(scope="module")
def adapted(new: Setup, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    batch = abstract_batch(new.config, new.sharding, PHANTOM_SLICES)
    setup = replace(new, step=new.step.lower(new.state, new.frozen, batch).compile(QUICK))
    result = Adapted(setup, tmp_path_factory.mktemp("adapted") / "run")
    train(setup.config, result.run, setup=result.fresh())
    return result


def test_only_adapters_train_and_every_other_weight_is_frozen(new, base):
    assert new.state.weights and all(map(is_adapter, new.state.weights))
    assert new.frozen.keys() == read_weights(base).keys()
    assert {path.split(".")[0] for path in new.state.weights} == {"image_encoder", "memory_attention"}


def test_the_effective_weights_of_a_new_run_are_the_loaded_ones(new, base):
    effective = effective_weights(new.weights(new.state), new.config.training.lora.scale)
    loaded = read_weights(base)
    assert effective.keys() == loaded.keys()
    for path, value in loaded.items():
        np.testing.assert_array_equal(effective[path], value, err_msg=path)


def test_an_abstract_run_with_adapters_has_the_arguments_of_the_real_one(new, config):
    run = abstract_run(config, make_mesh(config.mesh))
    expected, actual = ((tree.state, tree.frozen) for tree in (run, new))
    for abstract, array in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        assert (abstract.shape, abstract.dtype, abstract.sharding) == (array.shape, array.dtype, array.sharding)
    assert jax.tree.structure(expected) == jax.tree.structure(actual)


@pytest.mark.slow
def test_steps_on_one_batch_change_all_adapters_and_lower_the_loss(adapted):
    setup = adapted.fresh()
    reader, cases = check_data(setup.config)
    batches = method_of(setup.config.model).batches(reader, cases, setup.config.data, 2, 0, 0, 1, None)
    batch = jax.device_put(batches[0], setup.sharding)
    before, state, losses = jax.device_get(setup.state.weights), setup.state, []
    for _ in range(4):
        state, metrics = setup.step(state, setup.frozen, batch)
        losses.append(float(metrics["loss"]))
    assert losses[1] == losses[0]  # the learning rate of the first step is 0
    assert losses[-1] < losses[0]
    unchanged = [path for path, value in state.weights.items() if np.array_equal(value, before[path])]
    assert not unchanged


@pytest.mark.slow
def test_a_run_resumes_to_the_bit(adapted, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "split.json", "data.json", "log.csv"):
        shutil.copy(adapted.run / name, run / name)
    shutil.copytree(adapted.run / "checkpoints" / "2", run / "checkpoints" / "2")
    train(adapted.setup.config, run, setup=adapted.fresh())
    assert rows(run) == rows(adapted.run) and len(rows(run)) == 4
    expected = read_weights(adapted.run / "final")
    for path, value in read_weights(run / "final").items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)
    stored = (load_file(folder / "adapters" / "final.safetensors") for folder in (run, adapted.run))
    jax.tree.map(np.testing.assert_array_equal, *stored)


@pytest.mark.slow
def test_the_result_differs_from_the_loaded_weights_in_the_adapted_kernels_alone(adapted, base):
    loaded, final = read_weights(base), read_weights(adapted.run / "final")
    changed = {path for path, value in loaded.items() if not np.array_equal(final[path], value)}
    kernels = {path.replace("lora_a", "kernel") for path in adapted.setup.state.weights if path.endswith("lora_a")}
    assert final.keys() == loaded.keys() and changed == kernels


@pytest.mark.slow
def test_the_adapters_alone_name_their_weights_by_hash_and_are_small(adapted, base):
    file = adapted.run / "adapters" / "final.safetensors"
    stored = read_adapters(file)
    assert stored.base == digest(read_weights(base)) and stored.base_name == str(base)
    assert stored.tensors.keys() == adapted.setup.state.weights.keys()
    numbers = sum(value.nbytes for value in stored.tensors.values())
    assert numbers < file.stat().st_size < numbers + 20_000  # and names and settings
    assert stored.info == read_info(adapted.run / "final")


@pytest.mark.slow
def test_adapters_merged_by_convert_are_the_result_of_the_run_to_the_bit(adapted, base, tmp_path):
    file = str(adapted.run / "adapters" / "final.safetensors")
    assert convert(["convert", str(base), str(tmp_path / "merged"), "--adapters", file]) == 0
    assert compare_checkpoints(tmp_path / "merged", adapted.run / "final").equal
    record = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert record["provenance"]["adapters"]["file"] == "final.safetensors"
    assert read_info(tmp_path / "merged") == read_info(adapted.run / "final")


@pytest.mark.slow
def test_adapters_merge_onto_the_same_weights_in_another_layout(adapted, base, tmp_path):
    file = str(adapted.run / "adapters" / "final.safetensors")
    meta, merged = tmp_path / "base.safetensors", tmp_path / "merged.safetensors"
    assert convert(["convert", str(base), str(meta), "--to", "meta"]) == 0
    assert convert(["convert", str(meta), str(merged), "--to", "meta", "--adapters", file, "--model", "nano"]) == 0
    assert compare_checkpoints(merged, adapted.run / "final").equal


@pytest.mark.slow
def test_a_merged_checkpoint_converts_to_meta_and_back_to_the_bit(adapted, tmp_path):
    meta, native = tmp_path / "meta.safetensors", tmp_path / "native"
    assert convert(["convert", str(adapted.run / "final"), str(meta), "--to", "meta"]) == 0
    assert convert(["convert", str(meta), str(native), "--model", "nano"]) == 0
    assert compare_checkpoints(native, adapted.run / "final").equal


@pytest.mark.slow
def test_adapters_of_other_weights_are_refused_and_nothing_is_written(adapted, base, tmp_path, capsys):
    other = tmp_path / "other"
    save_model(new_model("nano", 64, seed=6), other)
    file = str(adapted.run / "adapters" / "final.safetensors")
    assert convert(["convert", str(other), str(tmp_path / "merged"), "--adapters", file]) == 2
    error = capsys.readouterr().err
    assert "these adapters belong to the weights" in error and digest(read_weights(base))[:12] in error
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_a_file_of_adapters_is_not_taken_for_a_checkpoint(adapted, base, tmp_path, capsys):
    file = adapted.run / "adapters" / "final.safetensors"
    assert convert(["convert", str(file), str(tmp_path / "native")]) == 2
    assert "give those as SRC, and this file as --adapters of 'convert'" in capsys.readouterr().err
    truncated = tmp_path / "cut.safetensors"
    truncated.write_bytes(file.read_bytes()[:-8])
    for given, sentence in ((truncated, "cannot be read"), (base / "config.json", "cannot be read")):
        with pytest.raises(UserError, match=sentence):
            read_adapters(given)
    with pytest.raises(UserError, match=r"does not exist; give RUN/adapters/final\.safetensors"):
        read_adapters(tmp_path / "absent")


def test_parameters_that_the_loaded_weights_lack_train_with_the_adapters(config):
    model = replace(config.model, srpp=True, bd=True)
    with_modules = config.replace(model=model)
    complete = {path for path in trained_paths(with_modules) if not is_adapter(path)}
    assert {path.split(".")[0] for path in complete} == {"slice_position", "boundary"}
    _, loaded = starting_weights(with_modules)
    assert loaded is not None and not complete & loaded.paths


def test_chosen_frozen_patterns_leave_other_parameters_to_train_beside_the_adapters(config):
    trained = trained_paths(with_training(config, frozen=(r"^(?!sam_mask_decoder\.)",)))
    others = {path for path in trained if not is_adapter(path)}
    assert others and all(path.startswith("sam_mask_decoder.") for path in others)


def test_unfrozen_stages_train_completely_and_have_no_adapters(config):
    trained = trained_paths(with_training(config, unfreeze_stages=1))
    encoder = {path for path in trained if path.startswith("image_encoder.")}
    expected = ("image_encoder.trunk.blocks.4.", "image_encoder.neck.convs.0.")
    assert encoder and all(path.startswith(expected) and not is_adapter(path) for path in encoder)


def test_unfrozen_stages_without_lora_train_beside_the_default_parts(config):
    without = with_training(config, lora=LoraConfig())
    default, unfrozen = trained_paths(without), trained_paths(with_training(without, unfreeze_stages=1))
    added = unfrozen - default
    assert default < unfrozen and not any(path.startswith("image_encoder.") for path in default)
    assert {".".join(path.split(".")[:4]) for path in added} == {
        "image_encoder.trunk.blocks.4",
        "image_encoder.neck.convs.0",
    }


def test_cached_features_are_refused_if_adapters_or_unfrozen_stages_train_the_encoder(config):
    data = replace(config.data, features="features", augmentation=NO_AUGMENTATION)
    for changes, sentence in (
        ({}, r"^data\.features: training\.lora adapts the image encoder .*--training\.lora\.modules"),
        ({"lora": LoraConfig(), "unfreeze_stages": 1}, r"^data\.features: training\.unfreeze_stages trains the"),
    ):
        with pytest.raises(UserError, match=sentence) as error:
            trained_paths(with_training(config.replace(data=data), **changes))
        assert len(str(error.value)) <= 300
    memory = with_training(config.replace(data=data), lora=LoraConfig(rank=2, modules=("^memory_attention",)))
    assert all(is_adapter(path) and path.startswith("memory_attention.") for path in trained_paths(memory))


def test_settings_without_an_effect_are_refused(config):
    random = config.replace(model=replace(config.model, init=""))
    with pytest.raises(UserError, match=r"training\.lora\.rank: adapters change loaded weights; give model\.init"):
        trained_paths(random)
    with pytest.raises(UserError, match=r"training\.unfreeze_stages: these stages are not frozen"):
        trained_paths(with_training(random, lora=LoraConfig(), unfreeze_stages=1))
    unet = with_training(random.replace(model=UNetConfig()), lora=LoraConfig(), layer_decay=0.9)
    with pytest.raises(UserError, match=r"training\.layer_decay: they are for the trunk of SAM 2"):
        trained_paths(unet.replace(data=replace(unet.data, classes=(1,))))
