"""Live comparison with Meta's predictor: generated weights in Meta's format, the real converter, the same prompts.

The fast set runs in CI; `-m long` is the full matrix. The two models are built once per preset and size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.parity import compare, generated, ours
from tests.parity.live import FAST, OTHERS, SEED, reference
from tests.parity.scenarios import (
    AT_MOST_ONE_CORRECTION_PER_ROUND,
    SCENARIOS,
    SEVERAL_CORRECTIONS_PER_ROUND,
    Scenario,
    Tracked,
)
from weights_conversion.convert import convert_checkpoint


@dataclass
class Pair:
    """The reference and our model with the same weights and slices."""

    meta: Any
    theirs: Any
    ours: Any
    slices: Any
    checkpoint: Path
    size: int

    def track(self, scenario: Scenario) -> tuple[Tracked, Tracked]:
        """Return both results of a scenario."""
        return self.ours.track(scenario), self.theirs.track(scenario)


class Pairs:
    """Builds pairs and keeps the last one; tests are ordered by preset and size."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._key: tuple[str, int, int] | None = None
        self._pair: Pair | None = None

    def __call__(self, preset: str, size: int, depth: int) -> Pair:
        """Return slices and models of a preset at a size."""
        if self._key != (preset, size, depth) or self._pair is None:
            self._pair = None  # free it before the next one is built
            meta = reference("tests.parity.meta")
            model = meta.with_generated_weights(preset, size, SEED)
            source, checkpoint = self._folder / "official.pt", self._folder / preset
            meta.save(model, source)
            assert convert_checkpoint(source, checkpoint).preset == preset
            source.unlink()
            slices = generated.slices(depth, size, SEED)
            own = ours.Video(ours.load(checkpoint, size), slices)
            self._pair = Pair(meta, meta.Video(model, slices), own, slices, checkpoint, size)
            self._key = preset, size, depth
        return self._pair


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    """Keep one pair at a time: a `large` pair takes 3 GB."""
    yield Pairs(tmp_path_factory.mktemp("meta"))


@pytest.mark.parametrize("preset", FAST)
def test_every_stage_of_tiny_agrees_at_512(pairs: Pairs, preset: str) -> None:
    pair = pairs(preset, 512, 12)
    compare.assert_same_stages(ours.stages(ours.load(pair.checkpoint, 512), SEED), stages_of(pair))


@pytest.mark.parametrize("preset", FAST)
def test_three_objects_agree_on_twelve_slices_and_after_a_correction_at_256(pairs: Pairs, preset: str) -> None:
    compare.assert_same_propagation(*pairs(preset, 256, 12).track(SCENARIOS["three_objects_and_a_correction"](12)))


@pytest.mark.parametrize("preset", FAST, scope="class")
class TestCorrectionsAt256:
    @pytest.mark.parametrize("name", [scenario.__name__ for scenario in SEVERAL_CORRECTIONS_PER_ROUND])
    def test_several_corrections_in_one_round_agree(self, pairs: Pairs, preset: str, name: str) -> None:
        compare.assert_same_propagation(*pairs(preset, 256, 24).track(SCENARIOS[name](24)))


@pytest.mark.parametrize("preset", OTHERS)
def test_the_converter_and_a_short_clip_agree_for_every_other_preset(pairs: Pairs, preset: str) -> None:
    compare.assert_same_propagation(*pairs(preset, 256, 4).track(SCENARIOS["one_object"](4)))


@pytest.mark.long
@pytest.mark.parametrize("preset", [*FAST, *OTHERS], scope="class")
class TestFullMatrixAt512:
    def test_every_stage_agrees(self, pairs: Pairs, preset: str) -> None:
        pair = pairs(preset, 512, 12)
        compare.assert_same_stages(ours.stages(ours.load(pair.checkpoint, 512), SEED), stages_of(pair))

    @pytest.mark.parametrize("name", [scenario.__name__ for scenario in AT_MOST_ONE_CORRECTION_PER_ROUND])
    def test_scenarios_agree(self, pairs: Pairs, preset: str, name: str) -> None:
        compare.assert_same_propagation(*pairs(preset, 512, 12).track(SCENARIOS[name](12)))

    def test_bfloat16_keeps_the_sign_of_99_percent_of_pixels(self, pairs: Pairs, preset: str) -> None:
        pair = pairs(preset, 512, 12)
        scenario = SCENARIOS["one_object"](12)
        low = ours.Video(ours.load(pair.checkpoint, 512, "bfloat16"), pair.slices).track(scenario)
        high = pair.theirs.track(scenario)
        compare.assert_informative(high)
        result = compare.agreement(low, high)
        print(f"\n{result}")
        assert result.same_sign >= compare.SAME_SIGN_BFLOAT16, result


@pytest.mark.long
@pytest.mark.parametrize("preset", [*FAST, *OTHERS[-2:]], scope="class")
class TestTinyAndLargeAt1024:
    def test_every_stage_agrees(self, pairs: Pairs, preset: str) -> None:
        pair = pairs(preset, 1024, 12)
        compare.assert_same_stages(ours.stages(ours.load(pair.checkpoint, 1024), SEED), stages_of(pair))

    def test_twelve_slices_agree_after_walking_both_ways(self, pairs: Pairs, preset: str) -> None:
        compare.assert_same_propagation(*pairs(preset, 1024, 12).track(SCENARIOS["one_object"](12)))


def stages_of(pair: Pair) -> dict[str, Any]:
    """Return the stages of the reference."""
    return pair.meta.stages(pair.theirs.model, SEED)
