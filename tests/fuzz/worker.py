"""Child process of the fuzzer: makes inputs, reads them with the functions of the project, and reports what happened.

Each line on the pipe is a request, `{"kind": ..., "seed": ..., "index": ...}`, and its answer a `Report` as JSON.
Before the first one of a kind, `{"kind": ..., "prepare": true}` makes the seed. The files of the last input stay in
`ROOT/in` until the next request, so that the parent can keep them after a crash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import hashlib
import importlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 20.0  # limit of one input
GROWTH = 1 << 30  # bytes of memory that one input may take on top of an honest volume
VOLUME_GIB = 0.25  # limit of a volume in the worker, which is the largest honest one
ADDRESS_SPACE = 4 << 30  # bytes on top of what the process has; the last resort
INPUT = "fuzzed"  # name of the folder of an input
# Functions that write, start programs or connect, as Python's audit events; `open` is looked at more closely.
_WRITES = {
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.chmod", "os.chown", "os.utime"),
}
_RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "socket.connect", "socket.getaddrinfo"}
_ANNOUNCED = r"compiling .* \(about .*\)\n"
_STARTS = "guarded_process|fc-list"  # the child of native readers, and matplotlib's list of fonts


@dataclass
class Report:
    """What happened to an input."""

    kind: str
    index: int
    accepted: bool = False
    message: str = ""  # of the refusal
    mutations: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what is against the promise; none is right
    details: str = ""  # such as a traceback
    seconds: float = 0.0  # that have passed, or of a processor if these are less
    growth_mib: int = 0


class Watch:
    """Records what the process does besides reading, while an input is read."""

    def __init__(self, *allowed: Path):
        self.events: list[str] = []
        self.is_on = False
        self._allowed = tuple(f"{folder}{os.sep}" for folder in allowed)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on or event == "import":
            return
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if (writes or (isinstance(mode, str) and set(mode) & set("wax+"))) and not self._is_allowed(path):
                self.events.append(f"opens {path!r:.100} to write")
        elif event in _WRITES and not self._is_allowed(arguments[0], arguments[-1]):
            self.events.append(f"{event} {arguments[0]!r:.100}")
        elif event in _RUNS:
            self.events.append(f"{event} {arguments!r:.100}")
        elif event == "subprocess.Popen" and not re.search(_STARTS, str(arguments[1])):
            self.events.append(f"starts {arguments[1]!r:.100}")

    def _is_allowed(self, path: object, folder: object = -1) -> bool:
        """Return whether a path may be written: temporary files, caches, and `/dev/null`.

        Args:
            path: a path, or an open file, whose path was checked when it was opened.
            folder: descriptor of the folder that a path is relative to, if it is 0 or more.
        """
        if isinstance(path, int):
            return True
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if isinstance(folder, int) and folder >= 0 and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
        return os.path.abspath(text) == os.devnull or f"{os.path.abspath(text)}{os.sep}".startswith(self._allowed)


class Worker:
    """The state of the child: its folders and the seeds."""

    def __init__(self, root: Path, seeds: Path, table: str):
        self.root, self.seeds = root, seeds
        self._warm: set[Any] = set()
        self._unmade: dict[str, str] = {}  # kinds whose seeds cannot be made, and why
        self._kinds = {kind.name: kind for kind in importlib.import_module(table).KINDS}
        self.stderr = root.parent / f"{root.name}.stderr"  # what the project and native libraries write
        self._watch = Watch(root / "tmp", root.parent / f"{root.name}.cache")

    def prepare(self, kind_name: str) -> None:
        """Make the seed of a kind, and do the work that a process does once."""
        kind = self._kinds[kind_name]
        try:
            self._seed(kind_name, kind.seed)
        except BaseException as error:
            self._unmade[kind_name] = f"{type(error).__name__} {error!s:.100}"
        if kind.warm not in self._warm:
            kind.warm()
            self._warm.add(kind.warm)

    def answer(self, kind_name: str, seed: int, index: int) -> Report:
        """Make an input, read it and return what happened."""
        from tests.fuzz.mutations import mutate

        kind = self._kinds[kind_name]
        report = Report(kind_name, index)
        folder = self.root / "in" / INPUT
        remove(folder.parent)
        if kind_name in self._unmade:
            report.problems.append(f"the valid input cannot be made: {self._unmade[kind_name]}")
            return report
        seeded = self._seed(kind_name, kind.seed)
        shutil.copytree(seeded[0], folder, symlinks=True)
        path = folder / seeded[1]
        if index:  # the first input is the seed itself
            chance = random.Random(f"{seed}/{kind_name}/{index}")
            path, report.mutations = mutate(folder, path, kind.targets, chance, kind.is_file)
        self._written()  # of pydicom, which wrote hostile values
        before, names = snapshot(self.root), {each.name for each in [folder, *folder.rglob("*"), path]}
        is_named = kind.is_file and kind.names_file and "rename" not in report.mutations
        self._read(kind.read, path, report, names | set(kind.members) if is_named else None)
        if (after := snapshot(self.root)) != before:
            changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
            report.problems.append(f"files changed: {changed[:3]}")
        if index == 0 and not report.accepted:
            report.problems.append(f"the valid input was refused: {report.message}")
        return report

    def _seed(self, name: str, make: Any) -> tuple[Path, Path]:
        """Return the folder of a kind's seed and the path in it; the workers make each seed once, and share them."""
        folder = self.seeds / re.sub("[^A-Za-z0-9]+", "_", name)
        if not folder.exists():
            temporary = Path(f"{folder}.{os.getpid()}")
            temporary.mkdir(parents=True)
            (temporary / INPUT).mkdir()
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                path = make(temporary / INPUT)
            (temporary / "path").write_text(str(path.relative_to(temporary / INPUT)))
            self._written()
            with contextlib.suppress(OSError):  # another worker was faster
                temporary.rename(folder)
        return folder / INPUT, Path((folder / "path").read_text())

    def _read(self, read: Any, path: Path, report: Report, names: set[str] | None) -> None:
        """Call the reader under all checks, and write the outcome into the report."""
        from sam2_3dmed_jax.errors import FileWarning, UserError, path_errors_as_mistakes
        from sam2_3dmed_jax.runtime.host_memory import peak_bytes, reset_peak

        limit_address_space()
        reset_peak()
        resident, start, used = peak_bytes(), time.monotonic(), _processor_seconds()
        children = self._largest_child()
        self._watch.events, self._watch.is_on = [], True
        warned: list[str] = []

        def note(message: Warning | str, category: type[Warning], *more: Any, **others: Any) -> None:
            if not issubclass(category, FileWarning):
                warned.append(
                    f"warning {category.__name__} at {_frames(traceback.extract_stack())[-1]}: {message!s:.80}"
                )

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", hidden)  # as Python does by default
            warnings.showwarning = note
            try:
                with path_errors_as_mistakes():
                    read(path)
                report.accepted = True
            except UserError as error:
                self._check_message(error, report, names)
            except BaseException as error:
                from starlette.exceptions import HTTPException

                if isinstance(error, HTTPException):  # how the server refuses
                    report.message = str(error.detail)
                else:
                    place = _frames(traceback.extract_tb(error.__traceback__))[-1]
                    report.problems.append(f"exception {type(error).__name__} at {place}: {error!s:.80}")
                    report.details = "".join(traceback.format_exception(error))[-8000:]
        self._watch.is_on = False
        # On a machine with other work, much more time may pass than the processor works for this input.
        report.seconds = round(min(time.monotonic() - start, _processor_seconds() - used), 3)
        report.growth_mib = max(0, peak_bytes() - resident) >> 20
        report.problems += sorted(set(self._watch.events))[:3]
        report.problems += sorted(set(warned))[:3]
        if text := self._written():
            report.problems.append(f"on stderr: {text[:200]!r}")
        if report.seconds > SECONDS:
            report.problems.append("too slow")
        if report.growth_mib << 20 > GROWTH + VOLUME_GIB * 2**30:
            report.problems.append("too much memory")
        # Of a child, the system reports at least what this process had when it started the child.
        if self._largest_child() > max(children, GROWTH + (1 << 29), peak_bytes() + (1 << 20)):
            report.problems.append("too much memory in a child")

    def _check_message(self, error: Exception, report: Report, names: set[str] | None) -> None:
        from sam2_3dmed_jax.errors import LINE, message_line

        report.message = line = message_line(error, LINE - len("error: "))
        if not line.isprintable() or len(line) > LINE or not line:
            report.problems.append("the message is not one line")
        if "Traceback" in line or "object at 0x" in line:
            report.problems.append("the message contains internals")
        if names is not None and not any(name in line for name in names):
            report.problems.append("the message names no file")

    def _largest_child(self) -> int:
        """Return the peak memory of the largest child so far, in bytes; Python and its packages take a part of it."""
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10

    def _written(self) -> str:
        """Return what was written on stderr since the last call, without announcements of long compilations."""
        for stream in (sys.stderr, sys.stdout):
            stream.flush()
        data = self.stderr.read_bytes()
        os.truncate(self.stderr, 0)
        return re.sub(_ANNOUNCED, "", data.decode("utf-8", "replace"))


