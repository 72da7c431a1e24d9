"""Small valid inputs of every kind, written as other programs and this one write them.

Each function writes into an empty folder and returns the path that the reader of the kind gets.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless
from safetensors.numpy import load_file, save

from sam2_3dmed_jax.config import ExperimentConfig, ModelConfig, PreprocessingConfig
from sam2_3dmed_jax.data.case_content import RecordedCase
from sam2_3dmed_jax.data.run_data import AcceptedChange, RunData, write_run_data
from sam2_3dmed_jax.evaluation import result_files
from sam2_3dmed_jax.evaluation.journal import FILE as JOURNAL
from sam2_3dmed_jax.metrics.prompt_distance import BINS_MM
from sam2_3dmed_jax.model.adapter_file import ADAPTERS_KEY
from sam2_3dmed_jax.model.checkpoint import CONFIG_KEY, FORMAT, CheckpointInfo
from sam2_3dmed_jax.server.nninteractive import nnia
from sam2_3dmed_jax.training.features.cache import CASES, INDEX
from sam2_3dmed_jax.training.run_folder import record
from tests.helpers import compressed_files, dicom_files, segfm3d_files, segment_files
from tests.helpers.itksnap_client import image_form
from tests.helpers.prepared_files import write_prepared

ROOT = Path(__file__).parents[2]
SHAPE = (12, 10, 6)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SEGMENTS = "dcm"  # the folder with the series that segmentations refer to

Seed = Callable[[Path], Path]


def scan() -> np.ndarray:
    """Return a CT `[i, j, k]`, int16."""
    values = np.random.default_rng(0).normal(0, 60, SHAPE).astype(np.int16)
    values[3:8, 3:8, 2:5] += 200
    return values


def organ() -> np.ndarray:
    """Return its labels `[i, j, k]`, uint8."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:8, 3:8, 2:5] = 1
    labels[5:7, 5:7, 2:4] = 2
    return labels


def nifti(name: str, kind: type = nib.Nifti1Image, labels: bool = False, volumes: int = 1) -> Seed:
    """Return the seed of a NIfTI file."""

    def write(folder: Path) -> Path:
        array = organ() if labels else scan()
        nib.save(kind(np.stack([array] * volumes, -1) if volumes > 1 else array, AFFINE), folder / name)
        return folder / name

    return write


def nifti_with_extension(folder: Path) -> Path:
    """Write a NIfTI file with a header extension."""
    image = nib.Nifti1Image(scan(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"made for tests"))
    nib.save(image, folder / "ct.nii")
    return folder / "ct.nii"


def compressed(form: str, labels: bool = False) -> Seed:
    """Return the seed of a format of `tests.helpers.compressed_files`."""

    def write(folder: Path) -> Path:
        return compressed_files.WRITERS[form](folder, organ() if labels else scan(), compressed_files.intact)

    return write


def by_itk(name: str) -> Seed:
    """Return the seed of a file that SimpleITK writes uncompressed."""

    def write(folder: Path) -> Path:
        import SimpleITK

        image = SimpleITK.GetImageFromArray(scan().transpose(2, 1, 0))
        image.SetSpacing((1, 1, 2))
        SimpleITK.WriteImage(image, str(folder / name))
        return folder / name

    return write


def series(**options: bool) -> Seed:
    """Return the seed of a DICOM series of 3 slices."""

    def write(folder: Path) -> Path:
        return dicom_files.write_series(folder / SEGMENTS, array=dicom_files.ramp((3, 6, 7)), **options)

    return write


def compressed_series(syntax: str) -> Seed:
    """Return the seed of a DICOM series in a compressed transfer syntax."""

    def write(folder: Path) -> Path:
        path = series()(folder)
        for file in sorted(path.iterdir()):
            ds = pydicom.dcmread(file)
            if syntax == "jpeg-ls":
                ds.compress(JPEGLSLossless)
            elif syntax == "deflated":
                ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
            else:
                _by_pillow(ds, "JPEG2000" if syntax == "jpeg-2000" else "JPEG")
            dicom_files.save(ds, file)
        return path

    return write


def _by_pillow(ds: pydicom.Dataset, form: str) -> None:
    """Compress a slice to 8 bits with Pillow, the only encoder of both syntaxes that is installed with the tests."""
    from PIL import Image

    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    buffer = io.BytesIO()
    pixels = Image.fromarray(np.arange(ds.Rows * ds.Columns, dtype=np.uint8).reshape(ds.Rows, ds.Columns))
    pixels.save(buffer, form, **({"irreversible": False, "no_jp2": True} if form == "JPEG2000" else {}))
    ds.PixelData = pydicom.encaps.encapsulate([buffer.getvalue()])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless if form == "JPEG2000" else JPEGBaseline8Bit


