"""Table of published weights: their names, repositories on Hugging Face, files with SHA-256, and licences.

Revisions and hashes are those that several independent projects publish for the same file. Where they do not agree or
are too few, the entry has none: the first download records what it finds (`download.py`), and later ones must match it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sam2_3dmed_jax.errors import UserError

SCHEME = "hf://"
NOT_STATED = "not stated; see the repository"  # licence of weights outside of the table
SAFETENSORS = "model.safetensors"  # the file of a repository in the layout of transformers
_ADDRESS = re.compile(r"hf://(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w.-]*))?(?:/(\S+\.\w+))?/?")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights in a repository."""

    name: str
    sha256: str = ""  # "": not known


@dataclass(frozen=True)
class Weights:
    """Published weights of one model."""

    name: str
    repository: str
    files: tuple[WeightsFile, ...]  # the first one that the repository has is used; .safetensors need no PyTorch
    licence: str = NOT_STATED
    revision: str = ""  # commit; "": the newest one at the first download
    preset: str | None = None  # None: recognised
    image_size: int | None = None  # in pixels; None: as the file states, otherwise the preset's

    @property
    def source(self) -> str:
        """The address of the repository."""
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def _sam2(preset: str, revision: str, safetensors: str, pt: str) -> Weights:
    """Return an entry of Meta, whose repositories have both layouts."""
    files = WeightsFile(SAFETENSORS, safetensors), WeightsFile(f"{preset}.pt", pt)
    return Weights(preset, f"facebook/{preset.replace('_', '-')}", files, "Apache-2.0", revision, preset)


def _medsam2(name: str, file: str, revision: str = "", sha256: str = "") -> Weights:
    """Return an entry of MedSAM2 (Ma et al.), SAM 2.1 tiny fine-tuned at 512 pixels."""
    licence = "CC-BY-SA-4.0; its model card limits it to research and education"
    preset, image_size = "sam2.1_hiera_tiny", 512
    return Weights(name, "wanglab/MedSAM2", (WeightsFile(file, sha256),), licence, revision, preset, image_size)


# The name of a repository alone means its first entry.
CATALOG: tuple[Weights, ...] = (
    _sam2(
        "sam2.1_hiera_tiny",
        "de431c4043854a71d8101e17995dfe596bf101a5",
        "48c14467e5cf9e51870511feb72c89688e82dd74523142c0538b663e193ac2a7",
        "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    ),
    _sam2(
        "sam2.1_hiera_small",
        "ee5bba1d82bb8749febdf90f45e84b687142ba03",
        "0a4067b11ce1e23d5229203f11c718a823060d15a4b23fa2372a7d4b77cbbc60",
        "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
    ),
    _sam2(
        "sam2.1_hiera_base_plus",
        "b7320756a13354e7530a63935656d35b2f91a290",
        "2012733a0de5d03efd1bba550a2847c4551be9ef2e0d497c83074df66189f780",
        "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    ),
    _sam2(
        "sam2.1_hiera_large",
        "665f8e2ad61cf5f53d65644ff27c8ee525124610",
        "dc407dce21301fd94abb395c5099b4f2c455fdc8a8f261ac3d0ea6d4cd197230",
        "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    ),
    _sam2(
        "sam2_hiera_tiny",
        "7c218beaf0bb87874785f32b582f640134fc1c09",
        "",
        "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125",
    ),
    _sam2(
        "sam2_hiera_small",
        "e080ada8afd19df5e165abe71b006edc7f4c3d4e",
        "",
        "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
    ),
    _sam2(
        "sam2_hiera_base_plus",
        "",
        "",
        "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
    ),
    _sam2(
        "sam2_hiera_large",
        "e6a8e8809b8f1bfa2238b6d080f3d05cc76bd251",
        "",
        "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b",
    ),
    _medsam2(
        "MedSAM2",
        "MedSAM2_latest.pt",
        "e4a6f35edd7e091619cbc0750f462f1574e23955",
        "c92743b99f00d078bf32a3afcc38aaa9faf1c1692dffe3eaa7a90938c1991060",
    ),
    _medsam2("MedSAM2_2411", "MedSAM2_2411.pt"),
    _medsam2("MedSAM2_CTLesion", "MedSAM2_CTLesion.pt"),
    _medsam2("MedSAM2_MRI_LiverLesion", "MedSAM2_MRI_LiverLesion.pt"),
    _medsam2("MedSAM2_US_Heart", "MedSAM2_US_Heart.pt"),
)


def find_weights(name: str) -> Weights | None:
    """Return the weights of a name, or None if the name is not one of weights.

    Names are the names in the table, the names of its repositories (both in any case), and addresses `hf://owner/repository`,
    optionally with `@revision` and `/file`. Other repositories need `hf://`, so that a mistyped path of a folder is
    never looked up on the network.

    Raises:
        UserError: an address that is malformed.
    """
    for weights in CATALOG:
        if name.lower() in (weights.name.lower(), weights.repository.lower()):
            return weights
    return _at_address(name) if name.startswith(SCHEME) else None


def _at_address(address: str) -> Weights:
    """Return the weights at an address, with the hash of the table if it has this file of this revision."""
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise UserError(
            f"{address}: it is not an address of weights; give hf://owner/repository, optionally with @revision and "
            "/file.safetensors"
        )
    repository, revision, file = match.groups(default="")
    known = _in_table(repository, file)
    if known is None:
        name = file.replace("/", "--") or repository.split("/")[1]
        return Weights(name, repository, (WeightsFile(file or SAFETENSORS),), revision=revision)
    files = tuple(each for each in known.files if file in ("", each.name))
    if files != known.files:
        known = replace(known, name=file, files=files)
    if revision in ("", known.revision):
        return known
    return replace(known, revision=revision, files=tuple(WeightsFile(each.name) for each in files))


def _in_table(repository: str, file: str) -> Weights | None:
    """Return the first entry of a repository that has a file; any file if none is named."""
    for weights in CATALOG:
        names = [each.name for each in weights.files]
        if weights.repository.lower() == repository.lower() and (not file or file in names):
            return weights
    return None
