"""The functions of the project that read each kind of input, called as the commands and the server call them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.training.features.cache import FeatureKey
from sam2_3dmed_jax.volume.geometry import Grid, Volume

Reader = Callable[[Path], object]
SHAPE, VOXELS = (12, 10, 6), 10**7  # of the images of requests; the server's limit of voxels
FEATURE_KEY = FeatureKey("a" * 64, "nano", 64, "float32", "soft_tissue", "tiny", {"spacing": [None, None, None]})


@functools.cache
def like() -> Volume:
    """Return the volume that prompts and labels belong to, on the grid of `seeds.scan`."""
    from tests.fuzz import seeds

    grid = Grid(seeds.SHAPE, seeds.AFFINE, source="ct.nii.gz")
    return Volume(np.zeros(grid.canonical_shape, np.float32), grid, "CT")


def image(path: Path) -> object:
    """Read an image."""
    from sam2_3dmed_jax.volume.io import read_volume

    return read_volume(path)


def second_volume(path: Path) -> object:
    """Read the second volume of a 4D image."""
    from sam2_3dmed_jax.volume.io import read_volume

    return read_volume(path, index=1)


def resampled(path: Path) -> object:
    """Read a series with slices at any place, and without the unreadable ones."""
    from sam2_3dmed_jax.volume.io import read_volume

    return read_volume(path, resample=True, skip_unreadable=True)


def labels(path: Path) -> object:
    """Read labels on the grid of the image; they may overlap."""
    from sam2_3dmed_jax.volume.io import open_labels

    file = open_labels(path)
    return file.read(like().grid)


def labels_alone(path: Path) -> object:
    """Read labels of DICOM on their own grid."""
    from sam2_3dmed_jax.volume.io import read_label_layers

    return read_label_layers(path, _series_volume())


@functools.cache
def _series_volume() -> Volume:
    from sam2_3dmed_jax.volume.io import read_volume
    from tests.fuzz import seeds

    with tempfile.TemporaryDirectory() as folder:
        return read_volume(seeds.series()(Path(folder)))


def prompts(path: Path) -> object:
    """Read a file of prompts or of markups."""
    from sam2_3dmed_jax.prompts.files import read_prompt_files

    return read_prompt_files([path], like())


def cases(path: Path) -> object:
    """Read a table of cases, and the prompts of each."""
    from sam2_3dmed_jax.prompts.case_table import read_cases
    from sam2_3dmed_jax.prompts.flags import gather_prompts
    from sam2_3dmed_jax.volume.io import read_volume

    for case in read_cases(path):
        volume = read_volume(case.image, index=case.index)
        gather_prompts(case.prompts, volume)


def splits(path: Path) -> object:
    """Read a file of splits."""
    from sam2_3dmed_jax.data.split_files import read_splits

    return read_splits(path)


def run_split(path: Path) -> object:
    """Read the split of a run, and its description."""
    from sam2_3dmed_jax.data.split_choice import checked_settings
    from sam2_3dmed_jax.data.split_files import read_split_description, read_splits

    read_splits(path)
    return checked_settings(read_split_description(path), path)


def patients(path: Path) -> object:
    """Read a table of patients."""
    from sam2_3dmed_jax.data.split_files import read_patients

    return read_patients(path, ["case_0", "case_1"])


def dataset(path: Path) -> object:
    """Find the cases of a dataset, and read the first one, of an archive too."""
    from sam2_3dmed_jax.data.archive import unpack_case
    from sam2_3dmed_jax.data.datasets import dataset_fingerprint, read_dataset, scan_modality
    from sam2_3dmed_jax.volume.io import read_labels, read_volume

    found = read_dataset(path)
    scan_modality(found)
    dataset_fingerprint(found)
    with tempfile.TemporaryDirectory() as folder, unpack_case(found, found.cases[0], folder) as case:
        volume = read_volume(case.image)
        return read_labels(case.label, volume)


def test_set(path: Path) -> object:
    """Find the test images of a task."""
    from sam2_3dmed_jax.data.datasets import read_test_set

    return read_test_set(path)


def label_names(path: Path) -> object:
    """Read the names of labels."""
    from sam2_3dmed_jax.data.dataset_json import read_label_names

    return read_label_names(path, "--classes")


def prepared(path: Path) -> object:
    """Read the index of a prepared dataset and all its slices."""
    from sam2_3dmed_jax.data.prepared import read_prepared

    found = read_prepared(path)
    for case in found.cases:
        case.positions_mm()
        found.read(case, range(min(case.shape[0], 8)))


def run_config(path: Path) -> object:
    """Read the experiment of a run."""
    from sam2_3dmed_jax.training.run_folder import read_record

    return read_record(path, "choose another --out")


def run_data(path: Path) -> object:
    """Read the data of a run."""
    from sam2_3dmed_jax.data.run_data import read_run_data

    return read_run_data(path)


def training_run(path: Path) -> object:
    """Read the run of a checkpoint, whose folder is `path`."""
    from sam2_3dmed_jax.data.held_out import read_run

    run = read_run(str(path / "final"))
    return run and (run.trained, run.modality)


def run_log(path: Path) -> object:
    """Read the log of a run as a resumed run does, in a copy, because it is written again; and draw its curve."""
    from sam2_3dmed_jax.pictures.training_curve import training_curve
    from sam2_3dmed_jax.training.log import Log

    log = Log.__new__(Log)
    log._path, log._columns = path, ("step", "loss", "dice_inner", "seconds")
    log._rows = log._read(10**9)
    log.best("dice_inner")
    with tempfile.TemporaryDirectory() as folder:
        training_curve(Path(folder, "curve.png"), path)


def list_of_fonts() -> object:
    """Let Matplotlib list the fonts of the machine, which it announces on stderr if it takes long."""
    import matplotlib.font_manager

    return matplotlib.font_manager


def results(path: Path) -> object:
    """Read the results of an evaluation and summarise them, as a comparison does."""
    from sam2_3dmed_jax.evaluation.result_files import read_fixed_cost, read_results

    read_fixed_cost(path)
    return read_results(path)


def summary(path: Path) -> object:
    """Read the summary of an evaluation for a model card."""
    from sam2_3dmed_jax.export.model_card import read_summary

    return read_summary(path)


def journal(path: Path) -> object:
    """Read the journal of an unfinished evaluation, which is ignored if it is damaged."""
    from sam2_3dmed_jax.evaluation.journal import Journal

    return Journal(path, {"a": 1}).get("case_0")


def checkpoint_info(path: Path) -> object:
    """Read the description of a checkpoint."""
    from sam2_3dmed_jax.model.checkpoint import read_info

    return read_info(path).has_random_weights


def checkpoint(path: Path) -> object:
    """Load a checkpoint."""
    from sam2_3dmed_jax.model.checkpoint import load_model

    return load_model(path)


def foreign_checkpoint(path: Path) -> object:
    """Open a checkpoint of another project, recognise its model and read its tensors."""
    from weights_conversion.opening import open_source
    from weights_conversion.presets import recognise
    from weights_conversion.refusal import require_fit

    source = open_source(path)
    for name in list(source.tensors)[:20]:
        source.read(name)
    return require_fit(source, *recognise(source, None), None)


def shapes_of_presets() -> object:
    """Compute what recognising a checkpoint compares it with; it takes a process many seconds, once."""
    from sam2_3dmed_jax.sam2.presets import PRESETS
    from weights_conversion.presets import native_shapes, plain

    return [native_shapes(plain(preset)) for preset in PRESETS]


def adapters(path: Path) -> object:
    """Read a file of adapters."""
    from sam2_3dmed_jax.model.adapter_file import read_adapters

    return read_adapters(path)


def features(path: Path) -> object:
    """Check the folder of a feature cache."""
    from sam2_3dmed_jax.training.features.cache import FeatureCache

    return FeatureCache(str(path), FEATURE_KEY, {}).check()


def challenge_case(path: Path) -> object:
    """Read a case of SEGFM3D with its reference."""
    from experiments.segfm3d.case import read_case, read_evaluation_case

    read_case(path)
    return read_evaluation_case(path, None)


def download_record(path: Path) -> object:
    """Read the record of a download."""
    from sam2_3dmed_jax.hub.download import read_record

    return read_record(path)


# Requests: the file is the body.


def page_messages(path: Path) -> object:
    """Parse each line as a message of the page."""
    from sam2_3dmed_jax.server.page.messages import parse_message

    for line in path.read_bytes().decode("utf-8", "replace").split("\n"):
        parse_message(line, SHAPE)


def nnia_array(path: Path) -> object:
    """Unpack an array of nnInteractive."""
    from sam2_3dmed_jax.server.nninteractive import nnia

    return nnia.unpack(path.read_bytes(), VOXELS, nnia.IMAGE_DTYPES, 4)


def nninteractive_fields(path: Path) -> object:
    """Parse the fields of nnInteractive's requests."""
    from sam2_3dmed_jax.server.bodies import parse_json_object
    from sam2_3dmed_jax.server.nninteractive import axes, interactions

    bodies = parse_json_object(path.read_bytes())
    whole = {name: bodies.get(name) if isinstance(bodies.get(name), dict) else {} for name in ("point", "box", "lasso")}
    axes.parse_spacing(bodies.get("image_properties"))
    interactions.point(whole["point"])
    interactions.flag(whole["point"], "run_prediction", True)
    interactions.box(whole["box"])
    return interactions.lasso(np.zeros((3, 3, 1), np.uint8), whole["lasso"])


def itksnap_form(path: Path) -> object:
    """Unpack an image of ITK-SNAP."""
    from sam2_3dmed_jax.server.bodies import parse_json_object
    from sam2_3dmed_jax.server.itksnap.forms import parse_form
    from sam2_3dmed_jax.server.itksnap.images import parse_geometry, unpack_voxels
    from tests.helpers.itksnap_client import BOUNDARY

    parts = parse_form(f"multipart/form-data; boundary={BOUNDARY}", path.read_bytes())
    if not parts.keys() >= {"file", "metadata"}:
        raise UserError("the form does not have the parts file and metadata")
    geometry = parse_geometry(parse_json_object(bytes(parts["metadata"]), "metadata"), VOXELS)
    return unpack_voxels(parts["file"], geometry.shape)
