"""Tables of scaling: which numbers of chips are compiled, what a row follows from, and one real compilation."""

import itertools
from dataclasses import replace

import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, MeshConfig, ModelConfig, TrainingConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.plan import scaling
from sam2_3dmed_jax.plan.report import plan_from_records
from sam2_3dmed_jax.plan.scaling import plan_scaling, table, topologies_up_to
from sam2_3dmed_jax.plan.topologies import parse_topology

CYCLES = 1_500_000  # of a v5e: a millisecond
SENT = 200_000_000  # bytes of an all-reduce, which counts twice: 2 ms of a v5e's network


@pytest.fixture
def compiled(monkeypatch):
    """Plans without a compiler: each clip of a chip takes a millisecond, and an all-reduce 2 ms. Yields the configs."""
    configs = []

    def plan(config, topology, what, stage):
        configs.append((topology, config))
        chips = parse_topology(topology)
        record = {
            "name": "train step",
            "chips": chips.chips,
            "flops": 0,
            "compiles": True,
            "memory": {"batch": 1 << 30},
            "bytes": 0,
            "collective_bytes": {"all-reduce": SENT} if chips.chips > 1 else {},
            "cycles": CYCLES * config.training.accumulation,
        }
        return plan_from_records(config, chips, what, [record])

    monkeypatch.setattr(scaling, "plan_experiment", plan)
    return configs


def experiment(batch_size: int = 16, **mesh: int) -> ExperimentConfig:
    return ExperimentConfig(training=TrainingConfig(batch_size=batch_size, steps=3600), mesh=MeshConfig(**mesh))


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        ("v5e:16x16", ["v5e:1x1", "v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16"]),
        ("v5e:2x4", ["v5e:1x1", "v5e:2x2", "v5e:2x4"]),
        ("v5p:4x8x8", ["v5p:1x1x1", "v5p:2x2x1", "v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8"]),
        ("h100:64", ["h100:1", "h100:8", "h100:64"]),
        ("v5e:1x1", ["v5e:1x1"]),
    ],
)
def test_numbers_of_chips_grow_to_the_topology(largest, expected):
    assert list(map(str, topologies_up_to(parse_topology(largest)))) == expected


def test_rows_follow_from_the_compiled_steps(compiled):
    rows = list(plan_scaling(experiment(), "v5e:8x8"))
    assert [(row.kind, row.topology.chips, row.clips) for row in rows] == [
        *(("weak", chips, chips) for chips in (1, 4, 16, 64)),
        *(("strong", chips, 16) for chips in (1, 4, 16)),
    ]
    assert [(topology, config.training.batch_size, config.training.accumulation) for topology, config in compiled] == [
        *(("v5e:1x1", 1, 1), ("v5e:2x2", 4, 1), ("v5e:4x4", 16, 1), ("v5e:8x8", 64, 1)),
        *(("v5e:1x1", 16, 16), ("v5e:2x2", 16, 4), ("v5e:4x4", 16, 1)),
    ]
    seconds = [0.001, 0.003, 0.003, 0.003, 0.016, 0.006, 0.003]
    assert [row.seconds for row in rows] == pytest.approx(seconds)
    assert [row.efficiency for row in rows] == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 1, 4 / 6, 1 / 3])
    assert [row.chip_hours for row in rows] == pytest.approx([0.001, 0.012, 0.048, 0.192, 0.016, 0.024, 0.048])
    # Hosts of four chips share the clips.
    assert rows[3].clips_per_host == pytest.approx(64 / 0.003 / 16)
    assert table(rows)[3] == "| weak | v5e:2x2 | 4 | 4 | 1.00 | 200.0 | 3 | 1333.3 | 33 | 0.0 |"


def test_chips_that_cannot_share_the_parameters_or_the_batch_are_left_out(compiled):
    rows = list(plan_scaling(experiment(24, fsdp=4), "v5e:4x4"))
    assert [(row.kind, row.topology.chips) for row in rows] == [("weak", 4), ("weak", 16), ("strong", 4)]


def test_a_step_that_does_not_compile_has_a_row_without_times(compiled, monkeypatch):
    plan = scaling.plan_experiment

    def too_large(config, topology, what, stage):
        found = plan(config, topology, what, stage)
        (program,) = found.programs
        failed = replace(program, compiles=False, times=None, bytes=None, collective_bytes=None)
        return replace(found, programs=(failed,))

    monkeypatch.setattr(scaling, "plan_experiment", too_large)
    rows = list(plan_scaling(experiment(1), "v5e:1x1"))
    assert [row.efficiency for row in rows] == [None, None] and rows[0].record()["seconds_per_step"] is None
    assert "does not fit" in table(rows)[2]


def test_a_mesh_of_fixed_size_is_refused():
    with pytest.raises(UserError, match="mesh: 4 x 1 does not grow"):
        next(plan_scaling(experiment(data=4), "v5e:2x2"))


def test_a_table_of_prediction_is_refused(capsys):
    assert main(["plan", "demo", "--topology", "v5e:2x2", "--scaling", "--what", "predict"]) == 2
    assert "leave out --what" in capsys.readouterr().err


@pytest.mark.long
def test_each_number_of_chips_is_compiled():
    # Few weights train, which compiles faster.
    model = ModelConfig("nano", 64, srpp=False, bd=False, compute_dtype="bfloat16")
    training = TrainingConfig(frozen=(r"^(image_encoder|sam_prompt_encoder|memory_|mask_down)",))
    config = ExperimentConfig(model=model, data=DataConfig(slices=2), training=training)
    one, two = itertools.islice(plan_scaling(config, "v5e:1x2"), 2)
    assert (one.topology.chips, two.topology.chips, one.clips, two.clips) == (1, 2, 1, 2)
    assert not one.program.collective_bytes and two.program.collective_bytes["all-reduce"]
    assert one.efficiency == 1 and 0 < two.efficiency <= 1.05 and two.program.fits
