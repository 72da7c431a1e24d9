"""The table of the kinds of inputs: how each is made, what reads it, and how it is mutated."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import nibabel as nib

from tests.fuzz import mutations as m
from tests.fuzz import readers, seeds
from tests.fuzz.mutations import BYTES, Target


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: of the kind.
        seed: writes a small valid input.
        read: the reader of the project.
        targets: what is mutated, and how.
        is_file: the reader gets a path; bodies of requests are read by the fuzzer.
        names_file: a refusal must name a file or folder of the input, and not only a flag or a case.
        members: names inside of the files, one of which is a name, too.
        warm: work that a process does once, before the first input of the kind.
        share: of the inputs of a run, relative to other kinds; less where a reader is slow.
        needs: a package without which the kind is left out.
    """

    name: str
    seed: seeds.Seed
    read: readers.Reader
    targets: tuple[Target, ...]
    is_file: bool = True
    names_file: bool = True
    members: tuple[str, ...] = ()
    warm: Callable[[], object] = lambda: None
    share: float = 1.0
    needs: str = ""

    @property
    def is_available(self) -> bool:
        """Whether the packages of the kind are installed."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None


_NIFTI = (*BYTES, m.edit_nifti, m.edit_nifti)
_JSON = (m.edit_json, m.edit_json, m.edit_json, m.numbers, m.flip, m.truncate, m.insert)
_TABLE = (m.edit_table, m.edit_table, m.edit_table, m.numbers, m.flip, m.truncate, m.insert)
_LINES = (m.edit_lines, m.edit_lines, m.numbers, m.flip)
_DICOM = (*BYTES, *3 * (m.edit_dicom,))


def _plain(pattern: str, editors: tuple[m.Editor, ...] = BYTES) -> tuple[Target, ...]:
    return (Target(pattern, editors),)


def _container(pattern: str, view: m.View, editors: tuple[m.Editor, ...]) -> tuple[Target, ...]:
    """Return the targets of a container: its content most of the time, and sometimes its own bytes."""
    return (Target(pattern, editors, view), Target(pattern, editors, view), Target(pattern, BYTES))


def _nrrd(pattern: str, voxels: m.View | None = None) -> tuple[Target, ...]:
    inner = (Target(pattern, BYTES, voxels),) if voxels else ()
    return (Target(pattern, _LINES, m.NRRD_HEADER), Target(pattern, _LINES, m.NRRD_HEADER), *_plain(pattern), *inner)


_GZIPPED = m.nrrd_voxels(gzip.decompress, lambda part: gzip.compress(part, 1, mtime=0))
_BZIPPED = m.nrrd_voxels(bz2.decompress, lambda part: bz2.compress(part, 1))
_META = (Target("*.mh[ad]", _LINES, m.meta_header), Target("*.mh[ad]", _LINES, m.meta_header), *_plain("*.*"))
_SERIES = (Target("*.dcm", _DICOM),)
_RESULTS = (*_plain("*.csv", _TABLE), *_plain("cases.csv", _TABLE), *_plain("summary.json", _JSON))
_DATASET = (*3 * _plain("dataset.json", _JSON), *_plain("*.nii.gz"))
_SAFETENSORS = (
    Target("*.safetensors", _JSON, m.safetensors_header),
    Target("*.safetensors", _JSON, m.safetensors_metadata),
    Target("*.safetensors", BYTES),
)

KINDS: tuple[Kind, ...] = (
    # Images
    Kind("NIfTI-1", seeds.nifti("ct.nii"), readers.image, _plain("*.nii", _NIFTI)),
    Kind("NIfTI-2", seeds.nifti("ct.nii", nib.Nifti2Image), readers.image, _plain("*.nii", _NIFTI)),
    Kind("NIfTI with an extension", seeds.nifti_with_extension, readers.image, _plain("*.nii", _NIFTI)),
    Kind("NIfTI gzip", seeds.nifti("ct.nii.gz"), readers.image, _container("*.gz", m.GZIP, _NIFTI)),
    Kind("NIfTI-2 gzip", seeds.nifti("ct.nii.gz", nib.Nifti2Image), readers.image, _container("*.gz", m.GZIP, _NIFTI)),
    Kind("NIfTI bzip2", seeds.compressed(".nii.bz2"), readers.image, _container("*.bz2", m.BZIP2, _NIFTI)),
    Kind("NIfTI pair", seeds.nifti("ct.hdr", nib.Nifti1Pair), readers.image, _plain("*.*", _NIFTI)),
    Kind("NIfTI pair gzip", seeds.compressed(".img.gz"), readers.image, _container("*.gz", m.GZIP, _NIFTI)),
    Kind("NIfTI 4D", seeds.nifti("ct.nii", volumes=3), readers.second_volume, _plain("*.nii", _NIFTI)),
    Kind("NRRD raw", seeds.by_itk("ct.nrrd"), readers.image, _nrrd("*.nrrd")),
    Kind("NRRD gzip", seeds.compressed(".nrrd gzip"), readers.image, _nrrd("*.nrrd", _GZIPPED)),
    Kind("NRRD bzip2", seeds.compressed(".nrrd bzip2"), readers.image, _nrrd("*.nrrd", _BZIPPED)),
    Kind("NRRD detached", seeds.by_itk("ct.nhdr"), readers.image, (*_nrrd("*.nhdr"), *_plain("*.*"))),
    Kind("NRRD detached gzip", seeds.compressed(".nhdr"), readers.image, (*_nrrd("*.nhdr"), *_plain("*.*"))),
    Kind("MetaImage", seeds.by_itk("ct.mha"), readers.image, _META),
    Kind("MetaImage zlib", seeds.compressed(".mha"), readers.image, _META),
    Kind("MetaImage detached", seeds.by_itk("ct.mhd"), readers.image, _META),
    Kind(
        "MetaImage detached zlib",
        seeds.compressed(".mhd"),
        readers.image,
        (*_META, Target("*.zraw", BYTES, m.compressed(zlib.decompress, lambda part: zlib.compress(part, 1)))),
    ),
    Kind("DICOM series", seeds.series(), readers.image, _SERIES),
    Kind("DICOM series resampled", seeds.series(), readers.resampled, _SERIES),
    Kind("DICOM multi-frame", seeds.multi_frame, readers.image, _SERIES),
    Kind("DICOM RLE", seeds.series(rle=True), readers.image, _SERIES, share=0.3),
    Kind("DICOM JPEG-LS", seeds.compressed_series("jpeg-ls"), readers.image, _SERIES, share=0.3, needs="jpeg_ls"),
    Kind("DICOM JPEG 2000", seeds.compressed_series("jpeg-2000"), readers.image, _SERIES, share=0.3),
    Kind("DICOM JPEG", seeds.compressed_series("jpeg"), readers.image, _SERIES, share=0.3),
    Kind(
        "DICOM deflated",
        seeds.compressed_series("deflated"),
        readers.image,
        (Target("*.dcm", BYTES, m.dicom_deflated), Target("*.dcm", _DICOM)),
    ),
    # Labels
    Kind("label map NIfTI", seeds.nifti("a.nii.gz", labels=True), readers.labels, _container("*.gz", m.GZIP, _NIFTI)),
    Kind("label map NRRD", seeds.compressed(".nrrd gzip", labels=True), readers.labels, _nrrd("*.nrrd", _GZIPPED)),
    Kind("segmentation of Slicer", seeds.slicer_segmentation, readers.labels, _nrrd("*.nrrd", _GZIPPED)),
    Kind("DICOM-SEG", seeds.dicom_seg, readers.labels_alone, _SERIES),
    Kind("RTSTRUCT", seeds.structure_set, readers.labels, _SERIES),
    # Prompts and tables
    Kind("prompts", seeds.prompts, readers.prompts, (*3 * _plain("*.json", _JSON), *_plain("*.gz"))),
    Kind("markups of Slicer", seeds.text("m.mrk.json", seeds.MARKUPS), readers.prompts, _plain("*.json", _JSON)),
    Kind(
        "cases",
        seeds.cases_table,
        readers.cases,
        (*_plain("*.csv", _TABLE), *_plain("*.json", _JSON)),
        names_file=False,
    ),
    Kind("splits of nnU-Net", seeds.text("s.json", seeds.NNUNET_SPLITS), readers.splits, _plain("*.json", _JSON)),
    Kind("split of a run", seeds.text("split.json", seeds.RUN_SPLIT), readers.run_split, _plain("*.json", _JSON)),
    Kind("patients", seeds.text("patients.csv", seeds.PATIENTS), readers.patients, _plain("*.csv", _TABLE)),
    # Datasets
    Kind("dataset of the Decathlon", seeds.decathlon, readers.dataset, _DATASET),
    Kind("dataset of nnU-Net", seeds.nnunet, readers.dataset, _DATASET),
    Kind("test set of the Decathlon", seeds.decathlon, readers.test_set, _plain("dataset.json", _JSON)),
    Kind("names of labels", seeds.decathlon, lambda path: readers.label_names(path / "dataset.json"), _DATASET[:1]),
    Kind(
        "archive of a dataset",
        seeds.archive,
        readers.dataset,
        (Target("*.tar", (m.edit_tar_header, *BYTES), m.tar_header), *_plain("*.tar")),
        members=("case_0", "case_1"),
    ),
    Kind(
        "prepared dataset", seeds.prepared, readers.prepared, (*_plain("index.json", _JSON), *_plain("*.arrayrecord"))
    ),
    Kind("prepared dataset of version 0.1", seeds.earlier("prepared"), readers.prepared, _plain("index.json", _JSON)),
    # Runs and results
    Kind("experiment of a run", seeds.run_config, readers.run_config, _plain("*.json", _JSON)),
    Kind("data of a run", seeds.run_data, readers.run_data, _plain("*.json", _JSON)),
    Kind(
        "run of version 0.1",
        seeds.earlier("run"),
        readers.training_run,
        (*_plain("split.json", _JSON), *_plain("config.json", _JSON)),
        share=0.5,
    ),
    Kind(
        "log of a run",
        seeds.earlier("whole_log.csv"),
        readers.run_log,
        _plain("*.csv", _TABLE),
        warm=readers.list_of_fonts,
        share=0.2,
    ),
    Kind("results", seeds.results, readers.results, _RESULTS),
    Kind("summary of results", seeds.results, readers.summary, _plain("summary.json", _JSON)),
    Kind("journal of an evaluation", seeds.journal, readers.journal, _plain(".*.jsonl", (m.numbers, *BYTES))),
    Kind(
        "record of a download",
        seeds.text("source.json", {"repository": "a/b", "file": "x.pt", "revision": "c" * 40, "sha256": "a" * 64}),
        readers.download_record,
        _plain("*.json", _JSON),
    ),
    Kind("feature cache", seeds.feature_cache, readers.features, _plain("features.json", _JSON)),
    # Models
    Kind("description of a checkpoint", seeds.native_config, readers.checkpoint_info, _plain("*.json", _JSON)),
    Kind(
        "checkpoint",
        seeds.earlier("nano_checkpoint"),
        readers.checkpoint,
        (*_plain("*"), *_plain("config.json", _JSON)),
        share=0.1,
    ),
    Kind(
        "checkpoint of a U-Net",
        seeds.earlier("unet_checkpoint"),
        readers.checkpoint,
        (*_plain("*"), *_plain("config.json", _JSON)),
        share=0.1,
    ),
    Kind(
        "safetensors",
        seeds.converted("w.safetensors", "meta"),
        readers.foreign_checkpoint,
        _SAFETENSORS,
        warm=readers.shapes_of_presets,
        share=0.5,
    ),
    Kind(
        "native safetensors",
        seeds.converted("n.safetensors", "native"),
        readers.foreign_checkpoint,
        _SAFETENSORS,
        warm=readers.shapes_of_presets,
        share=0.5,
    ),
    Kind("adapters", seeds.adapters, readers.adapters, _SAFETENSORS),
    Kind(
        "transformers folder",
        seeds.transformers_folder,
        readers.foreign_checkpoint,
        (*_plain("*.json", _JSON), *_SAFETENSORS),
        warm=readers.shapes_of_presets,
        share=0.5,
    ),
    Kind(
        "PyTorch file",
        seeds.converted("w.pt"),
        readers.foreign_checkpoint,
        (
            Target("*.pt", (m.edit_pickle,), m.zip_member("data.pkl$", zipfile.ZIP_STORED)),
            Target("*.pt", BYTES, m.zip_member("", zipfile.ZIP_STORED)),
            *_plain("*.pt"),
        ),
        needs="torch",
        warm=readers.shapes_of_presets,
        share=0.5,
    ),
    Kind(
        "PyTorch file of version 1.5",
        seeds.old_torch_file,
        readers.foreign_checkpoint,
        _plain("*.pth", (*BYTES, m.edit_pickle)),
        needs="torch",
        warm=readers.shapes_of_presets,
        share=0.5,
    ),
    Kind(
        "case of SEGFM3D",
        seeds.challenge_case,
        readers.challenge_case,
        (
            Target("*.npz", (*BYTES, m.edit_pickle), m.zip_member("", zipfile.ZIP_DEFLATED)),
            Target("*.npz", (m.edit_pickle,), m.zip_member("clicks", zipfile.ZIP_STORED)),
            *_plain("*.npz"),
        ),
    ),
    # Requests
    Kind(
        "messages of the page",
        seeds.page_messages,
        readers.page_messages,
        (Target("*.txt", _JSON, m.one_line),),
        is_file=False,
    ),
    Kind("array of nnInteractive", seeds.nnia_array, readers.nnia_array, _plain("*.nnia"), is_file=False),
    Kind(
        "fields of nnInteractive",
        seeds.text("body.json", seeds.NNINTERACTIVE),
        readers.nninteractive_fields,
        _plain("*.json", _JSON),
        is_file=False,
    ),
    Kind(
        "form of ITK-SNAP",
        seeds.itksnap_form,
        readers.itksnap_form,
        _plain("*.form", (m.numbers, *BYTES)),
        is_file=False,
    ),
)