def multi_frame(folder: Path) -> Path:
    """Write an enhanced CT."""
    return dicom_files.write_multi_frame(folder / "enhanced.dcm", dicom_files.ramp((3, 6, 7)))


def dicom_seg(folder: Path) -> Path:
    """Write a DICOM-SEG."""
    series()(folder)
    mask = np.zeros((7, 6, 3), bool)
    mask[2:5, 1:4, 1:] = True
    path = segment_files.write_segments_by_highdicom(folder / "seg.dcm", folder / SEGMENTS, [mask, ~mask])
    shutil.rmtree(folder / SEGMENTS)
    return path


def structure_set(folder: Path) -> Path:
    """Write an RTSTRUCT."""
    contours = [segment_files.rectangle(AFFINE, (2, 2), (7, 7), k) for k in (2, 3, 4)]
    return segment_files.write_structures(folder / "rt.dcm", {1: contours, 2: contours[:1]})


def slicer_segmentation(folder: Path) -> Path:
    """Write a .seg.nrrd of two layers."""
    layers, names = np.stack([organ(), organ() % 2]), [(0, 1, "liver"), (0, 2, "tumour"), (1, 1, "spleen")]
    return segment_files.write_slicer_segments(folder / "a.seg.nrrd", layers, AFFINE, names)


# Small texts


def text(name: str, content: object) -> Seed:
    """Return the seed of a text, or of values as JSON."""

    def write(folder: Path) -> Path:
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        return folder / name

    return write


def prompts(folder: Path) -> Path:
    """Write prompts of every type, with the label map that two of them name."""
    nifti("lab.nii.gz", labels=True)(folder)
    points = [{"voxel": [6, 5, 2]}, {"mm": [-4.0, -6.0, 4.0], "label": 0}]
    spleen = {"id": 1, "name": "spleen", "code": "78961009", "color": "#9d6ca2", "points": points}
    content = [
        {**spleen, "boxes": [{"voxel": [3, 3, 3, 9, 9, 4]}]},
        {"id": 2, "mask": {"file": "lab.nii.gz", "value": 1}},
        {"id": 3, "scribble": {"file": "lab.nii.gz", "inside": 1, "outside": 2}},
    ]
    return text("p.json", {"objects": content})(folder)


_NODE = {"coordinateSystem": "LPS", "coordinateUnits": "mm"}
MARKUPS = {
    "markups": [
        {
            **_NODE,
            "type": "Fiducial",
            "name": "F",
            "controlPoints": [{"id": "1", "label": "F-1", "position": [4.0, 6.0, 4.0], "positionStatus": "defined"}],
        },
        {
            **_NODE,
            **{"type": "ROI", "name": "R", "roiType": "Box", "insideOut": False, "center": [6.0, 5.0, 4.0]},
            **{"size": [4, 4, 4], "orientation": [1, 0, 0, 0, 1, 0, 0, 0, 1]},
        },
    ]
}
CASES_TABLE = """image,name,volume,point,point_mm,box,mask,scribble,prompts,reference
ct.nii.gz,a,,"6,5,2",,,,,,
ct.nii.gz,b,0,"6,5,2;5,5,2,0","-4,-6,4",,,,,
ct.nii.gz,c,,,,"3,3,3,9,9,4",lab.nii.gz,,,lab.nii.gz
ct.nii.gz,d,,,,,,lab.nii.gz,p.json,
"""
IDS = [f"case_{number}" for number in range(5)]
NNUNET_SPLITS = [{"train": IDS[:4], "val": IDS[4:]}, {"train": IDS[1:], "val": IDS[:1]}]
RUN_SPLIT = {"how": {"kind": "drawn", "seed": 0}, "train": IDS[:3], "val": IDS[3:4], "test": IDS[4:]}
PATIENTS = "case,patient\n" + "".join(f"{id},p{number}\n" for number, id in enumerate(IDS))


def cases_table(folder: Path) -> Path:
    """Write a table of cases with all files that it names."""
    prompts(folder)
    nifti("ct.nii.gz")(folder)
    return text("cases.csv", CASES_TABLE)(folder)


# Datasets


