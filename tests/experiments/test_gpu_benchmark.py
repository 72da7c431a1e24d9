"""Check and benchmark for GPUs: what is refused, resumed and left out; and every line of both, on a CPU."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.benchmarks.gpu import benchmark, report, results, sections
from experiments.benchmarks.gpu.attention_paths import SHAPES, SMOKE_SHAPES
from experiments.benchmarks.gpu.check import Outcome, attention_checks, line, wrong
from experiments.benchmarks.gpu.results import FAILED, LEFT_OUT, REFUSED, Entry, Results
from experiments.benchmarks.gpu.sections import CHECK_BUDGET, SECTIONS, Run, Section, Timing

ROOT = Path(__file__).resolve().parents[2]
RIGHT, WRONG = Outcome(1e-3, 2e-2, True), Outcome(math.nan, 2e-2, True, "ValueError: no kernel")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of results of a machine with a GPU."""
    monkeypatch.setattr(results, "machine_facts", lambda: {"device": "NVIDIA H100", "date": "2026-01-01"})
    return tmp_path / "gpu.json"


def section_of(monkeypatch: pytest.MonkeyPatch, budget: float, *timings: Timing) -> None:
    """Let the benchmark have one section, "one"."""

    def found(run: Run) -> Iterator[Timing]:
        yield from timings

    monkeypatch.setitem(SECTIONS, "one", Section("One", budget, found))


def test_all_budgets_together_are_twenty_minutes():
    assert CHECK_BUDGET + sum(section.budget for section in SECTIONS.values()) == 20 * 60


def test_what_a_check_found_wrong_or_did_not_check_is_not_timed(file: Path):
    found = Results(file, smoke=False)
    found.add_check("attention, triton, bfloat16, a", RIGHT)
    found.add_check("attention, triton, bfloat16, b", WRONG)
    never = Timing("never", lambda: pytest.fail("it was timed"), ("attention, triton",))
    assert benchmark.measure(never, found) == {REFUSED: "wrong: attention, triton, bfloat16, b"}
    unchecked = Timing("unchecked", lambda: pytest.fail("it was timed"), ("encoder",))
    assert benchmark.measure(unchecked, found) == {REFUSED: "no check of 'encoder' was run"}
    checked = Timing("checked", lambda: {"ms": 1.0}, ("attention, triton, bfloat16, a",))
    assert benchmark.measure(checked, found) == {"ms": 1.0}


def test_a_second_run_measures_what_has_no_figures_and_first_what_has_not_failed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []
    broken = {"b"}

    def timing(name: str) -> Timing:
        def measured() -> Entry:
            calls.append(name)
            if name in broken:
                raise RuntimeError("an illegal address\nof a kernel")
            return {"ms": 2.0}

        return Timing(name, measured)

    section_of(monkeypatch, 60, timing("a"), timing("b"))
    run = Run(False, tmp_path)
    benchmark.run_section("one", Results(file, smoke=False), run)
    assert Results(file, smoke=False).entry("one", "b") == {FAILED: "RuntimeError: an illegal address of a kernel"}
    broken.clear()
    section_of(monkeypatch, 60, timing("a"), timing("b"), timing("c"))
    benchmark.run_section("one", Results(file, smoke=False), run)
    assert calls == ["a", "b", "c", "b"]
    assert Results(file, smoke=False).entry("one", "b") == {"ms": 2.0}


def test_an_entry_starts_only_within_the_budget_of_its_section(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path):
    section_of(monkeypatch, -1, Timing("late", lambda: pytest.fail("it was timed")))
    found = Results(file, smoke=False)
    benchmark.run_section("one", found, Run(False, tmp_path))
    assert LEFT_OUT in (found.entry("one", "late") or {})


