"""Memory of long volumes: the device holds one block, the host the input, the output and what the session stores."""

import gc
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from sam2_3dmed_jax import Prompt, VolumePredictor, new_model
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference import host_arrays
from sam2_3dmed_jax.inference.host_arrays import HostArrays

SHORT, LONG = 100, 400
CHILD = """
import json, sys
import numpy as np
from sam2_3dmed_jax import Prompt, VolumePredictor, new_model
from sam2_3dmed_jax.runtime import compilation_cache
from sam2_3dmed_jax.config import PreprocessingConfig
from sam2_3dmed_jax.inference.segment import VoxelPrompt, segment_volume
from sam2_3dmed_jax.volume.geometry import Grid, Volume
from sam2_3dmed_jax.phantom import make_case

compilation_cache.enable()
predictor = VolumePredictor(new_model("nano", with_3dmed=True))
hu, label, _ = make_case(3, "spleen")
middle = hu.astype(np.float32)[len(hu) // 2]


def segment(depth):
    array = np.repeat(middle[None], depth, 0)
    volume = Volume(array, Grid((128, 128, depth), np.diag([-3.0, -3.0, 3.0, 1.0])))
    found = segment_volume(predictor, volume, [VoxelPrompt(1, depth // 3, ((64.0, 64.0),), (1,))])
    return array.nbytes + found.labels.nbytes + found.result.mask_logits.nbytes


def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


for _ in range(2):
    segment(SHORT)  # compiles, and fills the allocator's pools
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the highest resident set starts anew
own = segment(DEPTH)
print(json.dumps({"peak": peak(), "own": own}))
"""


def run(depth: int) -> dict[str, int]:
    program = CHILD.replace("SHORT", str(SHORT)).replace("DEPTH", str(depth))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ}
    )
    return dict(json.loads(done.stdout))


def test_the_peak_of_400_phantom_slices_is_that_of_100_plus_input_output_and_store():
    run(SHORT)  # compiles; both that are compared load what it compiled, as compiling has a peak of its own
    short, long = run(SHORT), run(LONG)
    config = new_model("nano").config
    cells, c = (config.image_size // 16) ** 2, config.d_model
    # Features of strides 16, 8 and 4, the memory, the pointer and the logits of a slice.
    store = 4 * (cells * c + 4 * cells * c // 4 + 16 * cells * c // 8 + cells * config.mem_dim + c + 16 * cells)
    added = long["own"] - short["own"] + (LONG - SHORT) * store
    assert long["peak"] - added <= 1.1 * short["peak"]


def test_the_device_holds_as_much_for_a_long_volume_as_for_a_short_one():
    predictor = VolumePredictor(new_model("nano", 64))

    def most(depth: int) -> int:
        held = []

        def look(*_: object) -> None:
            held.append(sum(array.nbytes for array in jax.live_arrays()))

        slices = np.random.default_rng(0).normal(size=(depth, 64, 64, 3)).astype(np.float32)
        gc.collect()
        predictor.predict(slices, [Prompt(1, depth // 2, [(30, 30)], [1])], look)
        return max(held)

    most(20)
    assert most(100) == most(40)


def test_a_long_volume_is_not_prepared_at_once():
    class Slices:
        """Slices that say how many were asked for."""

        def __init__(self) -> None:
            self.shape, self.largest = (50, 64, 64, 3), 0

        def __len__(self) -> int:
            return 50

        def __getitem__(self, at: slice) -> np.ndarray:
            asked = np.zeros((50, 1, 1, 1))[at]
            self.largest = max(self.largest, len(asked))
            return np.zeros((len(asked), 64, 64, 3), np.float32)

    slices = Slices()
    VolumePredictor(new_model("nano", 64)).start(slices)
    assert slices.largest == 16


def test_arrays_beyond_the_limit_live_in_files_and_give_the_same_masks(monkeypatch):
    slices = np.random.default_rng(0).normal(size=(20, 64, 64, 3)).astype(np.float32)
    prompts = [Prompt(k, 4 + k, [(30, 30)], [1]) for k in (1, 2)]
    predictor = VolumePredictor(new_model("nano", 64))
    in_memory = predictor.predict(slices, prompts)
    monkeypatch.setattr(HostArrays.__init__, "__defaults__", (0,))
    session = predictor.start(slices)
    assert isinstance(session._store.embedding, np.memmap)
    session.add(prompts)
    np.testing.assert_array_equal(session.result().mask_logits, in_memory.mask_logits)


def test_the_limit_counts_all_arrays_of_a_session():
    arrays = HostArrays(limit=100)
    first = arrays.zeros((20,), np.float32)
    assert not isinstance(first, np.memmap)
    assert isinstance(arrays.zeros((20,), np.float32), np.memmap)


def test_a_full_disk_is_one_sentence_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(host_arrays.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match=r"no room for 0\.0 GiB of features: set TMPDIR"):
        HostArrays(limit=0).zeros((20,), np.float32)


def test_what_a_session_drops_makes_room_again_and_the_disk_is_promised_once(monkeypatch):
    arrays = HostArrays(limit=100)
    dropped = arrays.zeros((25,), np.float32)
    del dropped
    assert not isinstance(arrays.zeros((25,), np.float32), np.memmap)
    monkeypatch.setattr(host_arrays.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 150}))
    arrays = HostArrays(limit=0)
    kept = arrays.zeros((25,), np.float32)
    assert isinstance(kept, np.memmap)
    with pytest.raises(UserError, match="no room"):  # its file takes no space before it is written
        arrays.zeros((25,), np.float32)
    del kept
    assert isinstance(arrays.zeros((25,), np.float32), np.memmap)
