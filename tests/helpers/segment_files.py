"""Segmentations and structure sets for tests, written by highdicom and pydicom or byte by byte, not by this project."""

import gzip
import json
import subprocess
import sysconfig
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def slice_files(series):
    return [pydicom.dcmread(file) for file in sorted(Path(series).iterdir())]


def write_segments_by_highdicom(path, series, masks, kind="BINARY"):
    """Write masks `[i, j, k]` on the grid of a series; `kind` LABELMAP stores the last mask where they overlap."""
    sources = sorted(slice_files(series), key=lambda each: float(each.ImagePositionPatient[2]))
    pixels = np.stack([mask.transpose(2, 1, 0) for mask in masks], axis=-1)
    if kind == "LABELMAP":
        pixels = (pixels * np.arange(1, len(masks) + 1)).max(axis=-1)
    tissue = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    manual = highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
    highdicom.seg.Segmentation(
        sources,
        pixels.astype(np.float32) * 0.6 if kind == "FRACTIONAL" else pixels.astype(np.uint8),
        kind,
        [highdicom.seg.SegmentDescription(n, f"segment {n}", tissue, tissue, manual) for n in range(1, len(masks) + 1)],
        *(highdicom.UID(), 100, highdicom.UID(), 1, "maker", "model", "1", "serial"),
    ).save_as(path)
    return path


def write_segments_by_dcmqi(folder, series, masks, affine):
    """Write masks `[i, j, k]` of a grid as one object with dcmqi; they may overlap."""
    names = []
    for number, mask in enumerate(masks, 1):
        image = SimpleITK.GetImageFromArray(mask.transpose(2, 1, 0).astype(np.uint8))
        lps = LPS @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        names.append(str(folder / f"in{number}.nrrd"))
        SimpleITK.WriteImage(image, names[-1])
    tissue = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    segment = {
        "labelID": 1,
        "SegmentAlgorithmType": "MANUAL",
        "SegmentedPropertyCategoryCodeSequence": tissue,
        "SegmentedPropertyTypeCodeSequence": tissue,
    }
    meta = {
        "ContentCreatorName": "Maker",
        "SeriesNumber": "300",
        "InstanceNumber": "1",
        "segmentAttributes": [[{**segment, "SegmentDescription": f"segment {n}"}] for n in range(1, len(masks) + 1)],
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    command = [str(Path(sysconfig.get_path("scripts")) / "itkimage2segimage"), "--inputImageList", ",".join(names)]
    command += ["--skip", "1", "--inputDICOMDirectory", str(series), "--inputMetadata", str(folder / "meta.json")]
    subprocess.run([*command, "--outputDICOM", str(folder / "dcmqi.dcm")], check=True, capture_output=True)
    return folder / "dcmqi.dcm"


def write_structures(path, structures):
    """Write a structure set: contours, `[N, 3]` LPS mm each, by structure number."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = RTStructureSetStorage, generate_uid(), "RTSTRUCT"
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, contours in structures.items():
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber = number, f"structure {number}", number
        drawn.ContourSequence = []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR" if len(points) > 1 else "POINT"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{x:.4f}" for x in np.ravel(points)]
            drawn.ContourSequence.append(contour)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def rectangle(affine, low, high, k):
    """Return the corners in LPS mm of a rectangle between two (i, j), fractions allowed, on slice k of a RAS affine."""
    (i0, j0), (i1, j1) = low, high
    corners = np.array([[i0, j0, k, 1], [i1, j0, k, 1], [i1, j1, k, 1], [i0, j1, k, 1]], float)
    return (corners @ (LPS @ affine).T)[:, :3]


def write_slicer_segments(path, layers, affine, segments, offset=(0, 0, 0)):
    """Write a .seg.nrrd as 3D Slicer does.

    Args:
        path: the file.
        layers: uint8 `[layer, i, j, k]`.
        affine: of the first voxel of the layers, RAS mm.
        segments: layer, value and name of each.
        offset: of the layers in the image.
    """
    lps = LPS @ affine

    def vector(values):
        return f"({','.join(repr(float(value)) for value in values)})"

    several = len(layers) > 1
    directions = " ".join(vector(lps[:3, axis]) for axis in range(3))
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "type: unsigned char",
        f"dimension: {4 if several else 3}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, layers.shape if several else layers.shape[1:]))}",
        f"space directions: {'none ' * several}{directions}",
        f"kinds: {'list ' * several}domain domain domain",
        "encoding: gzip",
        f"space origin: {vector(lps[:3, 3])}",
    ]
    for number, (layer, value, name) in enumerate(segments):
        pairs = {"ID": f"Segment_{number + 1}", "LabelValue": value, "Layer": layer, "Name": name}
        lines += [f"Segment{number}_{key}:={text}" for key, text in pairs.items()]
    lines.append(f"Segmentation_ReferenceImageExtentOffset:={' '.join(map(str, offset))}")
    voxels = layers if several else layers[0]
    Path(path).write_bytes("\n".join([*lines, "", ""]).encode() + gzip.compress(voxels.tobytes(order="F")))
    return path
