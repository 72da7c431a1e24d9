"""Repeated runs of `prepare` in one folder: after an interruption, without and with changes, with other settings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.config import PrepareConfig
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.data.prepare import case as prepare_case
from sam2_3dmed_jax.data.prepare.folder import claim_folder
from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.errors import UserError
from tests.helpers.source_files import add_case, contents, run, snapshot, some_cases, stored, values_and_labels

ROOT = Path(__file__).resolve().parents[3]
# The signal handler is set because background jobs of a shell, and their children, ignore Ctrl-C.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from sam2_3dmed_jax.commands.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A dataset that takes long enough to be interrupted."""
    return some_cases(tmp_path_factory.mktemp("large") / "data", 8, (192, 192, 32))


@pytest.fixture(scope="module")
def whole(large, tmp_path_factory):
    """The output of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(large, out)
    return contents(out)


def interrupt(source, out, number):
    """Run the command in another process, and stop it by a signal between the first and the last case."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "prepare", str(source), str(out), "--workers", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list((out / "cases").glob("[!.]*.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    children = children_of(process.pid)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert not (out / "index.json").exists() and 0 < len(list((out / "cases").glob("[!.]*.json"))) < 8
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline, "workers outlive the command"
        time.sleep(0.01)
    return process.returncode, errors


def children_of(pid):
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc of Linux")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_resumes_to_the_same_bytes_as_an_uninterrupted_one(number, large, whole, tmp_path):
    code, errors = interrupt(large, tmp_path / "out", number)
    if number == signal.SIGKILL:
        assert code == -9
    else:
        lines = [line for line in errors.splitlines() if not line.startswith("cases: ")]
        assert code == 130 and lines == ["interrupted; run the same command again to resume where possible"]
        assert not (tmp_path / "out" / ".unfinished").exists()
    before = snapshot(tmp_path / "out" / "shards")
    finished = {path.stem for path in (tmp_path / "out" / "cases").glob("[!.]*.json")}
    report = run(large, tmp_path / "out", workers=2)
    assert set(report.done) == {f"case_{n}" for n in range(8)} - finished
    after = snapshot(tmp_path / "out" / "shards")
    assert all(after[f"{name}.arrayrecord"] == before[f"{name}.arrayrecord"] for name in finished)
    assert contents(tmp_path / "out") == whole


def test_a_second_run_writes_nothing_and_reports_so(tmp_path, capsys):
    source, out = some_cases(tmp_path / "data", 2), tmp_path / "out"
    words = ["prepare", str(source), str(out)]
    assert main(words) == 0
    before = snapshot(out)
    capsys.readouterr()
    start = time.perf_counter()
    assert main(words) == 0
    assert time.perf_counter() - start < 1.0  # starts no process
    assert snapshot(out) == before
    assert capsys.readouterr().out.startswith(f"nothing to do: 2 cases in {out}, and their sources have not changed")


def test_other_settings_are_refused_with_the_fields_that_differ(tmp_path, capsys):
    source, out = some_cases(tmp_path / "data", 1), tmp_path / "out"
    run(source, out)
    before = snapshot(out)
    assert main(["prepare", str(source), str(out), "--spacing", "5,-,-"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        f"{out} was prepared with other settings: spacing was [null, null, null] and is now [5.0, null, null]" in line
    )
    assert "give another OUT, or delete the folder" in line
    assert snapshot(out) == before


def test_cases_are_prepared_again_when_another_modality_is_declared(tmp_path):
    values, labels = values_and_labels()
    values = (values + 2000).astype("int16")  # partly above 3071 HU, to which CT is clipped
    source, out = add_case(tmp_path / "data", "x", values, labels), tmp_path / "out"
    run(source, out)
    assert stored(out, "x")[1].max() == 3071
    record = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({**record, "channel_names": {"0": "T2w"}}))
    assert run(source, out).done == {"x": "its declared modality changed"}
    assert stored(out, "x")[1].max() == values.max() > 3071
    assert run(source, out).done == {}


def test_a_modality_may_be_given_and_belongs_to_the_settings_of_the_folder(tmp_path, capsys):
    source, out = some_cases(tmp_path / "data", 1), tmp_path / "out"
    assert main(["prepare", str(source), str(out), "--modality", "mr", "--workers", "1"]) == 0
    assert stored(out, "case_0")[0].modality == "MR" and read_prepared(out).settings["modality"] == "MR"
    assert main(["prepare", str(source), str(out), "--workers", "1"]) == 2
    assert 'modality was "MR" and is now null' in capsys.readouterr().err


def test_another_dataset_is_refused(tmp_path):
    run(some_cases(tmp_path / "data", 1), tmp_path / "out")
    with pytest.raises(UserError, match='dataset was "data" and is now "other"'):
        run(some_cases(tmp_path / "other", 1), tmp_path / "out")


