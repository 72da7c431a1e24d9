"""SNOMED CT codes and display colours of organs and lesions, by name.

Codes and meanings are of DICOM's context groups (PS3.16); a test compares them with pydicom's dictionary. Colours
come from 3D Slicer's "General Anatomy" terminology, so that an organ has one colour in all viewers; concepts that it
lacks have the colour of a related one. Names of other structures have neither code nor colour.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sam2_3dmed_jax.errors import UserError


@dataclass(frozen=True)
class Concept:
    """A concept of SNOMED CT."""

    code: str
    meaning: str


@dataclass(frozen=True)
class ObjectLabel:
    """What a user calls an object."""

    name: str
    code: str = ""  # of SNOMED CT; "": as the name suggests
    color: str = ""  # "#9d6ca2": red, green and blue in hexadecimal; "": as the name suggests


@dataclass(frozen=True)
class SegmentCodes:
    """How DICOM describes a segment."""

    category: Concept
    type: Concept
    side: Concept | None = None  # of a paired organ; with a region, of the region
    region: Concept | None = None  # the organ that a lesion is in
    color: str = ""  # "": viewers choose one

    @property
    def is_known(self) -> bool:
        """Whether the type is more specific than tissue."""
        return self.type != TISSUE


@dataclass(frozen=True)
class _Entry:
    pattern: re.Pattern[str]  # found in the lower-case words of a name
    concept: Concept
    color: str
    paired: bool


def _entry(pattern: str, code: str, meaning: str, color: str, paired: bool = False) -> _Entry:
    return _Entry(re.compile(pattern), Concept(code, meaning), color, paired)


TISSUE = Concept("85756007", "Tissue")
ANATOMICAL = Concept("123037004", "Anatomical Structure")
ABNORMAL = Concept("49755003", "Morphologically Abnormal Structure")
LEFT, RIGHT = Concept("7771000", "Left"), Concept("24028007", "Right")

# The first entry whose pattern is found applies, so parts of an organ come before the organ.
STRUCTURES: tuple[_Entry, ...] = (
    _entry(r"\bspleen|\bsplenic (?!vein|artery)", "78961009", "Spleen", "#9d6ca2"),
    _entry(r"\bvessels?\b|\bportal vein and splenic", "59820001", "Blood Vessel", "#d8654f"),
    _entry(r"\bportal vein", "32764006", "Portal vein", "#0097ce"),
    _entry(r"\bliver|\bhepatic (?!vein|artery)", "10200004", "Liver", "#dd8265"),
    _entry(r"\bgall ?bladder", "28231008", "Gallbladder", "#8b9662"),
    _entry(r"\bpancrea", "15776009", "Pancreas", "#f9b46f"),
    _entry(r"\badrenal|\bsuprarenal", "23451007", "Adrenal gland", "#f9ba96", paired=True),
    _entry(r"\bkidney|\brenal (?!vein|artery)", "64033007", "Kidney", "#b96653", paired=True),
    _entry(r"\bo?esophag", "32849002", "Esophagus", "#d3ab8f"),
    _entry(r"\bstomach|\bgastric (?!vein|artery)", "69695003", "Stomach", "#d88469"),
    _entry(r"\bduoden", "38848004", "Duodenum", "#fffde5"),
    _entry(r"\bsmall (bowel|intestine)", "30315005", "Small intestine", "#cda78e"),
    _entry(r"\brectum|\brectal", "34402009", "Rectum", "#cca88f"),
    _entry(r"\bcolon", "71854001", "Colon", "#cca88f"),
    _entry(r"\bbladder|\burinary bladder", "89837001", "Bladder", "#de9a84"),
    _entry(r"\bprostat", "41216001", "Prostate", "#e69e8c"),
    _entry(r"\buterus|\buterine", "35039007", "Uterus", "#ffb59e"),
    _entry(r"\bovar(y|ies|ian)", "15497006", "Ovary", "#ffb59e", paired=True),
    _entry(r"\bbreast", "76752008", "Breast", "#b17a65", paired=True),
    _entry(r"\bthyroid", "69748006", "Thyroid", "#3ea272"),
    _entry(r"\btrachea", "44567001", "Trachea", "#b6e4ff"),
    _entry(r"\blung upper lobe|\bupper lobe", "45653009", "Upper lobe of lung", "#ac8a73", paired=True),
    _entry(r"\blung middle lobe|\bmiddle lobe", "72481006", "Middle lobe of right lung", "#caa48c"),
    _entry(r"\blung lower lobe|\blower lobe", "90572001", "Lower lobe of lung", "#e0baa2", paired=True),
    _entry(r"\bpulmonary artery", "81040000", "Pulmonary artery", "#0097ce"),
    _entry(r"\blungs?\b|\bpulmonary (?!vein)", "39607008", "Lung", "#c5a591", paired=True),
    _entry(r"\bleft ventricle|\bheart ventricle left", "87878005", "Left ventricle", "#98370d"),
    _entry(r"\bright ventricle|\bheart ventricle right", "53085002", "Right ventricle", "#b55539"),
    _entry(r"\bleft atrium|\bheart atrium left", "82471001", "Left atrium", "#ce6e54"),
    _entry(r"\bright atrium|\bheart atrium right", "73829009", "Right atrium", "#ce6e54"),
    _entry(r"\bheart|\bcardiac", "80891009", "Heart", "#ce6e54"),
    _entry(r"\baort", "15825003", "Aorta", "#e0614c"),
    _entry(r"\binferior vena cava|\bpostcava|\bivc\b", "64131007", "Inferior vena cava", "#0097ce"),
    _entry(r"\bsuperior vena cava|\bsvc\b", "48345005", "Superior vena cava", "#0097ce"),
    _entry(r"\blymph ?nod", "59441001", "Lymph Node", "#44ac64"),
    _entry(r"\bhippocamp", "5366008", "Hippocampus", "#fafae1", paired=True),
    _entry(r"\bbrain|\bcerebral", "12738006", "Brain", "#fafae1"),
    _entry(r"\bspinal cord", "2748008", "Spinal cord", "#f4d631"),
    _entry(r"\bskull|\bcranium", "89546000", "Skull", "#f1d590"),
    _entry(r"\bclavic", "51299004", "Clavicle", "#cdb36c", paired=True),
    _entry(r"\bscapula", "79601000", "Scapula", "#f1d691", paired=True),
    _entry(r"\bhumer(us|al)", "85050009", "Humerus", "#f1d691", paired=True),
    _entry(r"\bfem(ur|oral)", "71341001", "Femur", "#f1d691", paired=True),
    _entry(r"\bhips?\b", "29836001", "Hip", "#f1d691", paired=True),
    _entry(r"\bribs?\b", "113197003", "Rib", "#fde89e", paired=True),
    _entry(r"\bsternum", "56873002", "Sternum", "#f1d691"),
    _entry(r"\bsacrum", "54735007", "Sacrum", "#f1d691"),
    _entry(r"\bvertebra", "51282000", "Vertebra", "#f1d691"),
    _entry(r"\bbones?\b", "272673000", "Bone", "#f1d691"),
    _entry(r"\bmuscle", "71616004", "Muscle", "#c06858"),
    _entry(r"\bfat\b", "55603005", "Fat", "#e6dc46"),
)
FINDINGS: tuple[_Entry, ...] = (
    _entry(r"\bmetasta", "14799000", "Neoplasm, Secondary", "#90ee90"),
    _entry(r"\btumou?r|\bcancer|\bcarcinoma|\bneoplasm", "108369006", "Neoplasm", "#90ee90"),
    _entry(r"\bnodul", "27925004", "Nodule", "#90ee90"),
    _entry(r"\bmass(es)?\b", "4147007", "Mass", "#90ee90"),
    _entry(r"\bcyst", "367643001", "Cyst", "#cdcd64"),
    _entry(r"\bo?edema", "79654002", "Edema", "#8ce0e4"),
    _entry(r"\bha?emorrhage|\bbleed", "50960005", "Hemorrhage", "#bc411c"),
    _entry(r"\bnecro", "6574001", "Necrosis", "#d8bfd8"),
    _entry(r"\blesion", "52988006", "Lesion", "#90ee90"),
)


def as_label(label: str | ObjectLabel) -> ObjectLabel:
    """Return the label of an object that may be given by its name alone."""
    return ObjectLabel(label) if isinstance(label, str) else label


def segment_codes(label: ObjectLabel) -> SegmentCodes:
    """Return category, type, side, region and colour of an object.

    The name is searched for words, in any order and case, with spaces or underscores: "left kidney", "kidney_left" (as
    TotalSegmentator) and "Kidney L" are the left kidney, "liver tumor" is a neoplasm in the liver. A given code
    replaces the type that the name suggests, and a given colour its colour.
    """
    words = " ".join(re.findall(r"[a-z]+|\d+", label.name.lower()))
    structure, finding = _find(STRUCTURES, words), _find(FINDINGS, words)
    if label.code:
        structure, finding = _with_code(label.code, structure, finding)
    side = None
    if structure and structure.paired:
        left, right = (re.search(rf"\b({word}|{word[0]})\b", words) for word in ("left", "right"))
        side = None if bool(left) == bool(right) else LEFT if left else RIGHT
    main = finding or structure
    color = label.color or (main.color if main else "")
    concept = main.concept if main else TISSUE
    if label.code and concept.code != label.code:
        concept = Concept(label.code, _meaning(label.code) or label.name[:64])
    category = ABNORMAL if finding else ANATOMICAL if structure or label.code else TISSUE
    return SegmentCodes(category, concept, side, structure.concept if finding and structure else None, color)


def parse_code(text: str) -> str:
    """Return the code of a concept of SNOMED CT.

    Raises:
        UserError: it is not a number of 6 to 18 digits.
    """
    if not re.fullmatch(r"[1-9][0-9]{5,17}", text):
        raise UserError(f"'{text[:40]}' is not a code of SNOMED CT; give its digits, such as 78961009 for the spleen")
    return text


def parse_color(text: str) -> str:
    """Return a colour, such as `#9d6ca2`, in lower case.

    Raises:
        UserError: it has another form.
    """
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise UserError(f"'{text[:40]}' is not a colour; give red, green and blue in hexadecimal, such as #9d6ca2")
    return text.lower()


def rgb(color: str) -> tuple[int, int, int]:
    """Return red, green and blue of a colour, from 0 to 255."""
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue


def parse_label(text: str) -> ObjectLabel:
    """Read `spleen`, `spleen:78961009`, `spleen:#9d6ca2` or all three.

    Raises:
        UserError: a code or colour is not one.
    """
    name, *others = (word.strip() for word in text.split(":"))
    colors = [parse_color(word) for word in others if word.startswith("#")]
    codes = [parse_code(word) for word in others if not word.startswith("#")]
    if not name or len(codes) > 1 or len(colors) > 1:
        raise UserError(f"'{text[:60]}' is not a name; give one, such as spleen, or spleen:78961009:#9d6ca2")
    return ObjectLabel(name, *(codes or [""]), *(colors or [""]))


def _find(entries: tuple[_Entry, ...], words: str) -> _Entry | None:
    return next((entry for entry in entries if entry.pattern.search(words)), None)


def _with_code(code: str, structure: _Entry | None, finding: _Entry | None) -> tuple[_Entry | None, _Entry | None]:
    """Return the structure and the finding of a name whose code is given."""
    for entry in STRUCTURES:
        if entry.concept.code == code:
            return entry, None
    return structure, next((entry for entry in FINDINGS if entry.concept.code == code), finding)


def _meaning(code: str) -> str:
    """Return the meaning of a code that is not in the table from pydicom's dictionary, or "" if it is not there."""
    try:
        from pydicom.sr.codedict import codes
    except ImportError:
        return ""
    found = (getattr(codes.SCT, keyword) for keyword in codes.SCT.dir())
    return next((concept.meaning for concept in found if concept.value == code), "")
