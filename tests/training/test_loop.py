"""A run's folder: its contents, and experiments that it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from sam2_3dmed_jax import load_model
from sam2_3dmed_jax.data.split_files import read_splits, write_run_split
from sam2_3dmed_jax.data.splits import Split
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.metrics.reliability import TEMPERATURES
from sam2_3dmed_jax.phantom import make_case
from sam2_3dmed_jax.training.loop import train
from tests.helpers.prepared_files import write_prepared
from tests.helpers.run_files import assert_same_result, events, rows


@pytest.fixture(scope="module")
def config(small):
    return small.config


@pytest.fixture
def start(small):
    """`train` for experiments that share the small run's step, or that are refused before their first step."""
    return lambda config, run: train(config, run, setup=replace(small.setup(), config=config))


def test_a_run_writes_log_config_checkpoints_events_and_native_checkpoints(config, whole):
    names = {path.name for path in whole.iterdir()}
    assert {"log.csv", "config.json", "split.json", "checkpoints", "final", "best"} <= names
    assert [row["step"] for row in rows(whole)] == [str(step) for step in range(1, 13)]
    assert all(float(row[name]) > 0 for row in rows(whole) for name in ("loss", "loss_seg", "loss_srpp", "loss_bd"))
    kept = {path.name for path in (whole / "checkpoints").iterdir()}
    assert kept == {"9", "12"}  # the newest `keep_checkpoints`
    model = load_model(whole / "final")
    assert model.info.model.slice_position.window == config.data.slices  # as many slices as in training
    assert json.loads((whole / "final" / "config.json").read_text())["provenance"]["steps"] == 12


def test_the_best_weights_have_the_highest_dice_on_the_inner_case(whole):
    inner = {int(row["step"]): float(row["dice_inner"]) for row in rows(whole) if row["dice_inner"]}
    assert list(inner) == [5, 10, 12] and all(0 <= dice <= 1 for dice in inner.values())
    provenance = json.loads((whole / "best" / "config.json").read_text())["provenance"]
    assert provenance["dice_inner"] == max(inner.values()) == inner[provenance["steps"]]
    assert load_model(whole / "best").info.model.preset == "nano"


def test_checkpoints_have_the_temperature_that_was_fitted_on_the_inner_case(whole):
    temperatures = [load_model(whole / name).info.temperature for name in ("best", "final")]
    low, high = TEMPERATURES
    assert all(low < temperature < high for temperature in temperatures)


def test_tensorboard_has_losses_norms_and_rates_by_module_images_and_the_config(config, whole):
    scalars, images, texts = {}, {}, {}
    for event in events(whole):
        for value in event.summary.value:
            if value.HasField("image"):
                images.setdefault(value.tag, []).append((event.step, value.image.height, value.image.width))
            elif value.HasField("tensor"):
                texts[value.tag] = value.tensor.string_val[0].decode()
            else:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    logged = {row["step"]: float(row["loss_bd"]) for row in rows(whole)}
    assert {str(step): pytest.approx(value) for step, value in scalars["loss_bd"].items()} == logged
    modules = {"image_encoder", "memory_attention", "sam_mask_decoder", "slice_position", "boundary"}
    for what in ("gradient_norm", "learning_rate"):
        assert {f"{what}/{module}" for module in modules} <= set(scalars)
    norms = [scalars[tag][3] for tag in scalars if tag.startswith("gradient_norm/")]
    assert np.linalg.norm(norms) == pytest.approx(scalars["gradient_norm"][3], rel=1e-4)
    assert list(scalars["dice_inner"]) == [5, 10, 12] and "clips_per_second" in scalars
    # Two clips in rows with two slices each; boundaries predicted and target; two matrices with a gap.
    assert images["masks"] == [(5, 128, 128), (10, 128, 128)]
    assert images["boundaries"] == [(5, 256, 128), (10, 256, 128)]
    assert images["positions"] == [(5, 2 * 2 * 16, 5 * 16), (10, 2 * 2 * 16, 5 * 16)]
    assert json.loads(texts["config/text_summary"].strip("`json\n"))["training"]["steps"] == 12


def test_a_trace_is_written_where_tensorboard_reads_it(whole):
    assert len(list(whole.glob("plugins/profile/*/*.xplane.pb"))) == 1


def test_a_run_that_failed_after_a_checkpoint_resumes_to_the_same_result(small, whole, tmp_path):
    run = tmp_path / "run"

    class StopError(Exception):
        pass

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if done == 8:
            raise StopError

    with pytest.raises(StopError):
        small.train(run, stop)
    assert not (run / "final").exists()
    small.train(run, log_every=4, checkpoint_every=5)  # settings that may change
    assert json.loads((run / "config.json").read_text())["training"]["log_every"] == 4
    assert [row["step"] for row in rows(run)] == ["1", "2", "3", "4", "5", "6", "8", "10", "12"]
    assert {row["step"]: row for row in rows(run)}["12"] == rows(whole)[-1]
    small.train(run)  # a finished run only writes its result again
    shutil.copy(whole / "log.csv", run)
    assert_same_result(run, whole)


def test_a_run_records_its_split_and_does_not_resume_with_another(config, start, whole, tmp_path):
    (split,) = read_splits(whole / "split.json")
    assert (len(split.train), len(split.val), len(split.test)) == (1, 1, 2)
    assert json.loads((whole / "split.json").read_text())["how"]["data"] == config.data.path
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole / "config.json", run)
    write_run_split(run / "split.json", Split(split.test, (), split.train), {})
    with pytest.raises(UserError, match="has another split"):
        start(config, run)
    assert not (run / "checkpoints").exists()


def test_another_experiment_in_the_folder_is_refused_with_its_different_fields(config, start, whole):
    other = config.replace(training=replace(config.training, learning_rate=0.5, seed=3, log_every=7))
    with pytest.raises(UserError, match=r"\(training\.learning_rate, training\.seed\)"):
        start(other, whole)


def test_a_folder_with_other_files_is_refused_and_left_alone(config, start, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        start(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_checkpoint_of_another_preset_is_refused_as_initial_weights(config, whole, tmp_path):
    other = config.replace(model=replace(config.model, preset="sam2.1_hiera_tiny", init=str(whole / "final")))
    with pytest.raises(UserError, match=r"model\.init: .* is of preset nano"):
        train(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": (4,)}, r"data\.classes: .* has no label 4; choose from 1"),
        ({"fold": 2}, r"data\.fold: 2 does not exist"),
        ({"path": "/nowhere"}, r"/nowhere does not exist"),
    ],
)
def test_unsuitable_data_is_refused_before_the_runs_folder_is_created(config, start, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        start(config.replace(data=replace(config.data, **changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_without_the_classes_is_refused(config, start, tmp_path):
    hu, labels, _ = make_case(0, "spleen", 48)
    write_prepared(tmp_path / "data", dict.fromkeys("ab", (hu, labels * 0)), {1: "spleen"})
    other = config.replace(data=replace(config.data, path=str(tmp_path / "data")))
    with pytest.raises(UserError, match=r"no training case holds a class to segment; check data\.classes"):
        start(other, tmp_path / "run")


def test_a_damaged_shard_stops_the_run_with_one_sentence(config, start, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(config.data.path, data)
    for shard in data.glob("shards/*"):
        content = bytearray(shard.read_bytes())
        for at in range(1000, 150000, 300):
            content[at] ^= 0x40
        shard.write_bytes(content)
    with pytest.raises(UserError, match=r"arrayrecord is damaged .* delete it and run `sam2-3dmed prepare` again"):
        start(config.replace(data=replace(config.data, path=str(data))), tmp_path / "run")
