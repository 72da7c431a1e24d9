"""The phantom: reproducible, in MSD layout, of real tissues' densities, without a clue along z, and not easy."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.evaluation.region_growing import region_growing
from sam2_3dmed_jax.phantom import make_case, write_phantom_dataset
from sam2_3dmed_jax.phantom.densities import TOUCHING
from sam2_3dmed_jax.phantom.person import draw_anatomy
from sam2_3dmed_jax.phantom.scanner import as_mr, draw_acquisition
from sam2_3dmed_jax.prompts.simulation import centre_point, largest_slice
from sam2_3dmed_jax.volume.io import read_labels, read_volume

SEEDS = (101, 102, 103, 104)


@pytest.fixture(scope="module")
def spleens():
    return {seed: make_case(seed, "spleen") for seed in SEEDS}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("phantom") / "Task07", 3, seed=5, task="pancreas", matrix=64)


def interior(label: np.ndarray, spacing: tuple[float, float, float], depth: float = 6.0) -> np.ndarray:
    """Voxels deeper in the label than `depth` mm, where neither partial volume nor the reader reaches."""
    return ndimage.distance_transform_edt(label, spacing) > depth


def test_the_same_seed_gives_the_same_arrays(spleens):
    hu, label, spacing = make_case(SEEDS[0], "spleen")
    assert hu.tobytes() == spleens[SEEDS[0]][0].tobytes()
    assert label.tobytes() == spleens[SEEDS[0]][1].tobytes()
    assert spacing == spleens[SEEDS[0]][2]


def test_different_seeds_give_different_people(spleens):
    one, other = (draw_anatomy(seed) for seed in SEEDS[:2])
    assert one.spleen != other.spleen and one.torso.half_width != other.torso.half_width
    volumes = {int(label.sum() * np.prod(spacing)) for _, label, spacing in spleens.values()}
    assert len(volumes) == len(SEEDS)


@pytest.mark.parametrize("task,values", [("spleen", {0, 1}), ("pancreas", {0, 1, 2}), ("lung", {0, 1})])
def test_every_task_has_its_labels_and_a_clinical_grid(task, values):
    for seed in (7, 8):
        hu, label, (dz, dy, dx) = make_case(seed, task)
        assert hu.dtype == np.int16 and label.dtype == np.uint8 and hu.shape == label.shape
        assert 36 <= hu.shape[0] <= 56 and hu.shape[1:] == (128, 128)
        assert 3 <= dz <= 6 and 2.8 <= dy == dx <= 3.2
        assert set(np.unique(label)) == values


def test_organs_are_labelled_at_their_positions_and_the_tumour_is_in_the_pancreas():
    seen: set[int] = set()
    for seed in (7, 8, 9, 11):
        hu, label, (dz, dy, dx) = make_case(seed, "organs")
        ml = dz * dy * dx / 1000 * np.bincount(label.ravel(), minlength=8)
        seen |= set(np.flatnonzero(ml))
        assert ml[2] == 0 or abs(np.median(hu[label == 2]) - 80) < 45  # the liver's density
        if (label == 4).any() and (label == 5).any():
            assert (ndimage.binary_dilation(label == 5) & (label == 4)).any()
        if label[-1].any():
            continue
        assert np.argwhere(label == 1)[:, 2].mean() > np.argwhere(label == 2)[:, 2].mean()  # the spleen is on the left
    assert seen == set(range(8))


def test_the_liver_lies_at_low_columns_the_spleen_at_high_ones_and_the_spine_at_high_rows(spleens):
    for hu, label, _ in spleens.values():
        assert np.argwhere(label)[:, 2].mean() > hu.shape[2] / 2 + 10
        rows = np.argwhere(ndimage.gaussian_filter(hu.astype(float), 1) > 300)[:, 1]
        assert rows.mean() > hu.shape[1] / 2


def test_lungs_lie_above_the_spleen(spleens):
    for hu, label, _ in spleens.values():
        lung = ((hu > -900) & (hu < -700)).sum((1, 2))
        if label[-1].any():  # the scan ends in the spleen
            continue
        assert np.average(np.arange(len(lung)), weights=lung) > np.argwhere(label)[:, 0].mean()


def test_touching_organs_differ_by_5_to_80_hu():
    for seed in range(40):
        hu = draw_acquisition(draw_anatomy(seed), "spleen").hu
        for one, other in TOUCHING:
            assert 5 <= abs(hu[one] - hu[other]) <= 80, (seed, one, other)


def test_a_neighbour_of_the_spleen_is_within_13_hu_of_it():
    for seed in range(40):
        hu = draw_acquisition(draw_anatomy(seed), "spleen").hu
        gaps = [abs(hu["spleen"] - hu[n]) for n in ("stomach_wall", "kidney", "colon_wall", "muscle", "liver")]
        assert min(gaps) <= 13


def test_noise_in_the_spleen_has_an_sd_of_10_to_25_hu_and_is_correlated(spleens):
    for hu, label, spacing in spleens.values():
        inside = interior(label, spacing)
        values = hu[inside].astype(float)
        assert 10 <= values.std() <= 26  # 25 and a texture of 3, added in squares
        pairs = inside[:, :, 1:] & inside[:, :, :-1]
        neighbours = np.corrcoef(hu[:, :, 1:][pairs], hu[:, :, :-1][pairs])[0, 1]
        assert neighbours > 0.25  # white noise would give 0 +- 0.05 with these counts


def test_density_does_not_depend_on_z(spleens):
    scores = []
    for seed, (hu, label, spacing) in spleens.items():
        inside = interior(label, spacing)
        z = np.argwhere(inside)[:, 0]
        values = hu[inside].astype(float)
        # Noise of a grain up to 0.9 pixels leaves about one independent value in ten voxels.
        error = values.std() / np.sqrt(len(values) / 10)
        assert abs(values.mean() - draw_acquisition(draw_anatomy(seed), "spleen").hu["spleen"]) < 3 * error
        upper, lower = values[z > np.median(z)], values[z < np.median(z)]
        scores.append((upper.mean() - lower.mean()) / (2 * error))
    assert np.all(np.abs(scores) < 3) and abs(np.mean(scores)) < 1.5


def test_some_scans_end_within_the_spleen_and_most_do_not():
    cut = 0
    for seed in range(30):
        anatomy = draw_anatomy(seed)
        scan = draw_acquisition(anatomy, "spleen")
        low, high = anatomy.spleen_z
        end = scan.z_start + (scan.slices - 1) * scan.slice_spacing
        cut += scan.z_start > low + 5 or end < high - 5
    assert 3 <= cut <= 18


def test_nodules_are_8_to_30_mm_across():
    for seed in range(30):
        for nodule in draw_anatomy(seed).nodules:
            diameters = 2 * nodule.radii
            assert diameters.min() > 7.9 and diameters.max() < 30


def test_the_dataset_has_the_fields_and_files_of_msd(dataset):
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["modality"] == {"0": "CT"}
    assert description["labels"] == {"0": "background", "1": "pancreas", "2": "cancer"}
    assert description["numTraining"] == len(description["training"]) == 3
    assert description["numTest"] == 0 and description["test"] == []
    assert (dataset / "imagesTs").is_dir()
    assert len(set(description["phantom"]["anatomy_seeds"].values())) == 3
    for case in description["training"]:
        assert case["image"].startswith("./imagesTr/pancreas_") and case["label"].startswith("./labelsTr/pancreas_")
        image, label = nib.load(dataset / case["image"]), nib.load(dataset / case["label"])
        assert image.shape == label.shape and np.array_equal(image.affine, label.affine)
        assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")


def test_a_written_case_reads_back_equal_to_make_case(dataset):
    seeds = json.loads((dataset / "dataset.json").read_text())["phantom"]["anatomy_seeds"]
    name, seed = next(iter(seeds.items()))
    hu, label, spacing = make_case(seed, "pancreas", 64)
    volume = read_volume(dataset / "imagesTr" / f"{name}.nii.gz")
    labels = read_labels(dataset / "labelsTr" / f"{name}.nii.gz", volume)
    np.testing.assert_array_equal(volume.array, hu)
    np.testing.assert_array_equal(labels, label)
    np.testing.assert_allclose(volume.spacing, spacing, rtol=1e-6)  # NIfTI stores float32


def test_a_dataset_written_by_two_processes_is_byte_for_byte_the_same(dataset, tmp_path):
    done = []
    other = write_phantom_dataset(
        tmp_path / "again",
        3,
        seed=5,
        task="pancreas",
        matrix=64,
        workers=2,
        progress=lambda what, i, n: done.append((i, n)),
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    files = sorted(p.relative_to(dataset) for p in dataset.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert all((dataset / f).read_bytes() == (other / f).read_bytes() for f in files)


def test_a_folder_with_contents_is_refused_and_not_changed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="not an empty folder"):
        write_phantom_dataset(tmp_path / "mine", 1)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "notes.txt"]
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_failed_run_leaves_no_files(tmp_path):
    def stop(what: str, done: int, cases: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom_dataset(tmp_path / "out", 2, matrix=32, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"task": "heart"}, {"cases": 0}, {"matrix": 8}, {"workers": 0}, {"seed": -1}])
def test_wrong_arguments_are_refused_by_name(tmp_path: Path, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        write_phantom_dataset(tmp_path / "out", **{"cases": 1, **wrong})


def test_region_growing_from_the_click_stays_below_075_mean_dice(spleens):
    scores = []
    for hu, label, spacing in spleens.values():
        d = largest_slice(label > 0)
        x, y = centre_point(label[d] > 0, spacing[1:])
        grown = region_growing(hu, (d, round(y), round(x)), spacing=spacing)
        scores.append(2 * (grown & (label > 0)).sum() / (grown.sum() + (label > 0).sum()))
    assert 0.2 < np.mean(scores) < 0.75, scores


def test_region_growing_finds_an_isolated_ball_of_distinct_density():
    offsets = np.stack(np.meshgrid(*[np.arange(n) - n // 2 for n in (20, 40, 40)], indexing="ij"))
    ball = (offsets**2).sum(0) <= 8**2
    hu = np.where(ball, 60.0, -100.0) + np.random.default_rng(0).normal(0, 10, ball.shape)
    grown = region_growing(hu, (10, 20, 20), opening=3.0, smoothing=1.0)
    assert 2 * (grown & ball).sum() / (grown.sum() + ball.sum()) > 0.9


def test_region_growing_refuses_a_click_outside():
    with pytest.raises(ValueError, match="click inside"):
        region_growing(np.zeros((4, 5, 6)), (0, 5, 0))


@pytest.fixture(scope="module")
def mr_scans():
    return {seed: make_case(seed, "spleen", 64, "MR") for seed in SEEDS}


def test_an_mr_phantom_is_the_same_person_and_has_no_negative_signal(mr_scans):
    for seed, (signal, label, spacing) in mr_scans.items():
        hu, _, ct_spacing = make_case(seed, "spleen", 64)
        assert signal.shape == hu.shape and spacing == ct_spacing and label.any() and signal.min() >= 0
        outside = hu < -980
        assert np.median(signal[outside]) < 0.15 * np.percentile(signal, 99)


def test_an_mr_phantom_has_the_signal_of_its_tissues_at_another_scale_in_each_case(mr_scans):
    fat = []
    for seed, (signal, label, spacing) in mr_scans.items():
        anatomy = draw_anatomy(seed)
        acquisition = as_mr(anatomy, draw_acquisition(anatomy, "spleen", 64))
        fat.append(acquisition.hu["fat"])
        found = np.median(signal[interior(label, spacing)])
        assert found == pytest.approx(acquisition.hu["spleen"], rel=0.1)  # noise raises a magnitude a little
    assert max(fat) > 3 * min(fat) and min(fat) >= 300 and max(fat) <= 8000


def test_a_dataset_of_mr_phantoms_declares_its_modality(tmp_path):
    write_phantom_dataset(tmp_path / "data", 1, matrix=32, modality="MR")
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["modality"] == {"0": "MRI"}
    with pytest.raises(UserError, match="no modality 'PT'"):
        write_phantom_dataset(tmp_path / "other", 1, modality="PT")


def test_a_scan_with_more_slices_covers_the_same_range_with_the_same_organ():
    hu, label, (dz, _, _) = make_case(SEEDS[0], "spleen", 48)
    finer, finer_label, (finer_dz, _, _) = make_case(SEEDS[0], "spleen", 48, slices=120)
    assert len(finer) == 120 and (120 - 1) * finer_dz == pytest.approx((len(hu) - 1) * dz)
    # The reader's contour has its own noise in each slice.
    assert finer_label.sum() * finer_dz == pytest.approx(label.sum() * dz, rel=0.03)
