"""Cases that `prepare` refuses with a reason while it prepares the others, and its exit codes."""

import csv
import gzip
import json
import os

import nibabel as nib
import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.data.prepare import case as prepare_case
from sam2_3dmed_jax.data.prepared import read_prepared
from tests.helpers.source_files import AFFINE, add_case, link_case, list_case, run, some_cases, values_and_labels

VALUES, MASK = values_and_labels()
SHIFTED = AFFINE + np.array([[0, 0, 0, 3.0], [0] * 4, [0] * 4, [0] * 4])


def truncated(folder, name):
    add_case(folder, name, np.random.default_rng(0).integers(-999, 999, (32, 32, 32)).astype(np.int16), MASK)
    file = folder / "imagesTr" / f"{name}.nii.gz"
    file.write_bytes(file.read_bytes()[:-9000])


def corrupt(folder, name):
    """The voxels do not have gzip's checksum."""
    add_case(folder, name, VALUES, MASK)
    file = folder / "imagesTr" / f"{name}.nii.gz"
    data = gzip.decompress(file.read_bytes())
    packed = bytearray(gzip.compress(data, compresslevel=0))
    packed[-100] ^= 1
    file.write_bytes(packed)


def text(folder, name):
    add_case(folder, name, VALUES, MASK)
    (folder / "imagesTr" / f"{name}.nii.gz").write_text("<html>404</html>")


def make(*arguments, **options):
    return lambda folder, name: add_case(folder, name, *arguments, **options)


def flat(folder, name):
    """A voxel size of 0, which some converters write."""
    add_case(folder, name, VALUES, MASK)
    file = folder / "imagesTr" / f"{name}.nii.gz"
    image = nib.load(file)
    image.header["pixdim"][3], image.header["srow_z"] = 0, (0, 0, 0, 5)
    data = bytearray(gzip.decompress(file.read_bytes()))
    data[:348] = image.header.binaryblock
    file.write_bytes(gzip.compress(data))