def test_results_of_another_machine_are_not_resumed_but_another_day_is(file: Path, monkeypatch: pytest.MonkeyPatch):
    Results(file, smoke=False).add("one", "a", {"ms": 1.0})
    monkeypatch.setattr(results, "machine_facts", lambda: {"device": "NVIDIA H100", "date": "2026-01-02"})
    assert Results(file, smoke=False).entry("one", "a") == {"ms": 1.0}
    monkeypatch.setattr(results, "machine_facts", lambda: {"device": "NVIDIA L4", "date": "2026-01-01"})
    with pytest.raises(SystemExit, match="differs in device"):
        Results(file, smoke=False)


def test_a_library_that_we_compare_with_may_fail_its_check():
    outcomes = {"ours": RIGHT, "cuDNN": Outcome(math.nan, 2e-2, False, "head dimension 256"), "kernel": WRONG}
    assert wrong(outcomes) == ["kernel"]
    assert line("cuDNN", outcomes["cuDNN"]).startswith("not usable") and line("kernel", WRONG).startswith("WRONG")
    names = [check.name for check in attention_checks(SHAPES)]
    assert len(names) == len(set(names)) == 4 * len(SHAPES) + len(SMOKE_SHAPES)


def test_the_report_has_figures_in_a_table_and_reasons_below_it(file: Path):
    found = Results(file, smoke=False)
    found.add_check("volume", RIGHT)
    found.add("volume", "sam2.1_hiera_tiny, bfloat16, 1 object(s)", {"ms": 1234.5, "slices/s": 77.77})
    found.add("volume", "sam2.1_hiera_large, bfloat16, 1 object(s)", {REFUSED: "wrong: volume"})
    found.add("meta", "volume, sam2.1_hiera_tiny, bfloat16, compiled", {"ms": 1055.0, "slices/s": 91.0})
    report.write(found.record, file)
    text = file.with_suffix(".md").read_text()
    assert "| sam2.1_hiera_tiny, bfloat16, 1 object(s) | 1234 | 77.8 |" in text
    assert "- sam2.1_hiera_large, bfloat16, 1 object(s): refused wrong: volume" in text
    assert "- device: NVIDIA H100" in text and "checks: 1 of 1 right" in text
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment whose compiled programs the runs share."""
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "SAM2_3DMED_CACHE": str(cache)}


def smoke(module: str, environment: dict[str, str], *words: object) -> str:
    """Run a module with --smoke and return what it prints."""
    command = [sys.executable, "-m", f"experiments.benchmarks.gpu.{module}", "--smoke", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_every_check_runs_on_a_cpu_and_is_right(environment: dict[str, str]):
    printed = smoke("check", environment).splitlines()
    assert printed[-1].startswith("all ") and printed[-1].endswith("checks are right")
    for name in ("attention, triton, bfloat16, memory", "reference, each stage", "encoder, wide", "training step"):
        assert any(row.startswith(f"ok         {name}") for row in printed), name


@pytest.mark.long
def test_every_section_runs_on_a_cpu_and_the_same_command_resumes(environment: dict[str, str], tmp_path: Path):
    out = tmp_path / "smoke.json"
    smoke("benchmark", environment, "--out", out)
    record = json.loads(out.read_text())
    assert record["sections"].keys() >= SECTIONS.keys() - {"meta"}  # Meta's sam2 need not be installed
    for entries in record["sections"].values():
        for name, entry in entries.items():
            assert results.has_figures(entry), (name, entry)
    assert "Toy sizes" in out.with_suffix(".md").read_text()
    assert len(smoke("benchmark", environment, "--out", out).splitlines()) == 1  # nothing is measured again
    assert json.loads(out.read_text()) == record


def test_each_timing_names_checks_that_exist(tmp_path: Path):
    from experiments.benchmarks.gpu.check import all_checks

    names = [check.name for check in all_checks(tmp_path, smoke=False)]
    for name, section in SECTIONS.items():
        for timing in section.timings(Run(False, tmp_path)) if name != "meta" else ():
            for need in timing.needs:
                assert any(found.startswith(need) for found in names), (timing.name, need)
    assert sections.META_SECONDS < 20 * 60