def _frames(stack: traceback.StackSummary) -> list[str]:
    """Return the places of a stack that are in this repository, outermost first."""
    root = f"{Path(__file__).parents[2]}{os.sep}"
    inside = [frame for frame in stack if frame.filename.startswith(root) and frame.filename != __file__]
    return [f"{frame.filename.removeprefix(root)}:{frame.lineno}" for frame in inside] or ["the fuzzer"]


def _processor_seconds() -> float:
    """Return the time of a processor that this process and its children have taken."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def remove(folder: Path) -> None:
    """Remove the files of an input, whatever they are."""
    shutil.rmtree(folder, ignore_errors=True)


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """Return the type, and the hash or the target, of everything below a folder."""
    return dict(_entries(root))


def _entries(root: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content: Any = ""
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            yield os.path.relpath(path, root), (status.st_mode, content)


def limit_address_space() -> None:
    """Limit the address space relative to what the process has now."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, resource.RLIM_INFINITY))


def main(root: Path, seeds: Path, table: str) -> None:
    """Answer requests until the pipe is closed.

    Args:
        root: folder of the worker.
        seeds: folder of the seeds, which all workers share.
        table: module with the table of kinds.
    """
    # The pipe to the parent moves away from 0 and 1, which readers and native libraries may use.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    written = os.open(root.parent / f"{root.name}.stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    crash = open(root.parent / f"{root.name}.crash", "w")  # noqa: SIM115 (open until the process ends)
    faulthandler.enable(crash)
    os.chdir(root / "cwd")
    from sam2_3dmed_jax.commands import command_line

    command_line.start()
    worker = Worker(root, seeds, table)
    for line in requests:
        request = json.loads(line)
        answer = {}
        if request.get("prepare"):
            worker.prepare(request["kind"])
        else:
            answer = dataclasses.asdict(worker.answer(request["kind"], request["seed"], request["index"]))
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def environment(root: Path) -> dict[str, str]:
    """Return the environment of a worker, whose home and temporary folder are watched."""
    for name in ("home", "tmp", "cwd", "in"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "neighbour.txt").write_text("a file of the user")
    outside = root.parent / f"{root.name}.cache"
    return {
        **os.environ,
        **{"HOME": str(root / "home"), "TMPDIR": str(root / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"},
        **{"XDG_CACHE_HOME": str(outside), "SAM2_3DMED_CACHE": str(outside), "MPLCONFIGDIR": str(outside)},
        **{"SAM2_3DMED_MAX_VOLUME_GIB": str(VOLUME_GIB), "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
        "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }


def start(root: Path, seeds: Path, table: str) -> subprocess.Popen[bytes]:
    """Start a worker; arguments as in `main`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.worker", str(root), str(seeds), table],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(root),
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes], hung: bool = False) -> None:
    """End a worker; one that hangs writes where it is first."""
    if hung:
        process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
