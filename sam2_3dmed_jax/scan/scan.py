"""Interactive segmentation of one image: prompts in its coordinates, undo, previews, and masks slice by slice.

A scan encodes each slice once. Its masks depend on the current prompts alone, and not on the order in which they were
given or looked at: they have the voxels that `predict` writes for the same prompts. A `Scan` is used by one thread at a
time; only `cancel.set()` may be called by another one.
"""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import nibabel as nib
import numpy as np

from sam2_3dmed_jax.config import MemorySelection
from sam2_3dmed_jax.errors import FileWarning, UserError
from sam2_3dmed_jax.inference.feature_store import FeatureStore
from sam2_3dmed_jax.inference.label_maps import BLOCK as LABELLED_SLICES
from sam2_3dmed_jax.inference.label_maps import label_map
from sam2_3dmed_jax.inference.predictor import Result, Session, VolumePredictor, joined_results
from sam2_3dmed_jax.inference.propagation import PropagationOrder
from sam2_3dmed_jax.inference.segment import Segmentation, label_result, to_slices
from sam2_3dmed_jax.inference.segmentation_record import (
    ModelRecord,
    SegmentationRecord,
    check_record_path,
    model_record,
    record_path,
    record_text,
    segmentation_record,
    untrained_warning,
    warn_about,
)
from sam2_3dmed_jax.inference.session_programs import warm_up
from sam2_3dmed_jax.inference.shape_buckets import object_rows
from sam2_3dmed_jax.inference.zoom import ZoomedVolume
from sam2_3dmed_jax.prompts.voxel_prompts import merge_prompts
from sam2_3dmed_jax.runtime.atomic_files import atomic_paths
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice
from sam2_3dmed_jax.runtime.output_plan import Input, OutputFile, check_outputs
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.scan.history import PromptState
from sam2_3dmed_jax.scan.images import open_image
from sam2_3dmed_jax.scan.models import DEFAULT_MODEL, ModelSource, model_source
from sam2_3dmed_jax.scan.prompted_image import PromptedImage
from sam2_3dmed_jax.volume.formats import segmentation_suffixes, suffix_of
from sam2_3dmed_jax.volume.geometry import from_canonical, plane_in_file
from sam2_3dmed_jax.volume.intensity import PreparedSlices
from sam2_3dmed_jax.volume.io import image_files, prepare_segmentation, volume_of, write_segmentation
from sam2_3dmed_jax.volume.modality import ModalitySources, parse_modality
from sam2_3dmed_jax.volume.nifti import label_image
from sam2_3dmed_jax.volume.zoom import OFF, Logits, RegionLogits, Zoom, logits_on_slice, parse_zoom

CANCEL_BLOCK = 4  # slices between two checks of `cancel`; smaller blocks copy features more often
OBJECTS_IN_MEMORY = 8  # The logits of more objects are not joined in memory with the logits of an earlier segmentation.
KEPT = 2  # finished segmentations that are kept, so that `undo` shows the one before at once

OnSlice = Callable[[int, int, np.ndarray], None]


