"""Throughput of clips from shards and from NIfTI files on the host, and its memory over 2,000 clips.

    python experiments/benchmarks/data.py [--data PREPARED --nifti DATASET] [--image-size 1024] [--cases 4] [--clips 40]

Both readers cut the same clips with the same code, which is checked before anything is timed: one reads the slices of a
clip from its shard, the other decompresses the case's `.nii.gz` files with nibabel and selects the slices. Without
--data, a CT-like dataset is generated: smooth tissue with scanner noise, 512 x 512 x 80. MB/s refers to the slices of
the clips as stored (int16 values, uint8 labels). Resizing and augmentation are part of the train step, and not
measured here. The last table has the rate from two threads and the CPU time per clip, each the best of several rounds,
which is what to compare between versions on a shared machine. Prints Markdown tables.
"""

import argparse
import dataclasses
import functools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grain
import nibabel as nib
import numpy as np
from scipy import ndimage

from sam2_3dmed_jax.config import DataConfig
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.datasets import read_dataset
from sam2_3dmed_jax.data.pipeline import clip_batches, iterate
from sam2_3dmed_jax.data.prepare.prepare import prepare_dataset
from sam2_3dmed_jax.data.prepared import PreparedCase, PreparedDataset, read_prepared
from sam2_3dmed_jax.volume.geometry import Grid, to_canonical

MIB = 1 << 20
BEST_OF = 24  # clips per round of the last table, several times as many as threads prepare ahead


