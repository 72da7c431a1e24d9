"""The comparison of training with and without corrections: its table, its figure and its runs."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.clicks.__main__ import (
    CORRECTED,
    EVALUATIONS,
    PLAIN,
    ROWS,
    TABLE,
    VARIANTS,
    Options,
    Scores,
    compare,
    main,
    paired_rows,
    read_scores,
    variant_config,
)
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.training.methods import method_of


def made_scores() -> Scores:
    """Four cases, three seeds, two interactions; corrections gain 0.1 after one click, with noise per case."""
    rng = np.random.default_rng(0)
    plain = 0.5 + 0.1 * rng.random((2, 4, 3))
    gain = np.array([0.0, 0.1])[:, None, None] + 0.01 * rng.normal(size=(1, 4, 1))
    return Scores(("a", "b", "c", "d"), {PLAIN: plain, CORRECTED: plain + gain}, {PLAIN: 0.2, CORRECTED: 0.5})


def test_differences_are_paired_by_case_and_seed():
    scores = made_scores()
    before, after = paired_rows(scores)
    assert after.difference - before.difference == pytest.approx(0.1)
    assert after.means[CORRECTED] - after.means[PLAIN] == pytest.approx(after.difference)
    assert after.interval is not None and after.interval[0] > 0 and before.interval is not None
    # The spread over cases of 0.1 is in both variants, so that it is not in the interval of their difference.
    assert after.interval[1] - after.interval[0] < 0.05


def test_variants_differ_in_their_prompts_only(tmp_path):
    plain, corrected = (variant_config(Options(str(tmp_path)), variant, seed=1) for variant in VARIANTS)
    assert plain.data.prompts != corrected.data.prompts and corrected.data.prompts.corrections.clicks > 0
    assert plain.model == corrected.model and plain.training == corrected.training and plain.training.seed == 1
    for config in (plain, corrected):
        method_of(config.model).complete(config)


def test_a_folder_of_another_size_or_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["--out", str(tmp_path)]) == 2
    assert "is not empty and not of this experiment" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "clicks.json").write_text(json.dumps({"cases": 7}))
    assert main(["--out", str(other)]) == 2
    assert "with other settings" in capsys.readouterr().err


@pytest.mark.long  # trains two models; run it with `python -m pytest -m long tests/experiments/test_clicks.py`
def test_the_experiment_runs_resumes_and_writes_one_row_per_variant_seed_case_and_click(tmp_path):
    options = Options(str(tmp_path / "clicks"), cases=5, seeds=1, steps=4, image_size=64, interactions=2)
    quiet: Progress = lambda *_, **__: None  # noqa: E731
    lines = compare(options, quiet)
    out = Path(options.out)
    assert (out / TABLE).read_text().splitlines() == lines and len(lines) == 7
    with (out / ROWS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [(row["variant"], row["seed"], row["corrections"]) for row in rows]
    assert keys == list(itertools.product(VARIANTS, ["0"], ["0", "1", "2"]))
    assert read_scores(options).dice[PLAIN].shape == (3, 1, 1)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*_0/**/interactions.csv")}
    assert len(finished) == len(VARIANTS) * len(EVALUATIONS) and compare(options, quiet) == lines
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # nothing was done again
