"""Segmentation in regions around prompts (zoom): small targets at the full resolution of the model.

Each object has its own region, and they are segmented one after the other, so that memory is that of one region. A
region starts around the prompts and grows while the mask touches its border, as a user would pan: first on a prompted
slice alone, if only clicks are known, and then during propagation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sam2_3dmed_jax.inference.feature_store import BLOCK, FeatureStore
from sam2_3dmed_jax.inference.predictor import Result, Session, VolumePredictor, joined_results
from sam2_3dmed_jax.inference.segment import Segmentation, label_result, segment_volume, to_slices
from sam2_3dmed_jax.prompts.prompt import Prompt
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, merge_prompts
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.intensity import PreparedSlices, window_of_model
from sam2_3dmed_jax.volume.zoom import (
    OFF,
    Extent,
    ObjectZoom,
    Region,
    RegionLogits,
    Zoom,
    crop,
    extent_of_mask,
    grown_side,
    in_slice,
    region_around,
    side_around,
    touches_border,
    whole_side,
)

OnRegionSlice = Callable[[int, int, RegionLogits], None]  # object id, slice, its logits [1, S/4, S/4]


def segment_with_zoom(
    predictor: VolumePredictor,
    volume: Volume,
    prompts: Sequence[VoxelPrompt],
    zoom: Zoom = OFF,
    progress: Progress | None = None,
) -> Segmentation:
    """Segment a volume as `segment_volume` does, with a zoom on each object unless it is off.

    Raises:
        UserError: there are no prompts, or they do not fit the volume.
    """
    if zoom == OFF or not prompts:
        return segment_volume(predictor, volume, prompts, progress)
    return ZoomedVolume(predictor, volume, progress).segment(prompts, zoom)


class _Kept(NamedTuple):
    """The features of a region, of all slices or of one."""

    region: Region
    only: int | None  # the slice; None: all
    store: FeatureStore


class ZoomedVolume:
    """A volume that is segmented in regions; the features of one region, and of one slice, are kept."""

    def __init__(
        self, predictor: VolumePredictor, volume: Volume, progress: Progress | None = None, block: int = BLOCK
    ):
        """Compute the window of the whole volume; nothing is encoded yet. Arguments as of `predictor.Session`.

        Raises:
            UserError: as `window_of_model`.
        """
        self._predictor, self._volume, self._progress, self._block = predictor, volume, progress, block
        self._window = window_of_model(volume, predictor.model.info.preprocessing)
        _, height, width = volume.array.shape
        self._shape, self._pixel_mm = (height, width), volume.spacing[1:]
        self._kept: dict[bool, _Kept] = {}  # True: of one slice

    def segment(
        self, prompts: Sequence[VoxelPrompt], zoom: Zoom, on_slice: OnRegionSlice | None = None
    ) -> Segmentation:
        """Segment all objects, one after the other.

        Args:
            prompts: of at least one object.
            zoom: auto, or a side in mm.
            on_slice: called for each object and slice when its logits are known, and again if the region grows.

        Raises:
            UserError: prompts that do not fit the volume or each other.
        """
        merged = merge_prompts(prompts)  # of all objects, so that mistakes are found first
        objects = sorted({prompt.object_id for prompt in merged})
        found = [
            self._segment_object([prompt for prompt in merged if prompt.object_id == object_id], zoom, on_slice)
            for object_id in objects
        ]
        result = joined_results([replace(own, zooms=(zoomed,)) for zoomed, own in found])
        return label_result(result, self._shape)

    def first_region(self, prompts: Sequence[VoxelPrompt], zoom: Zoom) -> ObjectZoom:
        """Return the region in which one object is propagated first.

        It has the size of the prompts. Clicks have none: then a slice with clicks, the middle one, is segmented alone
        in growing regions, until the mask touches no border.

        Args:
            prompts: of one object, merged.
            zoom: auto, or a side in mm.
        """
        extent = extent_of_prompts(prompts)
        if extent is None:  # no prompt is inside of the object
            whole = whole_side(self._shape, self._pixel_mm)
            return ObjectZoom(Region(0, 0, *self._shape), whole, 0, ())
        side = side_around(extent, zoom, self._pixel_mm)
        found = ObjectZoom(region_around(extent, side, self._shape, self._pixel_mm), side, 0, ())
        if any(prompt.box is not None or prompt.mask is not None for prompt in prompts):
            return found
        clicked = sorted(prompt.slice for prompt in prompts if 1 in prompt.labels)
        index = clicked[len(clicked) // 2]
        while any(found.region.open_sides(self._shape)):
            mask = self.look(prompts, index, found.region).logits[0] > 0
            found = replace(found, looks=found.looks + 1)
            if not touches_border(mask, found.region.open_sides(self._shape)):
                break
            found = self._grown(found, extent, mask)
        return found

    def look(self, prompts: Sequence[VoxelPrompt], index: int, region: Region) -> RegionLogits:
        """Segment one slice in a region from the prompts of one object on it, as a volume of this slice.

        Returns:
            Its logits, `[1, S/4, S/4]`; all are negative if no prompt on the slice is in the region.
        """
        on_slice = [replace(prompt, slice=0) for prompt in prompts if prompt.slice == index]
        session = Session(self._predictor, self._store(region, index))
        session.add(self._in_pixels(on_slice, region))
        found = list(session.preview().values())
        side = self._predictor.model.config.image_size // 4
        return RegionLogits(np.stack(found) if found else np.full((1, side, side), -1.0, np.float32), region)

    def _segment_object(
        self, prompts: Sequence[VoxelPrompt], zoom: Zoom, on_slice: OnRegionSlice | None
    ) -> tuple[ObjectZoom, Result]:
        """Segment one object in its first region, and in larger ones while the mask touches the border."""
        zoomed, extent = self.first_region(prompts, zoom), extent_of_prompts(prompts)
        while True:
            watch = _Watch(zoomed.region, self._shape, on_slice)
            result = self._propagate(prompts, zoomed.region, watch)
            zoomed = replace(zoomed, passes=(*zoomed.passes, watch.slices))
            if result is not None:
                return zoomed, result
            assert extent is not None  # the region is the whole slice without prompts inside of the object
            zoomed = self._grown(zoomed, extent, watch.mask)

    def _propagate(self, prompts: Sequence[VoxelPrompt], region: Region, watch: _Watch) -> Result | None:
        """Segment all slices in a region; None if the mask touched its border. Nothing of the session is kept."""
        session = Session(self._predictor, self._store(region), self._progress, self._block)
        session.add(self._in_pixels(prompts, region))
        try:
            return session.result(watch)
        except _TouchedError:
            return None

    def _grown(self, zoomed: ObjectZoom, extent: Extent, mask: np.ndarray) -> ObjectZoom:
        """Return a larger region around the prompts and a mask `[s, s]` that touches the border of the last one."""
        cut = extent_of_mask(mask)
        assert cut is not None  # it touches the border
        around = extent.joined(in_slice(cut, zoomed.region, mask.shape))
        side = grown_side(zoomed.side_mm, zoomed.growths, whole_side(self._shape, self._pixel_mm))
        region = region_around(around, side, self._shape, self._pixel_mm)
        return replace(zoomed, region=region, side_mm=side, growths=zoomed.growths + 1)

    def _in_pixels(self, prompts: Sequence[VoxelPrompt], region: Region) -> list[Prompt]:
        """Return prompts in pixels of the slices of a region."""
        inside = [kept for prompt in prompts if (kept := prompt_in_region(prompt, region)) is not None]
        return to_slices(inside, region.shape, self._predictor.model.config.image_size)

    def _store(self, region: Region, index: int | None = None) -> FeatureStore:
        """Return the features of a region, of all slices or of one; those of another region are freed."""
        is_slice = index is not None
        kept = self._kept.get(is_slice)
        if kept is None or (kept.region, kept.only) != (region, index):
            kept = None
            self._kept.pop(is_slice, None)  # before another region is encoded
            part = crop(self._volume, region, slice(None) if index is None else slice(index, index + 1))
            model = self._predictor.model
            slices = PreparedSlices(part, model.info.preprocessing, model.config.image_size, self._window)
            kept = self._kept[is_slice] = _Kept(region, index, self._predictor.open(slices, self._progress))
        return kept.store


def zoomed_sessions(result: Result, prompts: Sequence[VoxelPrompt]) -> list[tuple[int, list[VoxelPrompt]]]:
    """Return the number of slices and the prompts of each session that a result took, for `SegmentationFlops`.

    A region that the mask outgrew counts with the slices until then. Without zoom, the list is empty.
    """
    sessions: list[tuple[int, list[VoxelPrompt]]] = []
    for object_id, zoom in zip(result.object_ids, result.zooms, strict=False):
        own = [prompt for prompt in prompts if prompt.object_id == object_id]
        prompted = len({prompt.slice for prompt in own})  # which are segmented before any other slice
        sessions += [(1, own[:1])] * zoom.looks + [(max(slices, prompted), own) for slices in zoom.passes]
    return sessions


class _TouchedError(Exception):
    """The mask touches the border of the region."""


class _Watch:
    """A callback of `Session.result` that stops it when the mask of a slice touches the border of the region.

    Attributes:
        slices: that were segmented.
        mask: of the last one, bool `[S/4, S/4]`.
    """

    def __init__(self, region: Region, shape: tuple[int, int], on_slice: OnRegionSlice | None):
        self._region, self._on_slice = region, on_slice
        self._open_sides = region.open_sides(shape)
        self.slices, self.mask = 0, np.zeros((1, 1), bool)

    def __call__(self, object_id: int, index: int, logits: np.ndarray) -> None:
        self.slices, self.mask = self.slices + 1, logits > 0
        if self._on_slice:
            self._on_slice(object_id, index, RegionLogits(logits[None], self._region))
        if touches_border(self.mask, self._open_sides):
            raise _TouchedError


def extent_of_prompts(prompts: Sequence[VoxelPrompt]) -> Extent | None:
    """Return the rectangle around boxes, masks and clicks inside of the object; None if there are none."""
    extents = []
    for prompt in prompts:
        extents += [Extent(y, x, y, x) for (x, y), label in zip(prompt.points, prompt.labels, strict=True) if label]
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            extents.append(Extent(y0, x0, y1, x1))
        if prompt.mask is not None and (drawn := extent_of_mask(prompt.mask)):
            extents.append(drawn)
    joined = None
    for extent in extents:
        joined = extent if joined is None else joined.joined(extent)
    return joined


def prompt_in_region(prompt: VoxelPrompt, region: Region) -> VoxelPrompt | None:
    """Return a prompt in voxels of a region; None if nothing of it is in the region.

    Clicks outside of the object that are not in the region are left out: everything there is background.
    """
    bottom, right = region.top + region.rows - 0.5, region.left + region.columns - 0.5
    points, labels = [], []
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        if label or (region.top - 0.5 <= y <= bottom and region.left - 0.5 <= x <= right):
            points.append((x - region.left, y - region.top))
            labels.append(label)
    box = prompt.box
    if box is not None:
        x0, y0, x1, y1 = box
        box = (x0 - region.left, y0 - region.top, x1 - region.left, y1 - region.top)
    mask = None if prompt.mask is None else prompt.mask[region.at]
    if not points and box is None and mask is None:
        return None
    return replace(prompt, points=tuple(points), labels=tuple(labels), box=box, mask=mask)
