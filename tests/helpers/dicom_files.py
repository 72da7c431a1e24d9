"""DICOM series for tests, written by pydicom: slices of a ramp that tells each voxel from its neighbours."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

AXIAL = (1, 0, 0, 0, 1, 0)
SHAPE = (4, 6, 7)  # slices, rows, columns


def ramp(shape=SHAPE):
    """Stored values `[K, rows, columns]`, all different."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def header(rows, columns, **tags):
    """What every image of a series has; `tags` replace, and None takes away."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jane", "MRN-4711", "19700101", "F"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(entropy_srcs=["st"]), generate_uid(entropy_srcs=["se"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200101", "120000", "1", "2"
    ds.Modality, ds.SeriesDescription, ds.ImageType = "CT", "a test", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Rows, ds.Columns, ds.PixelSpacing = rows, columns, [0.8, 0.7]
    ds.ImageOrientationPatient, ds.SliceThickness = list(AXIAL), 9  # a thickness that nothing may believe
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in tags.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def save(ds, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return Path(path)


def normal(orientation):
    return np.cross(orientation[:3], orientation[3:])


def write_series(folder, positions=None, array=None, orientation=AXIAL, each=None, rle=False, **tags):
    """Write one file per slice, named against their order in space.

    Args:
        folder: where to write.
        positions: LPS mm of each slice; by default 2.5 mm apart along the normal.
        array: `[K, rows, columns]` stored int16.
        orientation: ImageOrientationPatient.
        each: maps a slice's number to tags of its own.
        rle: compress with RLE.
        **tags: for all.
    """
    array = ramp() if array is None else array
    if positions is None:
        positions = [np.array([-10, -20, 30]) + 2.5 * k * normal(orientation) for k in range(len(array))]
    for k, (position, pixels) in enumerate(zip(positions, array, strict=True)):
        own = {"ImageOrientationPatient": list(orientation), **tags, **((each or {}).get(k, {}))}
        ds = header(*pixels.shape, ImagePositionPatient=[f"{x:.10g}" for x in position], **own)
        ds.PixelData = np.ascontiguousarray(pixels).tobytes()
        if rle:
            ds.compress(RLELossless)
        save(ds, Path(folder) / f"{len(array) - k:02}.dcm")
    return Path(folder)


def write_multi_frame(path, array=None, positions=None, order=None):
    """An enhanced CT: position and rescaling in each frame's groups, the rest in the shared one."""
    array = ramp() if array is None else array
    positions = [(-10, -20, 30 + 2.5 * k) for k in range(len(array))] if positions is None else positions
    order = range(len(array)) if order is None else order
    gone = dict.fromkeys(("PixelSpacing", "ImageOrientationPatient", "SliceThickness"))
    ds = header(*array[0].shape, SOPClassUID=EnhancedCTImageStorage, RescaleSlope=None, RescaleIntercept=None, **gone)
    ds.NumberOfFrames = len(array)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 9
    plane.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for k in order:
        frame, place, scale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = list(positions[k])
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -1024 + k, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [scale]
        groups.append(frame)
    ds.PerFrameFunctionalGroupsSequence = groups
    ds.PixelData = np.ascontiguousarray(array[list(order)]).tobytes()
    return save(ds, path)


def edit(path, **tags):
    """Sets or (with None) removes tags of a file."""
    ds = pydicom.dcmread(path)
    for keyword, value in tags.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.save_as(path)


def strip_preamble(path, implicit=True):
    """Rewrite an uncompressed file as its data set alone, without preamble and file meta information."""
    ds = pydicom.dcmread(path)
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, implicit
    write_dataset(buffer, ds)
    Path(path).write_bytes(buffer.getvalue())