@dataclasses.dataclass
class NiftiDataset(PreparedDataset):
    """The same cases from their image files; `read_stored` decompresses both files completely each time."""

    files: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def read_stored(self, case: PreparedCase, slices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        image, label = (nib.load(name) for name in self.files[case.id])
        grid = Grid(image.shape, image.affine)
        values, labels = (to_canonical(np.asarray(file.dataobj), grid) for file in (image, label))
        return values[list(slices)].astype(np.int16), labels[list(slices)].astype(np.uint8)


def generate(folder: Path, cases: int, depth: int) -> None:
    """Write CT-like cases of 512 x 512; zstd and gzip both compress them to a quarter to a third."""
    side = 512
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    body = (rows / 170) ** 2 + (columns / 220) ** 2 < 1
    outside = np.hypot(rows, columns) > side / 2
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(cases):
        rng = np.random.default_rng(number)
        coarse = rng.normal(size=(-(-depth // 8), 40, 40)).astype(np.float32)
        tissue = ndimage.zoom(coarse, (depth / len(coarse), side / 40, side / 40), order=1)
        hu = np.where(body, 40 + 60 * tissue, -1000) + 12 * rng.standard_normal(tissue.shape, np.float32)
        hu[:, outside] = -1024
        labels = ((tissue > 0.8) & body).astype(np.uint8)
        labels[: depth // 4] = labels[-depth // 4 :] = 0
        values = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
        for part, array in (("imagesTr", values), ("labelsTr", labels)):
            nib.save(nib.Nifti1Image(array.T, np.diag([-0.8, -0.8, 2.5, 1.0])), folder / part / f"case{number}.nii.gz")


def as_nifti(prepared: PreparedDataset, files: dict[str, tuple[str, str]]) -> NiftiDataset:
    """Return the NIfTI reader of a prepared dataset."""
    fields = {field.name: getattr(prepared, field.name) for field in dataclasses.fields(prepared) if field.init}
    fields = {name: value for name, value in fields.items() if not name.startswith("_")}
    return NiftiDataset(**fields, files=files)


def open_datasets(prepared_folder: str, nifti_folder: str, cases: int) -> tuple[PreparedDataset, NiftiDataset]:
    """Return the first cases of a prepared dataset, and of the MSD folder from which it was prepared."""
    prepared = read_prepared(prepared_folder)
    prepared = dataclasses.replace(prepared, cases=tuple(case for case in prepared.cases if case.areas)[:cases])
    return prepared, as_nifti(
        prepared, {case.id: (case.image, case.label) for case in read_dataset(nifti_folder).cases}
    )


def batches(dataset: PreparedDataset, config: DataConfig, size: int) -> grain.MapDataset:
    """Return batches of one clip for an image size."""
    return clip_batches(CaseReader(dataset, config, size), dataset.cases, config, 1, seed=0)


def processes(dataset: grain.MapDataset, workers: int) -> Iterator:
    """Return the batches as worker processes read them."""
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=1)
    return iter(dataset.to_iter_dataset(options).mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))


def check_equal(prepared: PreparedDataset, nifti: NiftiDataset, config: DataConfig, size: int, clips: int) -> None:
    """Exit if shards, NIfTI files and threads do not give the same clips."""
    ours, theirs = batches(prepared, config, size), batches(nifti, config, size)
    threads = iterate(ours, 0, 2)
    for number in range(clips):
        clip, spread = theirs[number], next(threads)
        for name, value in ours[number].items():
            if not (np.array_equal(value, clip[name]) and np.array_equal(value, spread[name])):
                raise SystemExit(f"clip {number}: '{name}' differs between shards, NIfTI and threads")
    threads.close()


def seconds_per_clip(
    stream: Iterator, clips: int, rounds: int = 5, choose: Callable[[list[float]], float] = statistics.median
) -> tuple[float, float]:
    """Return the times of a clip over rounds, without the first clips, which start workers and fill buffers.

    Args:
        stream: of clips.
        clips: in all rounds together.
        rounds: number of measurements.
        choose: the statistic over rounds.

    Returns:
        Wall-clock seconds, and CPU seconds of this process, which are more reliable on a shared machine.
    """
    for _ in range(4):
        next(stream)
    clock, cpu, each = [], [], max(clips // rounds, 1)
    for _ in range(rounds):
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(each):
            next(stream)
        clock.append((time.perf_counter() - start) / each)
        cpu.append((time.process_time() - start_cpu) / each)
    stream.close()
    return choose(clock), choose(cpu)


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def peak_of(stream: Iterator, clips: int, every: int) -> list[tuple[int, float]]:
    """Return the peak of the resident memory, in MiB, after every `every` clips."""
    rows, highest = [], 0.0
    for number in range(1, clips + 1):
        next(stream)
        highest = max(highest, resident())
        if number % every == 0:
            rows.append((number, highest))
    stream.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="PREPARED", help="a prepared dataset instead of a generated one")
    parser.add_argument("--nifti", metavar="DATASET", help="the MSD folder from which it was prepared")
    parser.add_argument("--image-size", type=int, default=1024, help="S, pixels; default: %(default)s")
    parser.add_argument("--cases", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--depth", type=int, default=80, help="slices of a generated case; default: %(default)s")
    parser.add_argument("--clips", type=int, default=40, help="timed for each row; default: %(default)s")
    parser.add_argument("--memory-clips", type=int, default=2000, help="default: %(default)s; 0: skip")
    options = parser.parse_args(arguments)
    if bool(options.data) != bool(options.nifti):
        parser.error("--data and --nifti need each other; give both")
    augmented = DataConfig(slices=12)
    still, size = dataclasses.replace(augmented, augmentation=NO_AUGMENTATION), options.image_size

    with tempfile.TemporaryDirectory() as folder:
        if options.data:
            prepared, nifti = open_datasets(options.data, options.nifti, options.cases)
        else:
            generate(Path(folder, "data"), options.cases, options.depth)
            prepare_dataset(read_dataset(Path(folder, "data")), Path(folder, "prepared"), workers=1)
            prepared, nifti = open_datasets(f"{folder}/prepared", f"{folder}/data", options.cases)
        for config in (still, augmented):
            check_equal(prepared, nifti, config, size, min(options.clips, 6))
        stored = augmented.slices * prepared.cases[0].shape[1] * prepared.cases[0].shape[2] * 3 / 1e6
        shape = " x ".join(str(n) for n in prepared.cases[0].shape)
        print(
            f"{len(prepared.cases)} cases such as {shape}, clips of {augmented.slices} slices for {size} px; "
            f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; outputs are equal.\n"
        )
        print("| augmentation | from | workers | clips/s | MB/s | times NIfTI | CPU ms/clip |\n" + "|---" * 7 + "|")
        for name, config in (("none", still), ("default", augmented)):
            loader, reference = batches(prepared, config, size), 0.0
            for source, workers, open_stream in (
                ("NIfTI", "a loop", functools.partial(iterate, batches(nifti, config, size), 0, 0)),
                ("shards", "0", functools.partial(iterate, loader, 0, 0)),
                ("shards", "1 thread", functools.partial(iterate, loader, 0, 1)),
                ("shards", "2 threads", functools.partial(iterate, loader, 0, 2)),
                ("shards", "2 processes", functools.partial(processes, loader, 2)),
            ):
                clips = options.clips if reference else options.clips // 4
                taken, cpu = seconds_per_clip(open_stream(), clips)
                reference = reference or taken
                figures = f"{1 / taken:.1f} | {stored / taken:.0f} | {reference / taken:.1f}"
                own = "" if "processes" in workers else f"{1e3 * cpu:.0f}"
                print(f"| {name} | {source} | {workers} | {figures} | {own} |", flush=True)
        taken, cpu = seconds_per_clip(iterate(batches(prepared, augmented, size), 0, 2), 3 * BEST_OF, 3, min)
        print("\n| feed of a training step | clips/s, 2 threads | CPU ms/clip |\n|---|---|---|")
        print(f"| D = {augmented.slices}, {size} px, default augmentation | {1 / taken:.1f} | {1e3 * cpu:.0f} |")
        if options.memory_clips:
            every = max(options.memory_clips // 10, 1)
            rows = peak_of(iterate(batches(prepared, augmented, size), 0, 2), options.memory_clips, every)
            print("\n| clips | peak resident memory, MiB |\n|---|---|")
            for clips, peak in rows:
                print(f"| {clips} | {peak:.0f} |")
            print(f"\nGrowth after the first {every} clips: {rows[-1][1] - rows[0][1]:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
