"""Submission to the Medical Segmentation Decathlon: predictions for the test images of a task, `OUT/TASK/CASE.nii.gz`.

Prompts come from a user, or from an automatic method's predictions for the same images. The challenge forbids human
interaction, so a submission with a user's prompts is marked inadmissible, in a manifest next to the folder to upload.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.config import MemorySelection
from sam2_3dmed_jax.data.datasets import UnlabelledDataset, read_test_set
from sam2_3dmed_jax.data.split_files import first_ids
from sam2_3dmed_jax.errors import CHOICES, UserError, listed, naming, number_of
from sam2_3dmed_jax.evaluation.label_files import by_name
from sam2_3dmed_jax.evaluation.prompted_segmentation import segment_objects
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.model.checkpoint import load_model, read_info
from sam2_3dmed_jax.prompts.case_table import read_cases
from sam2_3dmed_jax.prompts.flags import gather_prompts
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, check_protocol, object_prompts
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, merge_prompts
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.compute_dtype import ComputeDtypeChoice, resolve_compute_dtype
from sam2_3dmed_jax.runtime.hashing import sha256_of_folder
from sam2_3dmed_jax.runtime.output_plan import Input, OutputFile, check_outputs
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.runtime.user_files import read_json, typed
from sam2_3dmed_jax.volume.geometry import Volume
from sam2_3dmed_jax.volume.io import check_readable, read_labels, read_volume, stored_modality, write_labels
from sam2_3dmed_jax.volume.label_classes import Target, declared_classes, prompted_targets, written_values
from sam2_3dmed_jax.volume.modality import ModalitySources, dicom_modality

OF_USER = "user"
OF_PREDICTIONS = "predictions"

PromptsOf = Callable[[str, Volume], ObjectPrompts]


def export_submission(
    checkpoint: str,
    data: str,
    out: str,
    cases: str | None,
    predictions: str | None,
    protocol: str,
    order: Any,
    progress: Progress,
    modality: str = "",
    compute_dtype: ComputeDtypeChoice = "auto",
    memory_selection: MemorySelection | None = None,
) -> list[str]:
    """Segment all test images of a task; the same call resumes an interrupted export.

    Args:
        checkpoint: folder of a native checkpoint.
        data: folder of the task, with `dataset.json`.
        out: folder for `TASK/` and `TASK.manifest.json`.
        cases: table or folder of prompts, as `predict --cases`, each named like its image; object ids are the task's
            label values, and the object of an organ includes its tumours. None: prompts come from `predictions`.
        predictions: folder of an automatic method's label maps, each named like its image, to make prompts from.
        protocol: how prompts are made from predictions, one of `protocols.PROTOCOLS` but 'oracle-clip'.
        order: of the two directions of propagation.
        progress: called after each case.
        modality: DICOM's code of the images; "": as they store or the task declares it.
        compute_dtype: as in `load_model`.
        memory_selection: as in `load_model`.

    Returns:
        Lines to print.

    Raises:
        UserError: an image has neither prompts nor a prediction, files do not fit each other, or `out` has other files.
    """
    tests = read_test_set(data)
    sources = ModalitySources(modality, dicom_modality(tests.modality), read_info(checkpoint).preprocessing, checkpoint)
    for image in tests.images.values():
        sources.modality(stored_modality(image), image)
    targets = prompted_targets(declared_classes(tests.labels))
    if predictions:
        prompts_of = _from_predictions(tests, predictions, targets, protocol, progress)
        source = {"kind": OF_PREDICTIONS, "folder": os.path.realpath(predictions), "protocol": protocol}
    else:
        prompts_of = _from_user(tests, str(cases), targets, progress)
        source = {"kind": OF_USER, "cases": os.path.realpath(str(cases))}
    identity = {
        "note": "for research use only",
        "task": tests.task,
        "checkpoint": {"path": os.path.realpath(checkpoint), "sha256": sha256_of_folder(Path(checkpoint))},
        "order": order,
        "compute_dtype": (dtype := resolve_compute_dtype(compute_dtype)),
        **({"memory_selection": memory_selection} if memory_selection else {}),
        **({"modality": modality} if modality else {}),
        "prompt_source": source,
        **_admissibility(source["kind"]),
    }
    manifest, folder = Path(out, f"{tests.task}.manifest.json"), Path(out, tests.task)
    check_outputs(
        [OutputFile("--out", manifest), *(OutputFile("--out", folder / f"{case}.nii.gz") for case in tests.images)],
        [
            *(Input("the image", image) for image in tests.images.values()),
            *([Input("--cases", cases)] if cases else []),
            *([Input("--prompts-from", predictions)] if predictions else []),
        ],
    )
    finished = _finished_cases(manifest, folder, identity)
    predictor = VolumePredictor(load_model(checkpoint, None, dtype, memory_selection), order)
    for number, (case, image) in enumerate(tests.images.items(), 1):
        target = folder / f"{case}.nii.gz"
        if case not in finished or not target.exists():
            volume = read_volume(image, modality=sources)
            with naming(case):
                prompts = prompts_of(case, volume)
            write_labels(target, segment_objects(predictor, volume, prompts).labels, volume)
            finished[case] = [
                _prompt_record(prompt) for target_prompts in prompts.values() for prompt in target_prompts
            ]
            write_text(manifest, json.dumps({**identity, "cases": finished}, indent=2) + "\n")
        progress("cases", number, len(tests.images))
    without_prompts = [case for case, prompts in finished.items() if not prompts]
    verdict = "admissible if those predictions are" if identity["admissible"] else "not admissible"
    left_empty = f"note: {number_of(len(without_prompts), 'case')} without prompts, left empty: "
    return [
        *([left_empty + first_ids(without_prompts)] if without_prompts else []),
        f"{len(finished)} segmentations in {folder} ({verdict}: {identity['reason']}; for research use only)",
        f"manifest in {manifest}, which must not be uploaded",
    ]


def _admissibility(kind: str) -> dict[str, Any]:
    if kind == OF_USER:
        reason = "prompts came from a user, and the challenge forbids human interaction"
        return {"admissible": False, "reason": reason}
    reason = "prompts came from predictions, which must be an automatic method's; that is not checked here"
    return {"admissible": True, "reason": reason}


def _from_predictions(
    tests: UnlabelledDataset, folder: str, targets: Sequence[Target], protocol: str, progress: Progress
) -> PromptsOf:
    check_protocol(protocol)
    if protocol == "oracle-clip":
        raise UserError(
            "--protocol: oracle-clip uses the extent of the object, which no prediction knows; choose another protocol"
        )
    files = by_name(folder)
    _check_cases("--prompts-from", folder, tests, files)
    check_readable([(image, files[case]) for case, image in tests.images.items()], progress)

    def prompts_of(case: str, volume: Volume) -> ObjectPrompts:
        return object_prompts(protocol, read_labels(files[case], volume), volume.spacing, targets)

    return prompts_of


def _from_user(tests: UnlabelledDataset, cases: str, targets: Sequence[Target], progress: Progress) -> PromptsOf:
    prompts_by_case = {case.name: case.prompts for case in read_cases(cases)}
    _check_cases("--cases", cases, tests, prompts_by_case)
    check_readable([(image,) for image in tests.images.values()], progress)
    values = dict(zip(written_values(targets), targets, strict=True))

    def prompts_of(case: str, volume: Volume) -> ObjectPrompts:
        prompts: ObjectPrompts = {target: [] for target in targets}
        for prompt in merge_prompts(gather_prompts(prompts_by_case[case], volume).prompts):
            if prompt.object_id not in values:
                raise UserError(
                    f"{cases}: case {case} prompts object {prompt.object_id}, which is not a label of {tests.task}; "
                    f"choose from {listed([f'{value} ({tests.labels[value]})' for value in values], CHOICES)}"
                )
            prompts[values[prompt.object_id]].append(prompt)
        return {target: target_prompts for target, target_prompts in prompts.items() if target_prompts}

    return prompts_of


def _check_cases(flag: str, where: str, tests: UnlabelledDataset, cases: Collection[str]) -> None:
    """Raise `UserError` unless the cases are exactly the test images."""
    if missing := [case for case in tests.images if case not in cases]:
        raise UserError(
            f"{flag}: {where} lacks {len(missing)} of the {len(tests.images)} test images of {tests.task}: "
            f"{first_ids(missing)}; the challenge expects all of them, so add these"
        )
    if other := sorted(set(cases) - set(tests.images)):
        raise UserError(
            f"{flag}: {where} has {number_of(len(other), 'case')} beyond the test images of {tests.task}: "
            f"{first_ids(other)}; remove them"
        )


def _finished_cases(manifest: Path, folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Return the cases that an interrupted export has finished, with their prompts."""
    if not manifest.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--out: {folder} holds files without a manifest next to it; choose another folder")
        return {}
    where, fix = f"--out: {manifest}", "choose another folder"
    earlier = typed(read_json(manifest, fix), dict[str, Any], where, fix)
    if "cases" not in earlier:
        raise UserError(f"{where} is not a manifest of an export; {fix}")
    finished = typed(earlier.pop("cases"), dict[str, Any], where, fix, "cases")
    # Manifests of earlier versions do not name the dtype, which was float32 by default.
    earlier = {"compute_dtype": "float32", **earlier}
    if earlier != identity:
        differing = [name for name in identity if earlier.get(name) != identity[name]]
        fields = listed(differing) or "other fields"
        raise UserError(f"--out: {manifest} is of another export (it differs in {fields}); choose another folder")
    return finished


def _prompt_record(prompt: VoxelPrompt) -> dict[str, Any]:
    """Return a prompt as the manifest stores it, in voxels of a canonical slice."""
    record: dict[str, Any] = {"object": prompt.object_id, "slice": prompt.slice}
    if prompt.points:
        record |= {"points": [list(point) for point in prompt.points], "labels": list(prompt.labels)}
    if prompt.box:
        record["box"] = list(prompt.box)
    return record | ({"mask_voxels": int(prompt.mask.sum())} if prompt.mask is not None else {})
