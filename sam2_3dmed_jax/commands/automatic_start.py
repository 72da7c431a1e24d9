"""Flags of `predict` that say how prompts are drawn from the label map of `--prompts-from`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sam2_3dmed_jax.commands.command_line import Parser

if TYPE_CHECKING:
    from sam2_3dmed_jax.prompts.automatic_start import StartSettings

FLAGS = ("protocol", "targets", "names", "mask_slices", "follow_up")


class StartOptions(Protocol):
    """The flags among the options of a command. None: not given."""

    @property
    def protocol(self) -> str | None:
        """One of `prompts.automatic_start.START_PROTOCOLS`."""

    @property
    def targets(self) -> str | None:
        """Label sets to prompt."""

    @property
    def names(self) -> str | None:
        """JSON file with names of labels."""

    @property
    def mask_slices(self) -> int | None:
        """Slices per object that are given as masks."""

    @property
    def follow_up(self) -> bool:
        """Whether the labels belong to an earlier scan."""


def add_start_arguments(parser: Parser) -> None:
    """Define the flags."""
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help="how each object of --prompts-from is prompted: one-click (default), box-mid, one-click-per-component, or "
        "masks, which gives slices of the label map itself",
    )
    parser.add_argument(
        "--targets",
        metavar="liver,2,5+6=kidneys",
        help="labels of --prompts-from to segment, by name or value; with + several as one object (default: all)",
    )
    parser.add_argument(
        "--names",
        metavar="JSON",
        help='names of the labels of --prompts-from: dataset.json, or a file such as {"1": "liver"} (default: of the '
        "label map, if its format has names)",
    )
    parser.add_argument(
        "--mask-slices", type=int, metavar="N", help="slices per object that --protocol masks gives (default: 3)"
    )
    parser.add_argument(
        "--follow-up",
        action="store_true",
        help="--prompts-from belongs to an earlier scan of the patient: its labels are placed on IMAGE by millimetres",
    )


def misplaced_start_flag(options: StartOptions) -> str | None:
    """Return the first of the flags that is given, or None, for commands without `--prompts-from`."""
    given = (name for name in FLAGS if getattr(options, name) not in (None, False))
    return next((f"--{name.replace('_', '-')}" for name in given), None)


def start_settings(options: StartOptions) -> StartSettings:
    """Return the settings of the flags.

    Raises:
        UserError: the protocol does not exist, the number of slices does not fit, or the names cannot be read.
    """
    from sam2_3dmed_jax.data.dataset_json import read_label_names
    from sam2_3dmed_jax.prompts.automatic_start import StartSettings

    names = read_label_names(options.names, "--names") if options.names else {}
    settings = StartSettings(options.protocol, options.targets, names, options.mask_slices, options.follow_up)
    settings.check()
    return settings
