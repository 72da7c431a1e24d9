"""Modalities: names of channels, the order in which sources count, and which scans a checkpoint accepts."""

import pytest

from sam2_3dmed_jax.config import PreprocessingConfig
from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume.modality import ModalitySources, dicom_modality, parse_modality


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["CT", "ct", "CTA", "CT_venous", "CBCT", "Computed Tomography", " ct "], "CT"),
        (["MR", "MRI", "mp-MRI", "T1", "T2w", "T1-Gd", "T2_TSE", "FLAIR", "ADC", "magnetic resonance"], "MR"),
        (["PET", "PT", "FDG-PET", "SUV", "Positron Emission Tomography"], "PT"),
        (["zscore", "noNorm", "X-ray", "US", "PET/CT", "channel 1", "structure"], "OT"),
        (["", " ", None], ""),
    ],
)
def test_names_of_channels_are_mapped_to_codes_of_dicom(names, code):
    assert {dicom_modality(name) for name in names} == {code}


def test_a_given_modality_is_one_of_three_in_any_case():
    assert [parse_modality(text, "--modality") for text in ("ct", "MR", "pet", "PT", "", None)] == [
        *("CT", "MR", "PT", "PT"),
        *("", ""),
    ]
    with pytest.raises(UserError, match="--modality is 'us', expected one of ct, mr, pet"):
        parse_modality("us", "--modality")


def test_the_user_counts_before_the_file_the_dataset_the_checkpoint_and_ct():
    of_mr = PreprocessingConfig("0.5%,99.5%", "MR")
    assert ModalitySources("PT", "MR").modality("CT", "a") == "PT"
    assert ModalitySources("", "MR").modality("PT", "a") == "PT"
    assert ModalitySources("", "PT").modality(None, "a") == "PT"
    assert ModalitySources("", "", of_mr).modality(None, "a") == "MR"
    assert ModalitySources().modality(None, "a") == "CT"


def test_a_modality_is_assumed_only_if_nothing_says_it():
    of_mr = PreprocessingConfig("0.5%,99.5%", "MR")
    assert ModalitySources().is_assumed(None)
    assert not ModalitySources().is_assumed("CT")
    for sources in (ModalitySources("CT"), ModalitySources("", "CT"), ModalitySources("", "", of_mr)):
        assert not sources.is_assumed(None)


@pytest.mark.parametrize(("trained", "other"), [("CT", "MR"), ("MR", "CT"), ("MR", "PT"), ("PT", "MR"), ("CT", "OT")])
@pytest.mark.parametrize("source", ["given", "stored", "declared"])
def test_a_scan_of_another_modality_is_refused_with_both_and_the_flag(trained, other, source):
    preprocessing = PreprocessingConfig("lung", trained)
    known = {source: other} if source != "stored" else {}
    sources = ModalitySources(**known, preprocessing=preprocessing, checkpoint="run/final")
    word = {"CT": "ct", "MR": "mr", "PT": "pet"}[trained]
    where = "--modality" if source == "given" else "scan.nii"
    with pytest.raises(UserError) as error:
        sources.modality(other if source == "stored" else None, "scan.nii")
    assert str(error.value).startswith(
        f"{where} is {other}, but run/final was trained on {trained} with the window lung"
    )
    assert f"--modality {word} to use" in str(error.value) and len(str(error.value)) <= 300


def test_a_checkpoint_of_another_channel_reads_every_scan_as_it_was_trained():
    zscore = ModalitySources("", "", PreprocessingConfig("0.5%,99.5%", "OT"))
    assert [zscore.modality(stored, "a") for stored in ("CT", "MR", None)] == ["OT", "OT", "OT"]
    assert ModalitySources("", "OT", PreprocessingConfig("1%,99%", "MR")).modality(None, "a") == "OT"
