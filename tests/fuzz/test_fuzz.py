"""The fuzzer notices each broken promise, and the readers of the project break none."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest

from tests.fuzz.broken_readers import BROKEN
from tests.fuzz.harness import failure_lines, run, shares, table_text
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.mutations import mutate
from tests.fuzz.worker import Report

LOG = Path(__file__).parent / "logs" / "long_run.txt"
INPUTS = int(os.environ.get("FUZZ_INPUTS", "20000"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """What is reported of readers that break promises, and the folder of the inputs that failed."""
    folder = tmp_path_factory.mktemp("broken")
    counts = dict.fromkeys(BROKEN, 1)
    return run(counts, 0, folder, 2, folder / "failures", table="tests.fuzz.broken_readers", seconds=1), folder


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_reported(broken, name):
    outcomes, _ = broken
    problems = [problem for report in outcomes[name].failures for problem in report.problems]
    expected = BROKEN[name][1]
    assert any(problem.startswith(expected) for problem in problems) if expected else not problems, problems


@pytest.mark.slow
def test_the_input_of_a_crash_is_kept_with_the_place_of_the_crash(broken):
    _, folder = broken
    (kept,) = (folder / "failures").glob("crashes-*")
    assert (kept / "input" / "a.json").read_text() == "[\n 1\n]"
    assert "broken_readers.py" in (kept / "report.json").read_text()


def small(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


@pytest.mark.parametrize("name", ["NIfTI gzip", "MetaImage", "prompts", "patients", "RTSTRUCT"])
def test_an_input_depends_on_its_seed_alone(name, tmp_path):
    kind, results = small(name), []
    kind.seed(tmp_path)
    for number in range(2):
        shutil.copytree(tmp_path, folder := tmp_path.with_name(f"{tmp_path.name}-{number}"))
        names = [mutate(folder, folder, kind.targets, random.Random(index), False)[1] for index in range(5)]
        results.append((names, {file.name: file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}))
    assert results[0] == results[1]


def test_an_interrupted_run_resumes_from_its_journal(tmp_path):
    journal = tmp_path / "journal.jsonl"
    reports = [Report("patients", index, accepted=True) for index in range(3)]
    journal.write_text("".join(json.dumps(vars(report)) + "\n" for report in reports))
    outcomes = run({"patients": 3}, 0, tmp_path, journal=journal)  # nothing is left to do, and no worker starts
    assert outcomes["patients"].inputs == outcomes["patients"].accepted == 3


@pytest.mark.slow
def test_readers_of_untrusted_files_keep_their_promises(tmp_path):
    outcomes = run(shares(1500), 0, tmp_path, workers=2, failures=tmp_path / "failures")
    assert not failure_lines(outcomes), table_text(outcomes)
    assert all(outcome.accepted for outcome in outcomes.values())


@pytest.mark.long  # 20,000 inputs, or $FUZZ_INPUTS: half an hour on one core
def test_readers_of_untrusted_files_keep_their_promises_in_a_long_run(tmp_path):
    outcomes = run(shares(INPUTS), 1, tmp_path, workers=2, failures=tmp_path / "failures")
    assert not failure_lines(outcomes), table_text(outcomes)


def test_the_committed_log_of_the_long_run_has_all_kinds_and_no_failure():
    text = LOG.read_text()
    rows = dict(re.findall(r"^(\S.*?) {2,}(\d+ .*)$", text, re.MULTILINE))
    assert rows.keys() == {kind.name for kind in KINDS} | {"all"}
    inputs, accepted, refused, failures = map(int, rows["all"].split()[:4])
    assert inputs == accepted + refused >= 20_000
    assert failures == 0
    assert re.match(r"20\d\d-\d\d-\d\d, commit [0-9a-f]{7,}, ", text)
