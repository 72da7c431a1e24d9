"""Input pipeline: batches depend only on the seed and their number, are divided among hosts, and use bounded memory."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import grain
import numpy as np
import pytest
from absl import flags

from sam2_3dmed_jax.config import DataConfig, PreprocessingConfig
from sam2_3dmed_jax.data import pipeline, record_files
from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
from sam2_3dmed_jax.data.case_reader import CaseReader
from sam2_3dmed_jax.data.pipeline import clip_batches, iterate
from sam2_3dmed_jax.data.prepared import PreparedDataset, read_prepared
from sam2_3dmed_jax.errors import UserError
from tests.helpers.prepared_files import write_prepared

ROOT = Path(__file__).resolve().parents[2]
CASES, BATCH, SIZE = 7, 2, 32
CONFIG = DataConfig(slices=3, preprocessing=PreprocessingConfig(window="50,100"))
STILL = replace(CONFIG, augmentation=NO_AUGMENTATION)

# Prints the number and digest of each batch, until it is killed. The signal handler is set because background jobs of a
# shell, and their children, ignore Ctrl-C.
CHILD = f"""
import hashlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from sam2_3dmed_jax.config import *
from sam2_3dmed_jax.data.pipeline import clip_batches, iterate
from sam2_3dmed_jax.data.prepared import read_prepared
from sam2_3dmed_jax.data.case_reader import CaseReader
dataset, config = read_prepared(sys.argv[1]), {CONFIG!r}
batches = clip_batches(CaseReader(dataset, config, {SIZE}), dataset.cases, config, {BATCH}, seed=3)
for number, batch in enumerate(iterate(batches, 0, workers=2)):
    digest = hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()
    print(number, digest, flush=True)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Case i has 10 i HU everywhere, and an object on slices of its own."""
    cases = {}
    for i in range(CASES):
        labels = np.zeros((12, SIZE, SIZE), np.uint8)
        labels[i % 4 : i % 4 + 6, 8:20, 10:26] = 1
        cases[f"case{i}"] = (np.full(labels.shape, 10 * i, np.int16), labels)
    return write_prepared(tmp_path_factory.mktemp("pipeline") / "data", cases, {1: "organ"})


def batches_of(dataset, config=CONFIG, seed=3, batch=BATCH, host=0, hosts=1):
    return clip_batches(CaseReader(dataset, config, SIZE), dataset.cases, config, batch, seed, host, hosts)


def processes(batches, workers):
    """The same stream, computed by processes."""
    flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=1)
    return batches.to_iter_dataset(options).mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))


def digest(batch):
    import hashlib

    return hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()


def first(stream, count):
    digests = [digest(next(stream)) for _ in range(count)]
    stream.close()
    return digests


def cases_in(stream, count):
    """The numbers of the cases of the next clips, from their grey values."""
    numbers = [int(hu) // 10 for _ in range(count) for hu in next(stream)["grey"][:, 0, 0, 0]]
    stream.close()
    return numbers


def test_batches_depend_on_the_seed_and_not_on_the_number_or_kind_of_workers(dataset):
    expected = first(iterate(batches_of(dataset), 0, workers=0), 9)
    for workers in (1, 3):
        assert first(iterate(batches_of(dataset), 0, workers), 9) == expected
    assert first(iter(processes(batches_of(dataset), 2)), 9) == expected
    assert not set(first(iterate(batches_of(dataset, seed=4), 0, workers=0), 9)) & set(expected)
    assert len(set(expected)) == 9


def test_a_killed_run_resumes_within_an_epoch_with_another_number_and_kind_of_workers(dataset):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, dataset.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        seen = [child.stdout.readline().split()[1] for _ in range(9)]
        child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    state = 5  # consumed batches: 10 clips of epochs of 7
    assert first(iterate(batches_of(dataset), state, workers=1), 4) == seen[state:]
    assert first(iter(processes(batches_of(dataset)[state:], 3)), 4) == seen[state:]


def test_each_epoch_contains_every_case_once_in_a_new_order(dataset):
    numbers = cases_in(iterate(batches_of(dataset, STILL, batch=1), 0, workers=2), 3 * CASES)
    epochs = [numbers[i : i + CASES] for i in range(0, len(numbers), CASES)]
    assert all(sorted(epoch) == list(range(CASES)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("hosts", [2, 4, 16])
def test_the_items_of_a_run_do_not_depend_on_the_number_of_hosts(dataset, hosts):
    """Batch i of all hosts together has the items of batch i of one host, with more hosts than the 7 cases too."""

    def items(host, hosts, batch):
        stream = iterate(batches_of(dataset, batch=batch, host=host, hosts=hosts), 0, workers=1)
        batches = [next(stream) for _ in range(2)]
        stream.close()
        return [
            [batch["grey"][i].tobytes() + batch["coords"][i].tobytes() for i in range(len(batch["coords"]))]
            for batch in batches
        ]

    alone = items(0, 1, hosts)
    together = [items(host, hosts, 1) for host in range(hosts)]
    for number in range(2):
        assert [each[number][0] for each in together] == alone[number]


@pytest.mark.parametrize("hosts", [2, 5, 32])
def test_each_case_is_drawn_equally_often_for_any_number_of_hosts(dataset, hosts):
    """32 hosts and 7 cases: by hosts' own cases, some cases would be drawn by one host and others by two."""
    rounds = 2 * CASES
    counts = Counter()
    for host in range(hosts):
        counts += Counter(cases_in(iterate(batches_of(dataset, STILL, batch=1, host=host, hosts=hosts), 0, 1), rounds))
    assert set(counts.values()) == {rounds * hosts // CASES}


def test_hosts_draw_different_clips(dataset):
    clips = [next(iterate(batches_of(dataset, batch=1, host=host, hosts=7), 0, workers=0)) for host in range(7)]
    assert len({clip["coords"].tobytes() for clip in clips}) >= 6


@pytest.fixture
def damaged(dataset, tmp_path):
    """The dataset with flipped bits in the records of one shard."""
    cases = {}
    for case in dataset.cases:
        values, labels = dataset.read(case, range(case.shape[0]))
        cases[case.id] = (np.random.default_rng(0).integers(0, 100, values.shape).astype(np.int16), labels)
    copy = write_prepared(tmp_path / "damaged", cases, dataset.labels)
    shard = tmp_path / "damaged" / copy.cases[4].shard
    content = bytearray(shard.read_bytes())
    for at in range(1000, 14000, 500):  # the bytes of its twelve records, which zeros follow
        content[at] ^= 0x40
    shard.write_bytes(content)
    return read_prepared(tmp_path / "damaged"), shard


@pytest.mark.parametrize("kind", ["none", "threads", "processes"])
def test_a_damaged_shard_ends_the_stream_with_one_sentence_for_each_kind_of_worker(damaged, kind):
    dataset, shard = damaged
    batches = batches_of(dataset)
    stream = (
        iter(processes(batches, 1))
        if kind == "processes"
        else iterate(batches, 0, workers=2 if kind == "threads" else 0)
    )
    with pytest.raises(UserError) as caught:
        for _ in range(CASES):
            next(stream)
    stream.close()
    sentence = str(caught.value)
    assert sentence.startswith(f"{shard} is damaged (") and "run `sam2-3dmed prepare` again" in sentence
    assert "\n" not in sentence


def grain_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")}


def test_closing_the_stream_ends_the_workers_and_cancels_batches_that_are_not_started(dataset, monkeypatch):
    begun = []
    real = pipeline.cut_clip
    monkeypatch.setattr(
        pipeline, "cut_clip", lambda *arguments: (begun.append(1), time.sleep(0.02), real(*arguments))[-1]
    )
    before = grain_threads()
    stream = iterate(batches_of(dataset, batch=1), 0, workers=2)
    next(stream)
    mine = grain_threads() - before
    stream.close()
    for thread in mine:
        thread.join(30)
    assert mine and not mine & grain_threads() and len(begun) <= 1 + 3 + 2


def test_a_bounded_number_of_batches_is_prepared_ahead_and_consumed_ones_are_released(dataset, monkeypatch):
    begun = []
    real = pipeline.cut_clip
    monkeypatch.setattr(pipeline, "cut_clip", lambda *arguments: (begun.append(1), real(*arguments))[1])
    seen = []
    stream = iterate(batches_of(dataset), 0, workers=2)
    for number in range(1, 40):
        seen.append(weakref.ref(next(stream)["grey"]))
        assert len(begun) <= BATCH * (number + 3)
        assert sum(array() is not None for array in seen) <= 1  # the latest batch
    stream.close()


def test_a_process_keeps_a_bounded_number_of_shards_open_and_pickles_none(dataset, monkeypatch):
    import pickle

    monkeypatch.setattr(record_files, "MAX_OPEN_FILES", 3)
    mine = read_prepared(dataset.path)
    reader = CaseReader(mine, CONFIG, SIZE)
    before = open_shards(dataset.path)
    stream = iterate(clip_batches(reader, mine.cases, CONFIG, BATCH, seed=0), 0, workers=2)
    for _ in range(20):
        next(stream)
        assert len(mine._shards) <= 3
        assert open_shards(dataset.path) - before <= 3 + 2  # threads may still read two
    stream.close()
    copy = pickle.loads(pickle.dumps(reader))
    assert len(copy.dataset._shards) == 0 and copy.dataset == mine
    np.testing.assert_array_equal(copy.read(mine.cases[0], [3])[0], reader.read(mine.cases[0], [3])[0])


def open_shards(path):
    """The number of open files of this process in a dataset."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += os.readlink(descriptor).startswith(path)
        except OSError:  # closed in the meantime
            continue
    return count


def test_ctrl_c_ends_the_stream_and_its_workers_immediately(dataset):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, dataset.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for _ in range(3):
            child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt") and child.returncode == -signal.SIGINT