def test_new_changed_and_removed_cases_are_updated_and_reported(tmp_path):
    source, out = some_cases(tmp_path / "data", 3), tmp_path / "out"
    run(source, out)
    before = snapshot(out / "shards")
    values, labels = values_and_labels(seed=77)
    record = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({**record, "training": record["training"][:1]}))
    add_case(source, "case_1", values, labels)
    add_case(source, "case_9", values, labels)
    report = run(source, out)
    assert report.done == {"case_1": "its files changed", "case_9": "new"} and report.removed == ["case_2"]
    assert report.lines[:4] == [
        "1 case unchanged",
        "1 case prepared, its files changed: case_1",
        "1 case prepared, new: case_9",
        "1 case removed, no longer in the dataset: case_2",
    ]
    after = snapshot(out / "shards")
    assert after["case_0.arrayrecord"] == before["case_0.arrayrecord"]
    assert sorted(after) == ["case_0.arrayrecord", "case_1.arrayrecord", "case_9.arrayrecord"]
    assert (stored(out, "case_1")[1] == values.transpose(2, 1, 0)[:, ::-1, ::-1]).all()


def test_a_case_that_becomes_unreadable_is_removed(tmp_path):
    source, out = some_cases(tmp_path / "data", 2), tmp_path / "out"
    run(source, out)
    (source / "imagesTr" / "case_0.nii.gz").write_text("no image")
    assert set(run(source, out).refused) == {"case_0"}
    assert [case.id for case in read_prepared(out).cases] == ["case_1"]
    assert [path.name for path in (out / "shards").iterdir()] == ["case_1.arrayrecord"]


def test_a_refused_case_is_prepared_after_it_is_fixed(tmp_path):
    source, out = some_cases(tmp_path / "data", 1), tmp_path / "out"
    values, labels = values_and_labels(seed=5)
    add_case(source, "late", values, labels * 2)
    assert "label 4" in run(source, out).refused["late"]
    record = json.loads((source / "dataset.json").read_text())
    record["labels"]["4"] = "vessel"
    (source / "dataset.json").write_text(json.dumps(record))
    report = run(source, out)
    assert report.done == {"late": "new"} and not report.refused
    assert (out / "refused.csv").read_text() == "id,reason\n"
    assert read_prepared(out).labels[4] == "vessel"


@pytest.mark.parametrize("damage", ["shard missing", "shard cut", "sidecar lost", "index lost", "index damaged"])
def test_lost_or_damaged_files_are_written_again(damage, tmp_path):
    source, out = some_cases(tmp_path / "data", 2), tmp_path / "out"
    run(source, out)
    before = contents(out)
    shard, sidecar = out / "shards" / "case_0.arrayrecord", out / "cases" / "case_0.json"
    if damage == "shard missing":
        shard.unlink()
    elif damage == "shard cut":
        os.truncate(shard, 1000)
    elif damage == "sidecar lost":
        sidecar.unlink()
    elif damage == "index lost":
        (out / "index.json").unlink()
    else:
        (out / "index.json").write_text("{}")
    report = run(source, out)
    reasons = {"sidecar lost": {"case_0": "new"}, "index lost": {}, "index damaged": {}}
    assert report.done == reasons.get(damage, {"case_0": "its shard was lost or damaged"})
    assert contents(out) == before


def test_temporary_files_of_a_killed_run_are_removed(tmp_path):
    source, out = some_cases(tmp_path / "data", 1), tmp_path / "out"
    run(source, out)
    before = contents(out)
    (out / "shards" / ".case_0.arrayrecord.tmp").write_text("half")
    (out / "cases" / ".case_0.json.tmp").write_text("half")
    (out / ".unfinished" / "case_0").mkdir(parents=True)
    run(source, out)
    assert contents(out) == before


def test_two_processes_cannot_use_the_same_folder(tmp_path):
    source, out = some_cases(tmp_path / "data", 1), tmp_path / "out"
    with (
        claim_folder(out, read_dataset(source), PrepareConfig()),
        pytest.raises(UserError, match="is in use by this process since"),
    ):
        run(source, out)
    assert run(source, out).done


def test_a_slice_that_differs_after_writing_ends_the_run_and_the_case_is_not_finished(tmp_path, monkeypatch):
    source, out = some_cases(tmp_path / "data", 1), tmp_path / "out"
    write_shard = prepare_case.write_shard

    def faulty(path, slices):
        return write_shard(path, ((values ^ 1, labels) for values, labels in slices))

    monkeypatch.setattr(prepare_case, "write_shard", faulty)
    with pytest.raises(UserError, match="slice 0 differs after writing"):
        run(source, out)
    assert not list((out / "cases").iterdir())
    monkeypatch.undo()
    assert run(source, out).done == {"case_0": "new"}