REFUSALS = {
    "truncated": (truncated, "imagesTr/truncated.nii.gz is truncated"),
    "corrupt": (corrupt, "imagesTr/corrupt.nii.gz is truncated or damaged"),
    "text": (text, "imagesTr/text.nii.gz cannot be read as NIfTI"),
    "cropped": (make(VALUES, MASK[:-1]), "labelsTr/cropped.nii.gz is not on the grid of"),
    "shifted": (make(VALUES, MASK, label_affine=SHIFTED), "their affines differ by up to 3 mm"),
    "undeclared": (make(VALUES, MASK * 4), "has the label 4 on 92 voxels, expected the declared ones, 1, 2"),
    "negative": (make(VALUES, -MASK.astype(np.int16)), "has the label -2, expected 0 to 255"),
    "fraction": (make(VALUES, MASK.astype(np.float32) / 2), "holds the value 0.5, expected integer labels"),
    "flat": (flat, "imagesTr/flat.nii.gz has a singular affine"),
    "empty": (make(VALUES, 0 * MASK), "labelsTr/empty.nii.gz is empty, expected labelled voxels"),
    "constant": (make(0 * VALUES + 7, MASK), "imagesTr/constant.nii.gz has the value 7 everywhere"),
    "unit": (make((VALUES > 0).astype(np.float32), MASK), "has values from 0 to 1, expected a CT in HU"),
    "phases": (make(np.stack([VALUES, VALUES], -1), MASK), "is 4D, of shape (9, 8, 7, 2), and holds 2 volumes"),
    "complex": (make(VALUES.astype(np.complex64), MASK), "holds complex64 voxels"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Prepare all refused cases, which are most, and two valid ones by the command, in two processes."""
    root = tmp_path_factory.mktemp("refused")
    some_cases(root / "data", 2)
    for name, (write, _) in REFUSALS.items():
        write(root / "data", name)
    assert main(["prepare", str(root / "data"), str(root / "out"), "--workers", "2"]) == 2
    return root / "out"


@pytest.mark.parametrize("name", REFUSALS)
def test_a_case_is_refused_with_its_name_and_reason(name, refused):
    with (refused / "refused.csv").open(newline="") as file:
        reasons = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert REFUSALS[name][1] in reasons[name] and "a bug" not in reasons[name]


def test_refused_cases_do_not_stop_others_and_leave_no_files(refused):
    assert [case.id for case in read_prepared(refused).cases] == ["case_0", "case_1"]
    files = [path for part in ("shards", "cases") for path in (refused / part).iterdir()]
    assert {path.name.partition(".")[0] for path in files} == {"case_0", "case_1"}
    assert {path.name for path in refused.iterdir()} == {"shards", "cases", "index.json", "prepare.json", "refused.csv"}


def test_real_headers_without_geometry_or_with_complex_numbers_are_refused(realdata, tmp_path):
    label = realdata / "headers" / "nv_low_res_7x5x3.nii.gz"
    for name in ("nv_complex64.nii.gz", "nv_minimal_no_qs_form.nii.gz"):
        link_case(tmp_path / "data", name.partition(".")[0], realdata / "headers" / name, label)
    report = run(tmp_path / "data", tmp_path / "out")
    assert "complex64" in report.refused["nv_complex64"]
    assert "is not on the grid" in report.refused["nv_minimal_no_qs_form"]


def test_the_exit_code_is_2_with_reasons_if_no_case_can_be_prepared(tmp_path, capsys):
    add_case(tmp_path / "data", "empty", VALUES, 0 * MASK)
    assert main(["prepare", str(tmp_path / "data"), str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert "refused 1 of 1 cases" in output.out and "empty.nii.gz is empty" in output.out
    lines = [line for line in output.err.splitlines() if not line.startswith("cases: ")]
    assert len(lines) == 1 and "no case could be prepared" in lines[0]
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize(("others", "code"), [(1, 2), (2, 0)])
def test_the_exit_code_is_2_if_most_cases_are_refused_and_the_others_are_prepared(others, code, tmp_path, capsys):
    some_cases(tmp_path / "data", others)
    for name in ("empty_1", "empty_2"):
        add_case(tmp_path / "data", name, VALUES, 0 * MASK)
    assert main(["prepare", str(tmp_path / "data"), str(tmp_path / "out"), "--workers", "1"]) == code
    output = capsys.readouterr()
    assert f"refused 2 of {others + 2} cases" in output.out
    assert ("2 of 3 cases were refused, for the reasons above" in output.err) == (code == 2)
    assert len(read_prepared(tmp_path / "out").cases) == others


def test_cases_without_an_object_are_kept_on_request_and_are_a_setting_of_the_folder(tmp_path, capsys):
    some_cases(tmp_path / "data", 1)
    add_case(tmp_path / "data", "negative", VALUES, 0 * MASK)
    add_case(tmp_path / "data", "one_slice", VALUES[..., :1], 0 * MASK[..., :1])
    words = ["prepare", str(tmp_path / "data"), str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--keep-empty", "--spacing", "2,2,2"]) == 0
    assert "without an object: 2 cases" in capsys.readouterr().out
    prepared = read_prepared(tmp_path / "out")
    assert {case.id: bool(case.areas) for case in prepared.cases} == {
        "case_0": True,
        "negative": False,
        "one_slice": False,
    }
    assert main([*words, "--spacing", "2,2,2"]) == 2
    assert "keep_empty was true and is now null" in capsys.readouterr().err


def test_an_object_that_vanishes_at_the_given_spacing_is_refused(tmp_path, capsys):
    add_case(tmp_path / "data", "small", VALUES, (np.arange(VALUES.size) == 130).reshape(VALUES.shape).astype(np.uint8))
    assert main(["prepare", str(tmp_path / "data"), str(tmp_path / "out"), "--spacing", "9,3,3"]) == 2
    assert "has only objects that vanish at this --spacing" in capsys.readouterr().out


def test_a_spacing_that_makes_a_volume_too_large_is_refused_before_resampling(tmp_path, capsys):
    some_cases(tmp_path / "data", 1)
    assert main(["prepare", str(tmp_path / "data"), str(tmp_path / "out"), "--spacing", "1e-9,-,-"]) == 2
    assert "ask for a coarser one" in capsys.readouterr().out


def test_a_bug_in_one_case_is_reported_and_does_not_stop_others(tmp_path, monkeypatch, capsys):
    some_cases(tmp_path / "data", 2)
    read_case = prepare_case.read_case

    def broken(case, *rest):
        if case.id == "case_0":
            raise ZeroDivisionError("oops")
        return read_case(case, *rest)

    monkeypatch.setattr(prepare_case, "read_case", broken)
    assert main(["prepare", str(tmp_path / "data"), str(tmp_path / "out"), "--workers", "1", "--debug"]) == 0
    output = capsys.readouterr()
    assert "case_0  a bug: ZeroDivisionError: oops" in output.out and "Traceback" in output.err
    assert [case.id for case in read_prepared(tmp_path / "out").cases] == ["case_1"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--spacing", "5,1"], "--spacing: '5,1' is not a spacing"),
        (["--spacing", "-,-,x"], "--spacing"),
        (["--spacing", "1,1,-1"], "--spacing: '1,1,-1' is not a spacing"),
        (["--spacing", "nan,1,1"], "--spacing: 'nan,1,1' is not a spacing"),
        (["--spacing", ""], "--spacing: '' is not a spacing"),
        (["--workers", "0"], "--workers: 0"),
        (["--workers", "many"], "--workers"),
        (["--fast"], "--fast"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line_and_create_no_folder(words, named, tmp_path, capsys):
    some_cases(tmp_path / "data", 1)
    mistake(capsys, named, tmp_path / "data", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_wrong_folders_are_reported_in_one_line(tmp_path, capsys):
    some_cases(tmp_path / "data", 1)
    before = sorted(os.walk(tmp_path))
    mistake(capsys, "absent", tmp_path / "absent", tmp_path / "out")
    mistake(capsys, "files that `prepare` did not write", tmp_path / "data", tmp_path / "data")
    mistake(capsys, "is a file; give a folder", tmp_path / "data", tmp_path / "data" / "dataset.json")
    mistake(capsys, "is a remote address", tmp_path / "data", "gs://bucket/out")
    mistake(capsys, "cannot be written", tmp_path / "data", tmp_path / "data" / "dataset.json" / "out")
    assert sorted(os.walk(tmp_path)) == before


@pytest.mark.parametrize("name", ["index.json", "prepare.json"])
def test_a_folder_in_place_of_a_file_of_an_earlier_run_is_reported_in_one_line(name, tmp_path, capsys):
    run(some_cases(tmp_path / "data", 1), tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / name).mkdir()
    mistake(capsys, f"{name} is a folder", tmp_path / "data", tmp_path / "out", "--workers", "1")


def test_two_cases_with_the_same_id_are_refused_before_files_are_written(tmp_path, capsys):
    some_cases(tmp_path / "data", 1)
    list_case(tmp_path / "data", "case_0")
    mistake(capsys, "case_0", tmp_path / "data", tmp_path / "out")
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["training"] and not (tmp_path / "out").exists()


def mistake(capsys, named, *words):
    """Check that the command ends with exit code 2 and one line on stderr that contains `named`."""
    capsys.readouterr()
    try:
        code = main(["prepare", *map(str, words)])
    except SystemExit as stop:  # argparse raises this
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0], lines
