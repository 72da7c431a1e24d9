"""Idiom check: refuses wording that `tools/idioms.toml` lists, in every tracked text file.

Files of results and stored data, licences and this folder's list are left out. Exit code 1 when something is found.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".cff", ".txt", ".js", ".html"}
LEFT_OUT = (
    "experiments/paper/results/",
    "experiments/benchmarks/results/",
    "tests/parity/logs/",
    "tools/idioms.toml",
    "sam2_3dmed_jax/server/page/static/niivue.",  # vendored
    "LICENSE",
)


def findings(files: list[Path]) -> list[str]:
    """Return one line per match: file, line number, the words, and the fix."""
    listed = tomllib.loads((ROOT / "tools" / "idioms.toml").read_text(encoding="utf-8"))["idiom"]
    idioms = [(re.compile(entry["pattern"], re.IGNORECASE), entry["fix"]) for entry in listed]
    lines = []
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if path.suffix not in SUFFIXES or name.startswith(LEFT_OUT):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            lines += [
                f"{name}:{number}: '{match[0]}': {fix}" for pattern, fix in idioms for match in pattern.finditer(line)
            ]
    return lines


def tracked() -> list[Path]:
    """Return the files that git tracks, and new files that it does not ignore."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def main() -> int:
    """Check the files that the command line names, or all tracked files."""
    files = [Path(name).resolve() for name in sys.argv[1:]] or tracked()
    lines = findings(files)
    print("\n".join(lines))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
