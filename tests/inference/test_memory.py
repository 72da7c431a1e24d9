"""Memory of long volumes: one block on the device; input, output and stored results on the host."""

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest

from sam2_3dmed_jax import Prompt, VolumePredictor, new_model
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.inference import host_arrays
from sam2_3dmed_jax.inference.host_arrays import HostArrays

pytestmark = pytest.mark.slow

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
    segmentation = segment_volume(predictor, volume, [VoxelPrompt(1, depth // 3, ((64.0, 64.0),), (1,))])
    return array.nbytes + segmentation.labels.nbytes + segmentation.result.mask_logits.nbytes


def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


for _ in range(2):
    segment(SHORT)  # compiles, and fills the pools of the allocator
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # resets the peak of the resident set
arrays = segment(DEPTH)
print(json.dumps({"peak": peak(), "arrays": arrays}))
"""


def run(depth: int) -> dict[str, int]:
    program = CHILD.replace("SHORT", str(SHORT)).replace("DEPTH", str(depth))
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ}
    )
    return dict(json.loads(finished.stdout))


def test_peak_memory_grows_with_depth_only_by_input_output_and_stored_results():
    run(SHORT)  # Compiling has its own peak; the two runs that are compared load the compiled programs.
    short, long = run(SHORT), run(LONG)
    config = new_model("nano").config
    cells, c = (config.image_size // 16) ** 2, config.d_model
    # Features of strides 16, 8 and 4, memory, pointer and logits of a slice, in float32.
    stored_per_slice = 4 * (
        cells * c + 4 * cells * c // 4 + 16 * cells * c // 8 + cells * config.mem_dim + c + 16 * cells
    )
    added = long["arrays"] - short["arrays"] + (LONG - SHORT) * stored_per_slice
    assert long["peak"] - added <= 1.1 * short["peak"]


def test_device_memory_does_not_depend_on_depth():
    predictor = VolumePredictor(new_model("nano", 64))

    def peak(depth: int) -> int:
        device_bytes = []

        def measure(*_: object) -> None:
            device_bytes.append(sum(array.nbytes for array in jax.live_arrays()))

        slices = np.random.default_rng(0).normal(size=(depth, 64, 64, 3)).astype(np.float32)
        gc.collect()
        predictor.predict(slices, [Prompt(1, depth // 2, [(30, 30)], [1])], measure)
        return max(device_bytes)

    peak(20)  # compiles
    assert peak(100) == peak(40)


def test_slices_are_prepared_in_blocks():
    class Slices:
        """Slices that record the largest number of slices in one access."""

        def __init__(self) -> None:
            self.shape, self.largest = (50, 64, 64, 3), 0

        def __len__(self) -> int:
            return 50

        def __getitem__(self, at: slice) -> np.ndarray:
            count = len(range(50)[at])
            self.largest = max(self.largest, count)
            return np.zeros((count, 64, 64, 3), np.float32)

    slices = Slices()
    VolumePredictor(new_model("nano", 64)).start(slices)
    assert slices.largest == 16


def test_arrays_beyond_the_memory_limit_are_in_files_and_give_the_same_masks(monkeypatch):
    slices = np.random.default_rng(0).normal(size=(20, 64, 64, 3)).astype(np.float32)
    prompts = [Prompt(k, 4 + k, [(30, 30)], [1]) for k in (1, 2)]
    predictor = VolumePredictor(new_model("nano", 64))
    in_memory = predictor.predict(slices, prompts)
    monkeypatch.setattr(HostArrays.__init__, "__defaults__", (0, 0))
    session = predictor.start(slices)
    assert all(isinstance(stored, np.memmap) for stored in session._store._blocks._on_host)
    session.add(prompts)
    np.testing.assert_array_equal(session.result().mask_logits, in_memory.mask_logits)


def test_the_limit_counts_all_arrays_of_a_session():
    arrays = HostArrays(limit=100)
    first = arrays.zeros((20,), np.float32)
    assert not isinstance(first, np.memmap)
    assert isinstance(arrays.zeros((20,), np.float32), np.memmap)


@pytest.fixture
def full_disk(monkeypatch):
    """A disk on which no file gets room."""

    def refuse(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(host_arrays.os, "posix_fallocate", refuse)


def test_a_full_disk_is_reported_before_anything_is_allocated(full_disk):
    with pytest.raises(UserError, match=r"no room for 0\.0 GiB of features; set TMPDIR"):
        HostArrays(limit=0, limit_without_disk=70).zeros((20,), np.float32)


def test_arrays_stay_in_memory_up_to_a_larger_limit_when_the_disk_is_full(full_disk):
    arrays = HostArrays(limit=0, limit_without_disk=100)
    kept = arrays.zeros((25,), np.float32)
    assert not isinstance(kept, np.memmap)
    with pytest.raises(UserError, match="no room"):
        arrays.zeros((25,), np.float32)


def test_released_arrays_leave_memory_and_keep_their_values():
    array = HostArrays(limit=0).zeros((64 << 20,), np.uint8)
    array[:] = 7
    with_array = resident_bytes()
    host_arrays.release(array[3:])
    assert with_array - resident_bytes() > 60 << 20
    assert (array == 7).all()


def resident_bytes() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024


def test_freed_arrays_release_their_memory_and_their_disk_space():
    arrays = HostArrays(limit=100)
    freed = arrays.zeros((25,), np.float32)
    del freed
    assert not isinstance(arrays.zeros((25,), np.float32), np.memmap)
    size = 256 << 20
    before = shutil.disk_usage(tempfile.gettempdir()).free
    kept = HostArrays(limit=0).zeros((size,), np.uint8)
    assert before - shutil.disk_usage(tempfile.gettempdir()).free > size // 2  # others write there, too
    del kept
    assert before - shutil.disk_usage(tempfile.gettempdir()).free < size // 2
