"""Refusal of remote addresses, such as `gs://bucket/run`, and of `~`: all files are on local or mounted file systems.

`pathlib` takes them for folders named `gs:` and `~` in the current folder, and some libraries expand `~`, so each entry
point checks its paths before any work. Remote stores are left to tools that mount or copy them, and `~` to the shell,
which expands it at the start of a word that is not quoted.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator

from sam2_3dmed_jax.config import ExperimentConfig, SweepSpec
from sam2_3dmed_jax.errors import UserError, naming

# `pathlib` shortens `gs://` to `gs:/`. A single letter is a drive.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_INSTEAD = {
    "gs": "mount the bucket with gcsfuse, or copy it with 'gcloud storage cp -r' or gsutil (pip install gsutil)",
    "s3": "mount the bucket with mount-s3, or copy it with 'aws s3 cp --recursive' (pip install awscli)",
    "hf": "only a checkpoint has such a name; for others use 'hf download' (pip install huggingface_hub)",
    "file": "leave out file://",
}
_OTHERS = "copy it to a local folder first"
_HUGGING_FACE = "hf"  # scheme of the names of checkpoints on Hugging Face
_CHECKPOINTS = ("model.init", "checkpoints")  # fields of experiments and sweeps that name checkpoints


def check_local(path: str | os.PathLike[str], checkpoint: bool = False) -> None:
    """Check that a path, or another text, is not a remote address and does not start with the home folder as `~`.

    Args:
        path: of a file or folder that may not exist.
        checkpoint: whether it names a checkpoint, which may be on Hugging Face: `hf://org/repo`.

    Raises:
        UserError: it is one of these.
    """
    if os.fspath(path).startswith("~") and (expanded := os.path.expanduser(path)) != os.fspath(path):
        raise UserError(f"{os.fspath(path)} starts with '~', which only a shell expands; write {os.fspath(expanded)}")
    address = _ADDRESS.match(os.fspath(path))
    if not address or (checkpoint and address[1] == _HUGGING_FACE):
        return
    instead = _INSTEAD.get(address[1].lower(), _OTHERS)
    raise UserError(f"{os.fspath(path)} is a remote address, and files must be local; {instead}")


def check_local_fields(config: ExperimentConfig | SweepSpec) -> None:
    """Check all texts in the fields of an experiment or a sweep by `check_local`.

    Raises:
        UserError: one is refused; the message names its field.
    """
    for name, text in _texts(config):
        with naming(name):
            check_local(text, name in _CHECKPOINTS)


def _texts(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each field that contains text, and the text."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _texts(item, name)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _texts(getattr(value, field.name), f"{name}.{field.name}".removeprefix("."))
