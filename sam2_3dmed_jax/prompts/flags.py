"""Prompt flags of `predict`, which are also the columns of case tables: their definition and parsing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sam2_3dmed_jax.errors import UserError, listed, naming
from sam2_3dmed_jax.prompts.object_ids import check_object_id, check_object_name
from sam2_3dmed_jax.prompts.prompt_types import PROMPT_FILES, PROMPT_TYPES, PROMPTS_FROM, prompt_flags

if TYPE_CHECKING:
    from sam2_3dmed_jax.prompts.automatic_start import StartSettings
    from sam2_3dmed_jax.prompts.voxel_prompts import VolumePrompts, VoxelPrompt
    from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel
    from sam2_3dmed_jax.volume.geometry import Volume


@dataclass(frozen=True, init=False)
class PromptFlags:
    """The texts after the prompt flags, not parsed yet, by the name of the flag; other flags are absent."""

    texts: Mapping[str, tuple[str, ...]]

    def __init__(self, **texts: str | Sequence[str] | None) -> None:
        """Take the text, or the texts, of each flag that is given.

        Raises:
            TypeError: a flag does not exist.
        """
        if unknown := texts.keys() - {flag.name for flag in prompt_flags()}:
            raise TypeError(f"'{min(unknown)}' is not a prompt flag")
        tuples = {name: (text,) if isinstance(text, str) else tuple(text) for name, text in texts.items() if text}
        object.__setattr__(self, "texts", tuples)

    def __getitem__(self, name: str) -> tuple[str, ...]:
        """Return the texts of one flag."""
        return self.texts.get(name, ())

    @classmethod
    def from_options(cls, options: object) -> PromptFlags:
        """Return the prompt flags among parsed arguments, which are attributes named as the flags."""
        return cls(**{flag.name: getattr(options, flag.name) for flag in prompt_flags()})


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the prompt flags of a command."""
    for flag in prompt_flags():
        if flag.repeatable:
            parser.add_argument(flag.option, action="append", default=[], metavar=flag.metavar, help=flag.help)
        else:
            parser.add_argument(flag.option, metavar=flag.metavar, help=flag.help)


def gather_prompts(flags: PromptFlags, volume: Volume, start: StartSettings | None = None) -> VolumePrompts:
    """Read all prompts of a volume.

    Args:
        flags: the texts of the flags.
        volume: the image.
        start: how prompts are drawn from the label map of `--prompts-from`; None: by default.

    Raises:
        UserError: there are none, or one does not fit the volume, or an object has prompts of the user and of
            `--prompts-from`; the message names the flag or file.
    """
    from sam2_3dmed_jax.prompts.files import add_labels, read_prompt_files

    from_files = read_prompt_files(flags[PROMPT_FILES.name], volume)
    prompts = []
    for prompt_type in PROMPT_TYPES.values():
        if any(flags[flag.name] for flag in prompt_type.flags):
            prompts += prompt_type.from_flags(flags.texts, volume)
    prompts += from_files.prompts
    for path in flags[PROMPTS_FROM.name]:
        from sam2_3dmed_jax.prompts.automatic_start import StartSettings, start_prompts

        started = start_prompts(path, volume, start or StartSettings())
        check_started_objects(started, prompts, PROMPTS_FROM.option)
        named = {number: label for number, label in started.labels().items() if number in started.names}
        from_files = add_labels(from_files, named, path)
        prompts += started.prompts
    if not prompts:
        *usages, last = (flag.usage for flag in prompt_flags() if not flag.is_modifier)
        raise UserError(f"there are no prompts; give {', '.join(usages)} or {last}")
    return replace(from_files, prompts=prompts)


def check_started_objects(started: VolumePrompts, given: Sequence[VoxelPrompt], option: str) -> None:
    """Check that no object has prompts of a label map and of the user.

    Args:
        started: prompts that were drawn from a label map.
        given: prompts of the user.
        option: the flag or argument of the label map, for the message.

    Raises:
        UserError: an object has both.
    """
    if both := sorted({prompt.object_id for prompt in given} & set(started.labels())):
        raise UserError(
            f"{option}: object {listed(both)} has prompts of the label map and others; give the others another object "
            "id, or choose the other labels with targets"
        )


def parse_object_labels(text: str | None) -> dict[int, ObjectLabel]:
    """Read the flag `--classes 1=spleen,2=left kidney:64033007:#b96653`.

    Args:
        text: label sets (`label_classes.parse_label_sets`) of one object id each, whose names may be followed by a code
            and a colour (`anatomy_codes.parse_label`); None: no objects.

    Raises:
        UserError: an entry is not one object with a name, or an object is repeated; or the name, code or colour is not
            one.
    """
    from sam2_3dmed_jax.volume.anatomy_codes import parse_label
    from sam2_3dmed_jax.volume.label_classes import parse_label_sets

    labels: dict[int, ObjectLabel] = {}
    entries = parse_label_sets(text, {}, "--classes") if text else []
    with naming("--classes"):
        for entry in entries:
            if len(entry.values) > 1 or not entry.name or entry.values[0] in labels:
                raise UserError(f"'{entry.text}' is not one object with its name; give each object once, as 1=spleen")
            label = parse_label(entry.name)
            check_object_name(label.name)
            labels[check_object_id(entry.values[0])] = label
    return labels