def decathlon(folder: Path) -> Path:
    """Write a dataset of the Decathlon with two cases and a test image."""
    for part, labels in (("imagesTr", False), ("labelsTr", True), ("imagesTs", False)):
        (folder / "data" / part).mkdir(parents=True)
        for id in IDS[:2]:
            nifti(f"data/{part}/{id}.nii.gz", labels=labels)(folder)
    described = {
        **{"name": "Tiny", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen", "2": "tumour"}},
        "numTraining": 2,
        "training": [{"image": f"./imagesTr/{id}.nii.gz", "label": f"./labelsTr/{id}.nii.gz"} for id in IDS[:2]],
        "test": ["./imagesTs/case_0.nii.gz", "./imagesTs/case_1.nii.gz"],
    }
    text("data/dataset.json", described)(folder)
    return folder / "data"


def nnunet(folder: Path) -> Path:
    """Write a dataset of nnU-Net."""
    path = decathlon(folder)
    for file in list((path / "imagesTr").iterdir()):
        file.rename(file.with_name(file.name.replace(".nii", "_0000.nii")))
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "spleen": 1, "tumour": 2}}
    text("data/dataset.json", {**described, "numTraining": 2, "file_ending": ".nii.gz"})(folder)
    return path


def archive(folder: Path) -> Path:
    """Write the dataset of the Decathlon as a tar."""
    decathlon(folder)
    with tarfile.open(folder / "data.tar", "w") as tar:
        tar.add(folder / "data", "Task_Tiny")
    shutil.rmtree(folder / "data")
    return folder / "data.tar"


def prepared(folder: Path) -> Path:
    """Write a prepared dataset of two cases."""
    values = scan().transpose(2, 1, 0).copy(), organ().transpose(2, 1, 0).copy()
    write_prepared(folder / "prepared", dict.fromkeys(IDS[:2], values), {1: "spleen", 2: "tumour"})
    return folder / "prepared"


# Runs, results and models


def run_config(folder: Path) -> Path:
    """Write the experiment of a run."""
    return text("config.json", record(ExperimentConfig(ModelConfig("nano", 64))))(folder)


def earlier(name: str) -> Seed:
    """Return the seed of a file or folder that version 0.1 wrote."""

    def write(folder: Path) -> Path:
        with tarfile.open(ROOT / "tests/compatibility/data/version_0_1.tar.xz") as tar:
            tar.extractall(folder / ".all", filter="data")
        (folder / ".all" / name).rename(folder / name)
        shutil.rmtree(folder / ".all")
        return folder / name

    return write


def run_data(folder: Path) -> Path:
    """Write the data of a run."""
    cases = {id: RecordedCase(None, "a" * 64, "b" * 64) for id in IDS}
    accepted = (AcceptedChange(3, "1 changed (case_0)", {IDS[0]: cases[IDS[0]]}),)
    write_run_data(folder / "data.json", RunData((1, 2), {**cases, "refused": None}, accepted))
    return folder / "data.json"


def results(folder: Path) -> Path:
    """Write the results of an evaluation, by the command."""
    from sam2_3dmed_jax.commands.main import main

    for part, labels in (("p", organ() > 0), ("q", organ())):
        (folder / part).mkdir()
        for id in IDS[:2]:
            nib.save(nib.Nifti1Image(labels.astype(np.uint8), AFFINE), folder / part / f"{id}.nii.gz")
    words = ["--predictions", str(folder / "p"), "--references", str(folder / "q"), "--classes", "1=pancreas,2=cancer"]
    assert main(["evaluate", *words, "--out", str(folder / "scores")]) == 0
    for part in ("p", "q"):
        shutil.rmtree(folder / part)
    distances = [f"case_0,pancreas,{low:g},{high:g},3,0.9,,," for low, high in BINS_MM[:3]]
    header = ",".join(result_files.DISTANCE_COLUMNS)
    (folder / "scores" / result_files.DISTANCE).write_text("\n".join([header, *distances]) + "\n")
    return folder / "scores"


def journal(folder: Path) -> Path:
    """Write the journal of an unfinished evaluation."""
    lines = [json.dumps({"a": 1}), *(json.dumps([id, [{"case": id, "class": "organ", "dice": 0.5}]]) for id in IDS)]
    (folder / JOURNAL).write_text("\n".join(lines) + "\n")
    return folder


def native_config(folder: Path) -> Path:
    """Write the description of a native checkpoint, without weights."""
    info = CheckpointInfo(ModelConfig("nano", 64), PreprocessingConfig(), {"weights": "random", "seed": 0}, 1.5)
    (folder / "ckpt" / "weights").mkdir(parents=True)
    text("ckpt/config.json", {"format": FORMAT, **asdict(info)})(folder)
    return folder / "ckpt"


def converted(name: str, layout: str = "") -> Seed:
    """Return the seed of the checkpoint of version 0.1, converted to another layout."""

    def write(folder: Path) -> Path:
        from weights_conversion.convert import convert_checkpoint

        source = earlier("nano_checkpoint")(folder)
        convert_checkpoint(source, folder / name, to=layout or None, drop_extra=layout != "native")
        shutil.rmtree(source)
        return folder / name

    return write


