"""Live comparison with transformers' `Sam2VideoModel`: its folder format, the real converter, the same prompts.

Only scenarios in which the two libraries agree (see `hf.py`): every object is prompted on the same slices, before one
propagation.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import compare, generated, ours
from tests.parity.live import FAST, OTHERS, SEED, reference
from tests.parity.scenarios import SCENARIOS, Tracked
from weights_conversion.convert import convert_checkpoint


class Pairs:
    """The reference and our model with the same weights and slices; keeps the last pair, because tests are ordered."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._key: tuple[str, int, int] | None = None

    def make(self, preset: str, size: int, depth: int) -> None:
        """Build, save, convert and load."""
        if self._key == (preset, size, depth):
            return
        hf = reference("tests.parity.hf")
        self.model = hf.with_generated_weights(preset, size, SEED)
        source, self.checkpoint = self._folder / f"{preset} {size} source", self._folder / f"{preset} {size}"
        hf.save(self.model, source)
        assert convert_checkpoint(source, self.checkpoint).preset == preset
        slices = generated.slices(depth, size, SEED)
        self.own, self.theirs = ours.Video(ours.load(self.checkpoint, size), slices), hf.Video(self.model, slices)
        self._key = preset, size, depth

    def track(self, preset: str, size: int, depth: int, name: str) -> tuple[Tracked, Tracked]:
        """Return both results of the first round of a scenario."""
        self.make(preset, size, depth)
        scenario = SCENARIOS[name](depth)[:1]
        return self.own.track(scenario), self.theirs.track(scenario)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Keep one pair at a time: a `large` pair takes 3 GB."""
    return Pairs(tmp_path_factory.mktemp("transformers"))


@pytest.mark.parametrize("preset", FAST)
def test_every_stage_of_tiny_agrees_at_512(pairs: Pairs, preset: str) -> None:
    pairs.make(preset, 512, 12)
    stages = ours.stages(ours.load(pairs.checkpoint, 512), SEED)
    compare.assert_same_stages(stages, reference("tests.parity.hf").stages(pairs.model, SEED))


@pytest.mark.parametrize("preset", FAST[1:])  # the first preset runs in CI against Meta, and here in the full matrix
def test_twelve_slices_of_one_object_agree_after_propagation_both_ways_at_256(pairs: Pairs, preset: str) -> None:
    compare.assert_same_propagation(*pairs.track(preset, 256, 12, "one_object"))


@pytest.mark.long  # other presets run in CI against Meta; here they would take as long again
@pytest.mark.parametrize("preset", OTHERS)
def test_the_converter_and_a_short_clip_agree_for_every_other_preset(pairs: Pairs, preset: str) -> None:
    compare.assert_same_propagation(*pairs.track(preset, 256, 4, "one_object"))


@pytest.mark.long
@pytest.mark.parametrize("preset", [*FAST, *OTHERS], scope="class")
class TestFullMatrixAt512:
    def test_every_stage_agrees(self, pairs: Pairs, preset: str) -> None:
        pairs.make(preset, 512, 12)
        stages = ours.stages(ours.load(pairs.checkpoint, 512), SEED)
        compare.assert_same_stages(stages, reference("tests.parity.hf").stages(pairs.model, SEED))

    @pytest.mark.parametrize("name", ["one_object", "three_objects_and_a_correction", "two_prompted_slices"])
    def test_first_rounds_agree(self, pairs: Pairs, preset: str, name: str) -> None:
        compare.assert_same_propagation(*pairs.track(preset, 512, 12, name))


@pytest.mark.long
@pytest.mark.parametrize("preset", [*FAST, "sam2_hiera_large", "sam2.1_hiera_large"])
def test_twelve_slices_agree_at_1024(pairs: Pairs, preset: str) -> None:
    compare.assert_same_propagation(*pairs.track(preset, 1024, 12, "one_object"))
