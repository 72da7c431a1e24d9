"""The page of the challenge and its container: commands run, and the files and flags that they name exist."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from experiments.segfm3d import evaluate, predict
from experiments.segfm3d.__main__ import main
from tests.helpers.segfm3d_files import Balls, reference, write_case

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "experiments" / "segfm3d"
PAGE = (ROOT / "docs" / "how-to" / "segfm3d.md").read_text(encoding="utf-8")
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
MODULE = "python -m experiments.segfm3d "
# In place of `docker`: a method that segments the first voxel.
DOCKER = f"""#!/bin/sh
{sys.executable} - <<'END'
import numpy, pathlib
for path in pathlib.Path("inputs").iterdir():
    segs = numpy.zeros(numpy.load(path)["imgs"].shape, numpy.uint8)
    segs[0, 0, 0] = 1
    numpy.savez("outputs/" + path.name, segs=segs)
END
"""


def command_lines(start: str) -> list[list[str]]:
    """Return the words of the commands on the page that start with `start`."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith(start)]


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for module in (evaluate, predict):
        monkeypatch.setattr(module, "load_segmenter", lambda options: Balls())
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text(DOCKER.replace("", ""))
    (tmp_path / "bin" / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for folder in ("inputs", "validation"):
        write_case(tmp_path / folder / "a.npz", gts=None)
    write_case(tmp_path / "validation_gts" / "a.npz", imgs=None, spacing=None)
    commands = command_lines(MODULE)
    assert [words[3] for words in commands] == ["predict", "evaluate", "evaluate"]
    for words in commands:
        assert main(words[3:]) == 0, words
    for folder in ("outputs", "scores", "others"):
        with np.load(tmp_path / folder / "a.npz", allow_pickle=False) as written:
            assert written["segs"].shape == reference().shape
    assert (tmp_path / "scores" / "metrics.csv").exists() and (tmp_path / "others" / "metrics.csv").exists()
    with np.load(tmp_path / "others" / "a.npz", allow_pickle=False) as written:
        assert written["segs"].sum() == 1


def test_the_container_is_built_from_files_that_exist_and_warmed_up_by_our_command(monkeypatch: pytest.MonkeyPatch):
    build, run, commit = command_lines("docker ")
    assert build[build.index("--file") + 1] == (FOLDER / "Dockerfile").relative_to(ROOT).as_posix()
    assert build[build.index("--build-context") + 1].startswith("model=") and "FROM scratch AS model" in DOCKERFILE
    called: list[list[str]] = []
    monkeypatch.setattr(
        "experiments.segfm3d.__main__.run_verb", lambda parser, verbs, words, note: called.append(words) or 0
    )
    start = run.index("python")
    assert run[start : start + 3] == MODULE.split() and main(run[start + 3 :]) == 0
    assert called == [["evaluate", "inputs", "outputs", "--model", "model"]]
    assert f"CMD {json.dumps(['sh', 'predict.sh'])}" in DOCKERFILE and commit[3] == 'CMD ["sh", "predict.sh"]'
    assert "ARG CACHE=" in DOCKERFILE and "CACHE=/workspace/outputs/.cache" in PAGE


def test_every_file_that_the_image_copies_exists_and_every_extra_too():
    copied = [line.split()[:-1] for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)]
    assert len(copied) == 6
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists(), source
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"EXTRAS=(\w+)", DOCKERFILE)) == {"cuda12", "hub"} <= extras.keys()


def test_predict_sh_calls_predict_on_the_folders_of_the_challenge(tmp_path: Path):
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shutil.copy(FOLDER / "predict.sh", tmp_path)
    words = ["/bin/bash", "-c", "sh predict.sh"]  # as the challenge's script calls it
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*MODULE.split()[1:], "predict", "inputs", "outputs", "--model", "model"]


def test_the_container_runs_as_a_user_that_is_not_root():
    assert int(re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[-1]) > 0


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is in the extra dev")
def test_hadolint_finds_nothing_in_the_container_recipe():
    done = subprocess.run(["hadolint", FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