def adapters(folder: Path) -> Path:
    """Write a file of adapters."""
    description = json.dumps({"format": FORMAT, **asdict(CheckpointInfo(ModelConfig("nano", 64)))})
    base = json.dumps({"format": FORMAT, "scale": 2.0, "base_sha256": "a" * 64, "base": "b.safetensors"})
    low_rank = {"x.lora_a": np.ones((8, 2), np.float32), "x.lora_b": np.ones((2, 8), np.float32)}
    content = save({**low_rank, "y.bias": np.ones(4, np.float32)}, {ADAPTERS_KEY: base, CONFIG_KEY: description})
    (folder / "a.safetensors").write_bytes(content)
    return folder / "a.safetensors"


def transformers_folder(folder: Path) -> Path:
    """Write the folder of a transformers model in two files."""
    path = converted("hf", "transformers")(folder)
    tensors = load_file(path / "model.safetensors")
    names, shards = sorted(tensors), {}
    for number in (0, 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        part = {name: tensors[name] for name in names[number::2]}
        (path / shard).write_bytes(save(part, {"format": "pt"}))
        shards |= dict.fromkeys(part, shard)
    (path / "model.safetensors").unlink()
    return text("hf/model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": shards})(folder).parent


def old_torch_file(folder: Path) -> Path:
    """Write a PyTorch file in the format before version 1.6."""
    import torch

    path = converted("w.pt")(folder)
    torch.save(torch.load(path, weights_only=True), folder / "old.pth", _use_new_zipfile_serialization=False)
    path.unlink()
    return folder / "old.pth"


def feature_cache(folder: Path) -> Path:
    """Write the index of a feature cache, and the record of a case."""
    from tests.fuzz.readers import FEATURE_KEY

    (folder / "features" / CASES).mkdir(parents=True)
    text(f"features/{INDEX}", {"format": 1, "key": asdict(FEATURE_KEY)})(folder)
    text(f"features/{CASES}/case_0.json", {"case": "a" * 64, "bytes": 100})(folder)
    return folder / "features"


def challenge_case(folder: Path) -> Path:
    """Write a case of SEGFM3D with boxes and clicks."""
    clicks = [{"fg": [[4, 4, 4]], "bg": [[0, 0, 0]]}, {"fg": [[7, 8, 8]], "bg": []}]
    order = [["fg", "bg"], ["fg"]]
    arrays = {"clicks": np.array(clicks, object), "clicks_order": np.array(order, object)}
    small = {"imgs": segfm3d_files.image()[:, ::2, ::2].copy(), "gts": segfm3d_files.reference()[:, ::2, ::2].copy()}
    boxes = segfm3d_files.boxes(small["gts"])
    return segfm3d_files.write_case(folder / "case.npz", with_boxes=False, **small, **arrays, boxes=boxes)


# Requests


def nnia_array(folder: Path) -> Path:
    """Write the body with an image for nnInteractive."""
    (folder / "body.nnia").write_bytes(nnia.pack(scan()[None].astype(np.float32)))
    return folder / "body.nnia"


def itksnap_form(folder: Path) -> Path:
    """Write the body with an image of ITK-SNAP."""
    (folder / "body.form").write_bytes(image_form(scan(), AFFINE))
    return folder / "body.form"


PAGE_MESSAGES = [
    {"type": "open", "image": "ct.nii.gz", "upload": ""},
    {"type": "click", "object": 1, "voxel": [3, 4, 2], "inside": True},
    {"type": "box", "object": 1, "first": [1, 1, 1], "second": [5, 5, 2]},
    {"type": "scribble", "object": 2, "z": 1, "inside": {"box": [1, 1, 4, 2], "bits": "/w=="}},
    {"type": "draw", "object": 2, "z": 1, "mask": {"box": [0, 0, 8, 1], "bits": "8A=="}},
    {"type": "name", "object": 1, "name": "liver", "color": "#00ff00"},
    {"type": "clear", "object": 1},
    {"type": "look", "z": 3},
]


def page_messages(folder: Path) -> Path:
    """Write one message of the page per line."""
    return text("messages.txt", "\n".join(map(json.dumps, PAGE_MESSAGES)))(folder)


NNINTERACTIVE = {
    "point": {"coordinates": [3, 4, 2], "include_interaction": True, "run_prediction": True},
    "box": {"bbox_coords": [[1, 5], [2, 6], [1, 2]], "include_interaction": True},
    "lasso": {"interaction_bbox": [[0, 3], [0, 3], [1, 2]], "include_interaction": False},
    "image_properties": {"spacing": [2.0, 1.0, 1.0]},
}
