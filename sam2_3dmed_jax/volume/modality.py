"""Modality of a scan: from the user, the file, its dataset or the checkpoint, and the check that they agree.

Modalities are DICOM's codes (PS3.3, C.7.3.1.1.1): CT, MR, PT for PET, and OT for every other name of a channel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sam2_3dmed_jax.config import PreprocessingConfig
from sam2_3dmed_jax.errors import UserError

CT, MR, PET, OTHER = "CT", "MR", "PT", "OT"
WORDS = {"ct": CT, "mr": MR, "pet": PET}  # values of `--modality`
_NAMES = {
    CT: re.compile(r"CTA?|CBCT|[CLHNM]..?CT|HU|COMPUTED"),
    MR: re.compile(r"MRI?|MPMRI|MAGNETIC|T[12]([A-Z].*)?|FLAIR|ADC|DWI|DTI|SWI|DCE|PDW?|CINE|LGE|TOF"),
    PET: re.compile(r"PET|PT|SUV|FDG|PSMA|POSITRON"),
}


def dicom_modality(declared: str | None) -> str:
    """Return DICOM's code for the name of a channel or modality, such as "MR" for "MRI", "T2w" or "mp-MRI".

    Args:
        declared: as `dataset.json` declares it, or None.

    Returns:
        "" for no name; OT for a name of no known modality, or of several.
    """
    words = re.findall("[A-Z0-9]+", (declared or "").upper())
    found = [code for code, names in _NAMES.items() if any(map(names.fullmatch, words))]
    return "" if not words else found[0] if len(found) == 1 else OTHER


def parse_modality(text: str | None, where: str) -> str:
    """Return DICOM's code for the modality that a user gave, or "" for none.

    Args:
        text: ct, mr or pet, or DICOM's code, in upper or lower case.
        where: the flag or field, for the message.

    Raises:
        UserError: another text.
    """
    code = WORDS.get((text or "").lower(), (text or "").upper())
    if code and code not in WORDS.values():
        raise UserError(f"{where} is {text!r}, expected one of {', '.join(WORDS)}")
    return code


def word_of(modality: str) -> str:
    """Return the value of `--modality` for a modality, or its code in lower case."""
    return next((word for word, code in WORDS.items() if code == modality), modality.lower())


def check_modality(modality: str, preprocessing: PreprocessingConfig, where: str, checkpoint: str) -> None:
    """Check that a scan has the modality that a checkpoint was trained on.

    A checkpoint without a modality (official weights, version 0.1) accepts each one. A checkpoint of the modality OT,
    whose dataset has a channel of another name, too, and one of MR or PET accepts a scan of OT.

    Args:
        modality: of the scan.
        preprocessing: of the checkpoint.
        where: the scan, for the message.
        checkpoint: the checkpoint, for the message.

    Raises:
        UserError: the modalities differ.
    """
    trained = preprocessing.modality
    if trained in ("", OTHER, modality) or (modality == OTHER and trained != CT):
        return
    raise UserError(
        f"{where} is {modality}, but {checkpoint} was trained on {trained} with the window {preprocessing.window}; "
        f"give a checkpoint for {modality}, or --modality {word_of(trained)} to use this checkpoint anyway"
    )


@dataclass(frozen=True)
class ModalitySources:
    """What is known about the modality of scans before their files are opened."""

    given: str = ""  # by the user; replaces the modality of files and dataset
    declared: str = ""  # by the dataset, for files whose format does not store it
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)  # of the checkpoint
    checkpoint: str = "the checkpoint"  # its name in messages

    def modality(self, stored: str | None, where: str) -> str:
        """Return the modality to read a scan as: given, stored in its file, declared, trained on, or CT.

        Args:
            stored: in the file of the scan, or None.
            where: the scan, for messages.

        Raises:
            UserError: the checkpoint was trained on another modality.
        """
        trained = self.preprocessing.modality
        modality = self.given or stored or self.declared or trained or CT
        check_modality(modality, self.preprocessing, "--modality" if self.given else where, self.checkpoint)
        return OTHER if trained == OTHER else modality

    def is_assumed(self, stored: str | None) -> bool:
        """Return whether the modality of the scan is not known, so that it is read as CT."""
        return not (self.given or stored or self.declared or self.preprocessing.modality)


def assumption_note(scans: str) -> str:
    """Return the note about scans whose modality is not known."""
    return f"note: the modality of {scans} is not known, read as CT; give --modality mr or pet for another one"
