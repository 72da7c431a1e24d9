"""SNOMED CT codes and colours of object names."""

import pytest
from pydicom.sr.codedict import codes

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.volume import anatomy_codes
from sam2_3dmed_jax.volume.anatomy_codes import ObjectLabel, parse_label, segment_codes


def test_every_code_and_meaning_is_in_the_dictionary_of_pydicom():
    known = {(concept.value, concept.meaning) for concept in (getattr(codes.SCT, word) for word in codes.SCT.dir())}
    # The dictionary has SNOMED's own name for this category, which DICOM's context group 7150 calls otherwise.
    known.add(("123037004", "Anatomical Structure"))
    categories = (anatomy_codes.TISSUE, anatomy_codes.ANATOMICAL, anatomy_codes.ABNORMAL)
    entries = [entry.concept for entry in (*anatomy_codes.STRUCTURES, *anatomy_codes.FINDINGS)]
    used = [*entries, *categories, anatomy_codes.LEFT, anatomy_codes.RIGHT]
    assert [concept for concept in used if (concept.code, concept.meaning) not in known] == []
    assert len({concept.code for concept in entries}) == len(entries)


@pytest.mark.parametrize(
    ("name", "category", "type", "side", "region"),
    [
        ("spleen", "Anatomical Structure", "Spleen", None, None),
        ("kidney_left", "Anatomical Structure", "Kidney", "Left", None),
        ("Right Kidney", "Anatomical Structure", "Kidney", "Right", None),
        ("Kidney L", "Anatomical Structure", "Kidney", "Left", None),
        ("kidneys left and right", "Anatomical Structure", "Kidney", None, None),
        ("gall_bladder", "Anatomical Structure", "Gallbladder", None, None),
        ("urinary_bladder", "Anatomical Structure", "Bladder", None, None),
        ("lung_upper_lobe_left", "Anatomical Structure", "Upper lobe of lung", "Left", None),
        ("heart_ventricle_left", "Anatomical Structure", "Left ventricle", None, None),
        ("portal_vein_and_splenic_vein", "Anatomical Structure", "Blood Vessel", None, None),
        ("liver tumor", "Morphologically Abnormal Structure", "Neoplasm", None, "Liver"),
        ("Liver_Tumour", "Morphologically Abnormal Structure", "Neoplasm", None, "Liver"),
        ("kidney_cyst_right", "Morphologically Abnormal Structure", "Cyst", "Right", "Kidney"),
        ("cancer", "Morphologically Abnormal Structure", "Neoplasm", None, None),
        ("object 1", "Tissue", "Tissue", None, None),
        ("collar", "Tissue", "Tissue", None, None),
    ],
)
def test_a_name_gives_category_type_side_and_region(name, category, type, side, region):
    found = segment_codes(ObjectLabel(name))
    meanings = [concept and concept.meaning for concept in (found.category, found.type, found.side, found.region)]
    assert meanings == [category, type, side, region]


def test_a_given_code_replaces_the_type_of_the_name_and_a_given_colour_its_colour():
    found = segment_codes(ObjectLabel("left thing", "64033007", "#010203"))
    assert (found.type.meaning, found.side, found.color) == ("Kidney", anatomy_codes.LEFT, "#010203")
    found = segment_codes(ObjectLabel("liver mass", "44132006"))  # an abscess, which the table lacks
    assert (found.category, found.type.meaning) == (anatomy_codes.ABNORMAL, "Abscess")
    assert found.region and found.region.meaning == "Liver"
    assert segment_codes(ObjectLabel("my organ", "999999")).type == anatomy_codes.Concept("999999", "my organ")


def test_a_label_is_written_with_optional_code_and_colour():
    assert parse_label("left kidney") == ObjectLabel("left kidney")
    assert parse_label("node : #44AC64 : 59441001") == ObjectLabel("node", "59441001", "#44ac64")
    for text in ("node:12", "node:red", "node:#12345", ":59441001", "node:59441001:78961009"):
        with pytest.raises(UserError):
            parse_label(text)
