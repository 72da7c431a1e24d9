"""Download of published weights through `huggingface_hub`, into its own cache, with a check of the SHA-256.

A file is checked against the hash of the table, or else of the record that the first download left in our cache, or
else of the repository itself, which names large files by their SHA-256. The client resumes a broken connection; it
reads `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME` and the token of `hf auth login`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.hub.catalog import SAFETENSORS, SCHEME, Weights, WeightsFile
from sam2_3dmed_jax.runtime.atomic_files import write_text
from sam2_3dmed_jax.runtime.foreign_errors import foreign
from sam2_3dmed_jax.runtime.hashing import sha256_of_file
from sam2_3dmed_jax.runtime.user_files import read_json, typed

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FROM_FILE = "'sam2-3dmed download NAME --from-file FILE'"


@dataclass(frozen=True)
class Record:
    """What the first download of some weights found; later ones must find the same."""

    repository: str
    file: str
    revision: str  # commit; "": of a file that was not downloaded here
    sha256: str

    @property
    def source(self) -> str:
        """The address of the file."""
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "") + f"/{self.file}"


def read_record(path: Path) -> Record | None:
    """Return the record of an earlier download, or None.

    Raises:
        UserError: the file is damaged.
    """
    if not os.path.lexists(path):
        return None
    fix = "delete it and run the command again"
    return typed(read_json(path, fix), Record, str(path), fix)


def write_record(path: Path, record: Record) -> None:
    """Write the record of a download.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, json.dumps(asdict(record), indent=2) + "\n")


def download(weights: Weights, recorded: Record | None) -> tuple[Path, Record]:
    """Download weights, or find them in the cache of the client, and check them.

    Args:
        weights: the weights.
        recorded: the record of the first download, if this is not the first.

    Returns:
        The file or folder to convert, and its record.

    Raises:
        UserError: a network that does not answer, a repository, revision or file that does not exist, a missing
            package, or a file with another SHA-256, which is deleted.
    """
    from weights_conversion.huggingface_folder import native_part

    _require_client(weights)
    if recorded:
        files, revision = _recorded_first(weights, recorded), recorded.revision or weights.revision
        weights = replace(weights, files=files, revision=revision)
    for file in weights.files:
        _require_torch(weights, file.name)
        path = _fetch(weights, file.name)
        if path is None:
            continue
        commit = path.parents[len(PurePath(file.name).parts) - 1].name  # the cache has a folder per commit
        record = Record(weights.repository, file.name, commit, _checked(weights, file, path))
        if file.name == SAFETENSORS and _fetch(weights, "config.json"):
            if (native := native_part(path.parent)) and not _fetch(weights, native.name):
                raise UserError(f"{weights.source}: its config.json names {native.name}, which the repository lacks")
            return path.parent, record
        return path, record
    names = " or ".join(file.name for file in weights.files)
    raise UserError(f"{weights.source} has no {names}; name one of its files: hf://{weights.repository}/FILE")


def check_given_file(weights: Weights, file: Path, recorded: Record | None) -> Record:
    """Return the record of a file that the user has, checked against the table and the record of the first download.

    Raises:
        UserError: it does not exist, or is not one of the published files of these weights.
    """
    if not file.is_file():
        raise UserError(f"--from-file: {file} is not a file; give a file of {weights.name}")
    published = _recorded_first(weights, recorded) if recorded else weights.files
    digest = sha256_of_file(file)
    same_kind = [each for each in published if PurePath(each.name).suffix == file.suffix] or list(published)
    match = next((each for each in published if each.sha256 == digest), None)
    match = match or next((each for each in same_kind if not each.sha256), None)
    if match is None:
        expected = same_kind[0]
        raise UserError(
            f"--from-file: {file} is not {expected.name} of {weights.name}: its SHA-256 is {digest[:12]}..., expected "
            f"{expected.sha256[:12]}...; download it again"
        )
    return Record(weights.repository, match.name, weights.revision, digest)


def _recorded_first(weights: Weights, recorded: Record) -> tuple[WeightsFile, ...]:
    """Return the files with the hash that an earlier download recorded, and that file first."""
    others = [file for file in weights.files if file.name != recorded.file]
    return WeightsFile(recorded.file, recorded.sha256), *others


def _require_client(weights: Weights) -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"{weights.name}: downloading needs huggingface_hub, which is not installed: pip install "
            f"'sam2-3dmed-jax[hub]', or give a file that you have with {_FROM_FILE}"
        )


def _require_torch(weights: Weights, file: str) -> None:
    if not file.endswith(".safetensors") and importlib.util.find_spec("torch") is None:
        raise UserError(
            f"{weights.name}: its file {file} needs PyTorch to be read, which is not installed: pip install "
            "'sam2-3dmed-jax[torch]'"
        )


def _fetch(weights: Weights, file: str) -> Path | None:
    """Return a file of the repository in the cache of the client, or None if the repository does not have it."""
    from huggingface_hub import constants, errors, hf_hub_download

    with foreign(
        "huggingface_hub",
        lambda reason: f"{weights.source}: {file} cannot be downloaded ({reason}); run the same command again",
    ):
        try:
            return Path(hf_hub_download(weights.repository, file, revision=weights.revision or None))
        except errors.LocalEntryNotFoundError as error:
            raise UserError(
                f"{weights.name}: {constants.ENDPOINT} cannot be reached and {file} was not downloaded before; "
                f"connect, set HF_ENDPOINT to a mirror, or use {_FROM_FILE}"
            ) from error
        except errors.EntryNotFoundError:
            return None
        except errors.RevisionNotFoundError as error:
            raise UserError(f"{weights.source}: the revision does not exist; give a commit, branch or tag") from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"{weights.source}: the repository does not exist, or needs a login; check its name, or run 'hf auth "
                "login'"
            ) from error


def _checked(weights: Weights, file: WeightsFile, path: Path) -> str:
    """Return the SHA-256 of a downloaded file.

    Raises:
        UserError: it is not the expected one; the file is deleted.
    """
    blob = path.resolve()  # named by the SHA-256 of a large file
    expected = file.sha256 or (blob.name if _SHA256.fullmatch(blob.name) else "")
    digest = sha256_of_file(path)
    if expected and digest != expected:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise UserError(
            f"{weights.source}: {file.name} has the SHA-256 {digest[:12]}..., expected {expected[:12]}...; it was "
            "damaged or changed, and was deleted: run the same command again, or use another mirror"
        )
    return digest
