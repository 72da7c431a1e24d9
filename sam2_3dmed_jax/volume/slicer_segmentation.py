"""Segmentations of 3D Slicer (`.seg.nrrd`): segments in one or several layers, often cropped to what they contain.

Slicer stores which layer and value of a layer belong to a segment in key/value pairs of the header, `Segment0_Layer`,
`Segment0_LabelValue` and `Segment0_Name`. The origin of the file accounts for the crop.
"""

from __future__ import annotations

import functools
import os
import re

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.geometry import Grid
from sam2_3dmed_jax.volume.image_file import ImageFile
from sam2_3dmed_jax.volume.itk import open_image, open_layers
from sam2_3dmed_jax.volume.label_layers import (
    LabelFile,
    LabelLayers,
    LayerPainter,
    Placement,
    require_placement,
    whole_label_map,
)

_KEY = re.compile(r"Segment(\d+)_(ID|Name|Layer|LabelValue)")
Source = tuple[int, int]  # a layer, and a value in it


def open_labels(path: str | os.PathLike[str]) -> LabelFile:
    """Read the header of a segmentation, or of a NRRD with one label map that was not saved as segments.

    The label of a segment is its value in the file. Where two segments have the same value in different layers, all
    labels are the positions of the segments in the file, 1, 2, ..., as in Slicer's own label maps.

    Raises:
        UserError: as `itk.open_layers`; or a segment refers to a layer that does not exist.
    """
    image, pairs = open_layers(path)
    if not any(_KEY.fullmatch(key) for key in pairs):
        return whole_label_map(path, open_image(path))
    segments: dict[int, dict[str, str]] = {}
    for key, value in pairs.items():
        if match := _KEY.fullmatch(key):
            segments.setdefault(int(match[1]), {})[match[2]] = value
    # Before layers existed, each segment was a layer of its own with the value 1.
    several = any(entry.get("LabelValue") is None for entry in segments.values())
    sources = [
        (_whole(path, entry, "Layer", number if several else 0), _whole(path, entry, "LabelValue", 1))
        for number, entry in sorted(segments.items())
    ]
    values = [value for _, value in sources]
    labels = values if len(set(values)) == len(values) else list(range(1, len(values) + 1))
    names = {label: segments[number].get("Name", "") for label, number in zip(labels, sorted(segments), strict=True)}
    read = functools.partial(_read, image, dict(zip(labels, sources, strict=True)))
    return LabelFile(str(path), image.grid, True, functools.partial(_place, image.grid), read, names)


def _whole(path: str | os.PathLike[str], entry: dict[str, str], name: str, default: int) -> int:
    text = entry.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text):
        raise UserError(f"{path} has the {name} {text[:40]!r} of a segment, expected a whole number: save it again")
    return int(text)


def _place(own: Grid, grid: Grid) -> Placement:
    return require_placement(own.source, own.affine, own.shape, grid)


def _read(image: ImageFile, segments: dict[int, Source], grid: Grid) -> LabelLayers:
    path = image.grid.source
    layers = image.read(None)
    if layers.dtype.kind not in "biu":
        raise UserError(f"{path} has {layers.dtype} voxels, expected integers: save the segmentation again")
    unknown = sorted({layer for layer, _ in segments.values()} - set(range(layers.shape[-1])))
    if unknown:
        raise UserError(
            f"{path} has {layers.shape[-1]} layers and a segment in layer {unknown[0]}, counted from 0: save it again"
        )
    undeclared = [
        (layer, int(value))
        for layer in range(layers.shape[-1])
        for value in np.unique(layers[..., layer])
        if value and (layer, int(value)) not in segments.values()
    ]
    if undeclared:
        layer, value = undeclared[0]
        raise UserError(f"{path} has the value {value} in layer {layer}, which is not a segment: save it again")
    placement = _place(image.grid, grid)
    placed = [placement.place(layers[..., layer], grid, path) for layer in range(layers.shape[-1])]
    painter = LayerPainter(grid, path)
    for label, (layer, value) in segments.items():
        block, array = placed[layer]
        painter.add(label, [(block, array == value)])
    return painter.result()