class Cancel(Protocol):
    """A request to stop, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """Return whether the work should stop."""


class SliceMask(NamedTuple):
    """The mask of one object on one slice of the image."""

    object_id: int
    slice: int  # its index along `Scan.slice_axis`
    mask: np.ndarray  # bool, the two other axes of the image in their order


class _CancelledError(Exception):
    """Stops the work of a scan between two slices."""


class Scan(PromptedImage):
    """Segments one image from prompts, which may be added and undone at any time."""

    def __init__(
        self,
        image: Any,
        model: Any = DEFAULT_MODEL,
        *,
        affine: Any = None,
        volume: int | None = None,
        modality: str | None = None,
        resample: bool = False,
        order: PropagationOrder = "sequential",
        compute_dtype: ComputeDtypeChoice = "auto",
        memory_selection: MemorySelection | None = None,
        zoom: Zoom = OFF,
        progress: Progress | None = None,
    ):
        """Read an image; the model is loaded when a mask is first needed.

        Args:
            image: a path of a NIfTI, NRRD or MHA file or of a DICOM series, an image of nibabel or SimpleITK, or a
                NumPy array `[i, j, k]` with its `affine`.
            model: the name of published weights, the folder of a checkpoint, a model of `load_model`, or a
                `VolumePredictor`, which has its own order and memory selection.
            affine: `[4, 4]`, voxel index (i, j, k, 1) to RAS millimetres; for arrays only.
            volume: 0-based index of the volume of a 4D image.
            modality: ct, mr or pet; by default the modality of the file, or as the model was trained, or CT.
            resample: put DICOM slices with gaps or tilt on a regular grid.
            order: order of the two directions of propagation, "sequential" or "independent".
            compute_dtype: as in `load_model`, which a model that is passed was loaded with.
            memory_selection: which memories a slice sees, "recent", "confident" or "self-sorting"; by default as the
                model was trained.
            zoom: see `set_zoom`.
            progress: called with the progress of long work.

        Raises:
            UserError: the image or the checkpoint cannot be read, or they do not fit; or `zoom` has another form.
        """
        self._zoom = parse_zoom(zoom, "zoom")
        file = open_image(image, affine, volume, resample)
        self._model: ModelSource = model_source(model, order, compute_dtype, memory_selection)
        if self._model.info.has_random_weights:
            warnings.warn(untrained_warning(self._model.name), FileWarning, stacklevel=2)
        given = parse_modality(modality, "modality")
        sources = ModalitySources(given, preprocessing=self._model.info.preprocessing, checkpoint=self._model.name)
        super().__init__(volume_of(file, sources))
        self._progress = progress
        self._cancel: Cancel | None = None
        self._finished: list[tuple[PromptState, Zoom, Segmentation]] = []

    @property
    def zoom(self) -> Zoom:
        """The zoom on each object: "off", "auto", or the side of the first region in mm; see `set_zoom`."""
        return self._zoom

    def set_zoom(self, zoom: Zoom) -> None:
        """Zoom in on each object, or out again; the masks change, and the features of the image are freed.

        With a zoom, each object is segmented in a square region around its prompts, which grows while the mask touches
        its border (`docs/how-to/zoom.md`).

        Args:
            zoom: "off", "auto", or the side of the first region in mm.

        Raises:
            UserError: another value.
        """
        if (wanted := parse_zoom(zoom, "zoom")) != self._zoom:
            self.free_features()
            self._zoom = wanted

    def reset(self) -> None:
        """Remove all prompts and objects for good: `undo` brings nothing back, and the memory of masks is freed."""
        super().reset()
        self._finished = []

    def encode(self, near: int | None = None, cancel: Cancel | None = None) -> bool:
        """Encode the slices of the image that are not encoded yet, so that later calls run the rest of the model only.

        With a zoom, nothing is encoded: regions are known when there are prompts.

        Args:
            near: slice along `slice_axis` that is encoded first, followed by its neighbours.
            cancel: stops the work between two slices when it is set.

        Returns:
            Whether all slices are encoded; False if the work was cancelled.

        Raises:
            UserError: the slice does not exist.
        """
        depth = self.shape[self.slice_axis]
        if near is not None and not 0 <= near < depth:
            raise UserError(f"near: slice {near} does not exist; slices of the image are 0 to {depth - 1}")
        if self._zoom != OFF:
            return True
        centre = 0 if near is None else self._other_index(near)
        order = sorted(range(depth), key=lambda index: abs(index - centre))
        with self._cancellable(cancel) as work:
            self._store.encode(order)
        return work.complete

    def warm_up(self, cancel: Cancel | None = None, first_only: bool = False) -> bool:
        """Compile the programs of all later calls, so that no click waits for the compiler; it is done once per model.

        Args:
            cancel: stops the work between two programs when it is set.
            first_only: only the programs that a first click needs.

        Returns:
            Whether the work is complete; False if it was cancelled.
        """
        with self._cancellable(cancel) as work:
            warm_up(self._predictor, self._report, CANCEL_BLOCK, first_only)
            if not first_only:  # programs of this size of slices
                side, depth = self._size // 4, min(len(self._volume.array), LABELLED_SLICES)
                label_map(np.zeros((1, depth, side, side), np.float32), [1], self._slice_shape)
        return work.complete

    def free_features(self) -> None:
        """Free the features of the image, on the device and on the host; they are encoded again when needed."""
        self.__dict__.pop("_store", None)
        self.__dict__.pop("_zoomed", None)

    @property
    def has_preview(self) -> bool:
        """Whether the latest change added a prompt, whose slice `preview` segments."""
        return self._history.current.latest is not None

    def preview(self) -> SliceMask:
        """Segment one slice immediately: the slice of the latest prompt, or the middle one of several.

        It is made from the prompts of one object on this slice alone, so that it takes the same short time for any
        image and any number of prompts.

        Raises:
            UserError: there are no prompts, or the latest change added none.
        """
        state = self._state()
        if state.latest is None:
            raise UserError("preview: the latest change added no prompt; use propagate() or mask()")
        object_id, index = state.latest
        if self._zoom != OFF:
            own = merge_prompts([prompt for prompt in state.prompts if prompt.object_id == object_id])
            region = self._zoomed.first_region(own, self._zoom).region
            found = self._zoomed.look(own, index, region)
            return SliceMask(object_id, self._other_index(index), self._mask_in_file(found, 0))
        on_slice = [prompt for prompt in state.prompts if (prompt.object_id, prompt.slice) == state.latest]
        session = Session(self._predictor, self._store)
        session.add(to_slices(on_slice, self._slice_shape, self._size))
        (logits,) = session.preview().values()
        return SliceMask(object_id, self._other_index(index), self._mask_in_file(logits[None], 0))

    def propagate(self, on_slice: OnSlice | None = None, cancel: Cancel | None = None) -> bool:
        """Segment all slices from the current prompts.

        Args:
            on_slice: called once for each object and slice, with the id of the object, the slice along `slice_axis` and
                its mask as in `SliceMask`: first the slices with prompts, then their neighbours, away from the prompts.
                Masks of objects whose prompts have not changed are not computed again; they are reported last, object
                by object. With a zoom, slices are reported again if the region of their object grows.
            cancel: stops the work between two slices when it is set, for example because of another click.

        Returns:
            Whether the masks are complete; False if the work was cancelled.

        Raises:
            UserError: there are no prompts.
        """
        state = self._state()

        def report(object_id: int, index: int, logits: Logits, at: int) -> None:
            if on_slice:
                on_slice(object_id, self._other_index(index), self._mask_in_file(logits, at))
            self._stop_if_cancelled()

        def report_slice(object_id: int, index: int, logits: np.ndarray) -> None:
            report(object_id, index, logits[None], 0)

        def report_in_region(object_id: int, index: int, logits: RegionLogits) -> None:
            report(object_id, index, logits, 0)

        with self._cancellable(cancel) as work:
            segmentation = self._finished_segmentation(state)
            known = [] if segmentation is None else [segmentation.result]
            if segmentation is None:
                if self._zoom == OFF:
                    known = self._known_results(state)
                    segmentation = self._segment_others(state, known, report_slice)
                else:
                    segmentation = self._zoomed.segment(state.prompts, self._zoom, report_in_region)
                self._finished = [*self._finished, (state, self._zoom, segmentation)][-KEPT:]
            for result in known:
                for row, object_id in enumerate(result.object_ids):
                    for index in range(len(self._volume.array)):
                        report(object_id, index, result.logits_in_row(row), index)
        return work.complete

    def mask(self, object: int | str | None = None) -> np.ndarray:
        """Return masks in the axis order of the image; missing ones are computed.

        Args:
            object: id or name of one object; None for all.

        Returns:
            Of all objects, a label map uint16 `[i, j, k]`: object ids, and 0 outside; where objects overlap, the
            likelier one. Of one object, its whole mask, bool `[i, j, k]`.

        Raises:
            UserError: there are no prompts, or the object does not exist.
        """
        number = None if object is None else self._object_id(object, new=False)
        segmentation = self._segmentation()
        found = segmentation.labels if number is None else segmentation.object_mask(number)
        return np.ascontiguousarray(from_canonical(found, self._volume.grid))

    def volumes_ml(self) -> dict[int, float]:
        """Return the millilitres of each object in the label map, by its id.

        Raises:
            UserError: there are no prompts.
        """
        segmentation = self._segmentation()
        return {
            object_id: np.count_nonzero(segmentation.labels == object_id) * self._volume.voxel_volume_ml
            for object_id in segmentation.result.object_ids
        }

    def to_nibabel(self) -> nib.Nifti1Image:
        """Return the label map as an image of nibabel on the grid of the image.

        Raises:
            UserError: there are no prompts.
        """
        return label_image(self._segmentation().labels, self._volume)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the label map, and its record as `predict` does: seg.json next to seg.nii.gz.

        A `FileWarning` reports each sign that a mask is wrong.

        Args:
            path: *.nii.gz or *.nii; or, of an image that was read from DICOM, *.dcm for DICOM-SEG or *.rtstruct.dcm.

        Raises:
            UserError: there are no prompts, the name or the image does not fit, or a file cannot be written.
        """
        self._state()
        volume, prompts = self._volume, self.prompt_set()
        suffix = suffix_of(os.fspath(path), segmentation_suffixes())
        if suffix is None:
            raise UserError(
                f"{path} is not the name of a segmentation; let it end in .nii.gz, or in .dcm for DICOM-SEG"
            )
        check_record_path(path)
        masks = {prompt.mask_file.path for prompt in prompts.prompts if prompt.mask_file}
        file = volume.grid.source
        image = [Input("the image", file, lambda: image_files(file))] if file else []
        check_outputs(
            [OutputFile("", path), OutputFile("", record_path(path))],
            [*image, *(Input("the file of a prompt", mask) for mask in masks)],
        )
        source = prepare_segmentation(path, volume, prompts.labels())
        with atomic_paths() as temporary_path:
            record_file, labels_file = temporary_path(record_path(path)), temporary_path(path, suffix)
            record = self.record()
            record_file.write_text(record_text(record), encoding="utf-8")
            write_segmentation(labels_file, self._segmentation().labels, volume, prompts.labels(), source)
        warn_about(record)

    def record(self) -> SegmentationRecord:
        """Return what `save` writes next to the label map: sizes, clicks inside, scores, prompts, model and warnings.

        Raises:
            UserError: there are no prompts.
        """
        segmentation, prompts = self._segmentation(), self.prompt_set()
        window = self._model.info.preprocessing.window
        return segmentation_record(segmentation, self._volume, prompts, self._model_record, window, zoom=self._zoom)

    def _state(self) -> PromptState:
        if not self._history.current.prompts:
            raise UserError("the scan has no prompts; add a click, a box or a mask first")
        return self._history.current

    def _segmentation(self) -> Segmentation:
        """Return the segmentation of the current prompts, which is computed if it is not there yet."""
        self.propagate()
        segmentation = self._finished_segmentation(self._history.current)
        assert segmentation is not None  # Without `cancel`, propagation is complete.
        return segmentation

    def _segment_others(self, state: PromptState, known: list[Result], on_slice: OnSlice) -> Segmentation:
        """Segment the objects whose masks are not known, and return all objects."""
        known_ids = {object_id for result in known for object_id in result.object_ids}
        prompts = [prompt for prompt in state.prompts if prompt.object_id not in known_ids]
        results = list(known)
        if prompts:
            session = Session(self._predictor, self._store, self._report, CANCEL_BLOCK)
            session.add(to_slices(prompts, self._slice_shape, self._size))
            results.append(session.result(on_slice, forget=True))
        return label_result(joined_results(results), self._slice_shape)

    def _known_results(self, state: PromptState) -> list[Result]:
        """Return the masks of objects whose prompts have not changed since an earlier segmentation, one per object.

        Objects that are propagated together with others are not known: their masks depend on the others in the last
        bits. Neither are those of so many that joining their logits would take much memory.
        """
        known: dict[int, Result] = {}
        if object_rows() != (1,) or len(self._objects) > OBJECTS_IN_MEMORY:
            return []
        for earlier, zoom, segmentation in self._finished:
            for object_id in segmentation.result.object_ids if zoom == self._zoom else ():
                before, now = earlier.prompts_of(object_id), state.prompts_of(object_id)
                if len(before) == len(now) and all(map(operator.is_, before, now)):
                    known[object_id] = segmentation.result.of_object(object_id)
        return list(known.values())

    def _finished_segmentation(self, state: PromptState) -> Segmentation | None:
        return next((found for known, zoom, found in self._finished if known is state and zoom == self._zoom), None)

    @cached_property
    def _predictor(self) -> VolumePredictor:
        return self._model.load()

    @cached_property
    def _model_record(self) -> ModelRecord:
        return model_record(self._predictor, self._model.folder)

    @cached_property
    def _store(self) -> FeatureStore:
        slices = PreparedSlices(self._volume, self._model.info.preprocessing, self._size)
        return self._predictor.open(slices, self._report)

    @cached_property
    def _zoomed(self) -> ZoomedVolume:
        return ZoomedVolume(self._predictor, self._volume, self._report, CANCEL_BLOCK)

    @property
    def _size(self) -> int:
        return self._predictor.model.config.image_size

    @property
    def _slice_shape(self) -> tuple[int, int]:
        _, height, width = self._volume.array.shape
        return height, width

    def _other_index(self, index: int) -> int:
        """Return the slice of the image at a canonical slice, or the canonical slice at a slice of the image."""
        return plane_in_file(self._volume.grid, 0, index)[1]

    def _mask_in_file(self, logits: Logits, index: int) -> np.ndarray:
        """Return the mask of a slice, bool in the axis order of the image, from one of logits `[n, S/4, S/4]`."""
        mask = logits_on_slice(logits, index, self._slice_shape) > 0
        repeated = from_canonical(np.broadcast_to(mask, self._volume.array.shape), self._volume.grid)
        # `np.take` would copy all slices of this view.
        return np.ascontiguousarray(np.moveaxis(repeated, self.slice_axis, 0)[0])

    def _report(self, what: str, done: int, total: int, note: str = "") -> None:
        if self._progress:
            self._progress(what, done, total, note)
        self._stop_if_cancelled()

    def _stop_if_cancelled(self) -> None:
        if self._cancel and self._cancel.is_set():
            raise _CancelledError

    def _cancellable(self, cancel: Cancel | None) -> _Work:
        """Return the context of a block that `cancel` may stop.

        What is encoded stays, and no half of a segmentation is kept.
        """
        self._cancel = cancel
        return _Work(self)


class _Work:
    """Work that may be cancelled.

    It is not a generator, whose frame would keep the error, and with it the features of the image, until a garbage
    collection (from Python 3.13 on).
    """

    complete = True

    def __init__(self, scan: Scan):
        self._scan = scan

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._scan._cancel = None
        self.complete = kind is None
        return kind is _CancelledError
