"""Clips of real volumes: the voxels of the file, and the same preprocessing as in prediction."""

import numpy as np
import pytest

from sam2_3dmed_jax.config import ClipConfig, DataConfig, PreprocessingConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.pipeline import clip_batches, iterate
from sam2_3dmed_jax.data.render import render_clips
from sam2_3dmed_jax.volume import intensity
from sam2_3dmed_jax.volume.io import read_labels, read_volume
from tests.helpers.source_files import canonical, link_case, run

NAMES = {"0": "background", **{str(value): f"organ {value}" for value in range(1, 7)}}
# Each stored HU has its own grey value, and augmentation is off.
EVERY_HU = PreprocessingConfig(window="1023.5,4095")
STILL = {"augmentation": NO_AUGMENTATION, "clips": ClipConfig(objects=6)}


def clip_ranges(dataset, config, size, count):
    reader = CaseReader(dataset, config, size)
    stream = iterate(clip_batches(reader, dataset.cases, config, 1, seed=0), 0, workers=2)
    batches = [render_clips(next(stream), NO_AUGMENTATION) for _ in range(count)]
    clips = [{name: np.asarray(value[0]) for name, value in batch.items()} for batch in batches]
    stream.close()
    return clips


@pytest.mark.parametrize(
    ("image", "label", "size"),
    [("nodule/ct.nii.gz", "nodule/label.nii.gz", 512), ("chest/ct.nii.gz", "chest/lung.nii.gz", 64)],
)
def test_clips_contain_the_voxels_of_the_file(realdata, tmp_path, image, label, size):
    link_case(tmp_path / "data", "case", realdata / image, realdata / label, labels=NAMES)
    dataset = run(tmp_path / "data", tmp_path / "out").dataset
    hu, _ = canonical(realdata / image)
    labels, _ = canonical(realdata / label)
    seen = set()
    for clip in clip_ranges(dataset, DataConfig(slices=5, preprocessing=EVERY_HU, **STILL), size, 6):
        index = clip["slice_index"][clip["slice_valid"]].astype(int)
        grey = clip["slices"][clip["slice_valid"]].astype(np.float64)
        np.testing.assert_array_equal(np.rint(grey * 4095 - 1024), np.clip(hu[index], -1024, 3071))
        drawn = clip["masks"][clip["slice_valid"]].any(1)
        np.testing.assert_array_equal(drawn, labels[index] > 0)
        np.testing.assert_allclose(clip["position_mm"][clip["slice_valid"]], index * dataset.cases[0].spacing[0])
        seen |= set(index.tolist())
    assert len(seen) > 5


def test_clips_of_another_size_are_preprocessed_as_in_prediction(realdata, tmp_path):
    image, label = realdata / "abdomen/ct.nii.gz", realdata / "abdomen/organs6_from_v1.nii.gz"
    link_case(tmp_path / "data", "case", image, label, labels=NAMES)
    dataset = run(tmp_path / "data", tmp_path / "out").dataset
    volume = read_volume(image)
    window = intensity.window_of(volume, "soft_tissue")
    expected = intensity.prepare_slices(volume.array, window, 128)
    present = {value for value in np.unique(read_labels(label, volume)).tolist() if value}
    config = DataConfig(slices=5, preprocessing=PreprocessingConfig(window="soft_tissue"), **STILL)
    for clip in clip_ranges(dataset, config, 128, 6):
        index = clip["slice_index"][clip["slice_valid"]].astype(int)
        # Sums of products in another order: 4 ulps of 1.
        np.testing.assert_allclose(clip["slices"][clip["slice_valid"]], expected[index], rtol=0, atol=2.5e-7)
        assert clip["masks"].any((0, 2, 3)).sum() <= len(present)
