"""Predictions for the test images of a Decathlon task, in the form that the challenge takes: `OUT/TASK/CASE.nii.gz`.

Prompts come from a user, or from an automatic method's predictions for the same images. The challenge forbids human
interaction, so what came from a user is marked inadmissible, in a manifest beside the folder that is uploaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sam2_3dmed_jax.data.datasets import UnlabelledSet, read_test_set
from sam2_3dmed_jax.data.split_files import listed
from sam2_3dmed_jax.errors import UserError, naming
from sam2_3dmed_jax.evaluation.label_files import by_name
from sam2_3dmed_jax.evaluation.prompted_segmentation import segment_objects
from sam2_3dmed_jax.inference.feature_store import Progress
from sam2_3dmed_jax.inference.predictor import VolumePredictor
from sam2_3dmed_jax.model.checkpoint import load_model
from sam2_3dmed_jax.prompts.case_table import read_cases
from sam2_3dmed_jax.prompts.flags import gather_prompts
from sam2_3dmed_jax.prompts.protocols import ObjectPrompts, check_protocol, prompts_of_objects
from sam2_3dmed_jax.prompts.voxel_prompts import VoxelPrompt, merge_prompts
from sam2_3dmed_jax.volume.geometry import Volume, check_same_grid
from sam2_3dmed_jax.volume.image_file import written_whole
from sam2_3dmed_jax.volume.io import read_grid, read_labels, read_volume, write_labels
from sam2_3dmed_jax.volume.label_classes import Target, declared_classes, painted_values, prompted_targets

OF_USER = "user"
OF_PREDICTIONS = "predictions"

PromptsOf = Callable[[str, Volume], ObjectPrompts]


def export(
    checkpoint: str,
    data: str,
    out: str,
    cases: str | None,
    predictions: str | None,
    protocol: str,
    order: Any,
    progress: Progress,
) -> list[str]:
    """Segment all test images of a task; the same call goes on where it was interrupted.

    Args:
        checkpoint: folder of a native checkpoint.
        data: folder of the task, with `dataset.json`.
        out: folder that gets `TASK/` and `TASK.manifest.json`.
        cases: table or folder of prompts, as `predict --cases`, each named like its image; object ids are the task's
            label values, an organ's being it with its tumours. Or None:
        predictions: folder of an automatic method's label maps, each named like its image, that prompts are drawn from.
        protocol: how they are drawn, one of `protocol.PROTOCOLS` but 'oracle-clip'.
        order: of the two directions.
        progress: told of each case.

    Returns:
        Lines to print.

    Raises:
        UserError: an image without prompts or a prediction, files that do not fit, or `out` holds something else.
    """
    tests = read_test_set(data)
    targets = prompted_targets(declared_classes(tests.labels))
    if predictions:
        prompts_of = _from_predictions(tests, predictions, targets, protocol)
        source = {"kind": OF_PREDICTIONS, "folder": os.path.realpath(predictions), "protocol": protocol}
    else:
        prompts_of = _from_user(tests, str(cases), targets)
        source = {"kind": OF_USER, "cases": os.path.realpath(str(cases))}
    known = {
        "note": "for research use only",
        "task": tests.task,
        "checkpoint": {"path": os.path.realpath(checkpoint), "sha256": _sha256(Path(checkpoint))},
        "order": order,
        "prompt_source": source,
        **_admissible(source["kind"]),
    }
    manifest, folder = Path(out, f"{tests.task}.manifest.json"), Path(out, tests.task)
    done = _done(manifest, folder, known)
    predictor = VolumePredictor(load_model(checkpoint), order)
    for number, (case, image) in enumerate(tests.images.items(), 1):
        target = folder / f"{case}.nii.gz"
        if case not in done or not target.exists():
            volume = read_volume(image)
            with naming(case):
                prompts = prompts_of(case, volume)
            write_labels(target, segment_objects(predictor, volume, prompts).labels, volume)
            done[case] = [_told(prompt) for own in prompts.values() for prompt in own]
            with written_whole(manifest, ".json") as part:
                part.write_text(json.dumps({**known, "cases": done}, indent=2) + "\n", encoding="utf-8")
        progress("cases", number, len(tests.images))
    bare = [case for case, prompts in done.items() if not prompts]
    words = "admissible if those predictions are" if known["admissible"] else "not admissible"
    return [
        *([f"note: {len(bare)} cases had no prompts and are empty: {listed(bare)}"] if bare else []),
        f"{len(done)} segmentations in {folder} ({words}: {known['reason']}; for research use only)",
        f"manifest in {manifest}, which is not to be uploaded",
    ]


def _admissible(kind: str) -> dict[str, Any]:
    if kind == OF_USER:
        reason = "prompts came from a user, and the challenge forbids human interaction"
        return {"admissible": False, "reason": reason}
    reason = "prompts came from predictions, which must be an automatic method's; that is not checked here"
    return {"admissible": True, "reason": reason}


def _from_predictions(tests: UnlabelledSet, folder: str, targets: Sequence[Target], protocol: str) -> PromptsOf:
    check_protocol(protocol)
    if protocol == "oracle-clip":
        raise UserError("--protocol: oracle-clip tells where an object ends, which no prediction knows; choose another")
    found = by_name(folder)
    _all_there("--prompts-from", folder, tests, found)
    for case, image in tests.images.items():
        check_same_grid(read_grid(found[case]), read_grid(image))

    def prompts_of(case: str, volume: Volume) -> ObjectPrompts:
        return prompts_of_objects(protocol, read_labels(found[case], volume), volume.spacing, targets)

    return prompts_of


def _from_user(tests: UnlabelledSet, cases: str, targets: Sequence[Target]) -> PromptsOf:
    found = {case.name: case.prompts for case in read_cases(cases)}
    _all_there("--cases", cases, tests, found)
    values = dict(zip(painted_values(targets), targets, strict=True))

    def prompts_of(case: str, volume: Volume) -> ObjectPrompts:
        prompts: ObjectPrompts = {target: [] for target in targets}
        for prompt in merge_prompts(gather_prompts(found[case], volume).prompts):
            if prompt.object_id not in values:
                raise UserError(
                    f"{cases}: case {case} prompts object {prompt.object_id}, which is no label of {tests.task}; "
                    f"choose from {', '.join(f'{value} ({tests.labels[value]})' for value in values)}"
                )
            prompts[values[prompt.object_id]].append(prompt)
        return {target: own for target, own in prompts.items() if own}

    return prompts_of


def _all_there(flag: str, where: str, tests: UnlabelledSet, found: Any) -> None:
    """Raise `UserError` unless there is one of each test image, and no other."""
    if missing := [case for case in tests.images if case not in found]:
        raise UserError(
            f"{flag}: {where} lacks {len(missing)} of the {len(tests.images)} test images of {tests.task}: "
            f"{', '.join(missing)}; the challenge takes all of them, so add these"
        )
    if other := sorted(set(found) - set(tests.images)):
        raise UserError(
            f"{flag}: {where} has {len(other)} that are no test images of {tests.task}: {listed(other)}; remove them"
        )


def _done(manifest: Path, folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """The cases that an interrupted export has finished."""
    if not manifest.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--out: {folder} holds files without a manifest beside it; choose another folder")
        return {}
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        done = dict(found.pop("cases"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"--out: {manifest} is no manifest of an export; choose another folder") from None
    if found != known:
        differ = [name for name in known if found.get(name) != known[name]]
        words = ", ".join(differ) or "more"
        raise UserError(f"--out: {manifest} is of another export (it differs in {words}); choose another folder")
    return done


def _told(prompt: VoxelPrompt) -> dict[str, Any]:
    """A prompt as the manifest has it, in voxels of a canonical slice."""
    told: dict[str, Any] = {"object": prompt.object_id, "slice": prompt.slice}
    if prompt.points:
        told |= {"points": [list(point) for point in prompt.points], "labels": list(prompt.labels)}
    if prompt.box:
        told["box"] = list(prompt.box)
    return told | ({"mask_voxels": int(prompt.mask.sum())} if prompt.mask is not None else {})


def _sha256(folder: Path) -> str:
    """Over the names and bytes of a checkpoint's files."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
