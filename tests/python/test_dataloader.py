"""A real torch DataLoader gets right frames, however its workers are started and however its epochs end.

Each case of the matrix is a training program of its own, `trainer.py`, in a process group of its own.
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
import reeld
import torch
from reeld.torch import VideoClips, collate
from support import TWENTY, Daemon, VideoDecoder, digest, eventually, mapping_of, reference_digests
from torch.utils.data import DataLoader, Dataset

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    # More workers than cores, and it says so.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

ARENA = "memfd:reeld-arena"
FRAMES_PER_SECOND = 25
SEED = 77


class Case(NamedTuple):
    """One case of the matrix."""

    outcome: str
    workers: int
    method: str
    is_persistent: bool


OUTCOMES = ["normal", "killed", "interrupted", "raising"]
WORKERS = [1, 4, 8]
METHODS = ["fork", "spawn", "forkserver"]
EVERY_CASE = [
    *(Case(outcome, 0, "none", False) for outcome in OUTCOMES if outcome != "killed"),
    *itertools.starmap(Case, itertools.product(OUTCOMES, WORKERS, METHODS, [False, True])),
]


# After an exception torch takes five seconds for each persistent worker to end it: hence one of those alone.
PERSISTENT = {("normal", 4), ("normal", 8), ("killed", 4), ("interrupted", 4), ("raising", 1)}


def pairwise() -> Iterator[Case]:
    """Cases in which any two values of different columns meet, with as few costly starts as that allows."""
    for row, outcome in enumerate(OUTCOMES):
        for column, workers in enumerate(WORKERS):
            method = METHODS[(row + column + 1) % len(METHODS)]
            yield Case(outcome, workers, method, (outcome, workers) in PERSISTENT)
    yield Case("interrupted", 0, "none", False)


CHOSEN = set(pairwise())
CASES = [
    pytest.param(
        case,
        id="-".join(map(str, case[:3])) + ("-persistent" if case.is_persistent else ""),
        marks=[] if case in CHOSEN else pytest.mark.full,
    )
    for case in EVERY_CASE
]


@cache
def expected_digests(path: str) -> list[str]:
    """The digest of every frame, as TorchCodec decodes it."""
    return reference_digests(Path(path))


@pytest.fixture
def paths(media: Path) -> list[str]:
    """Twenty short videos, which the daemon knows by now; it keeps them open for whoever comes next."""
    paths = [str(media / name) for name in TWENTY]
    assert all(len(VideoDecoder(path)) == 30 for path in paths)
    return paths


def group_members(group: int) -> list[int]:
    """The processes of a process group, zombies, too."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name of the program, in parentheses, may hold anything.
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group:
            members.append(int(stat.parent.name))
    return members


def held_files(daemon: Daemon) -> int:
    """How many videos and arenas the daemon has open."""
    count = 0
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        try:
            name = os.readlink(entry)
        except FileNotFoundError:
            continue
        count += name.endswith((".mp4", ".webm")) or "memfd:" in name
    return count


def has_words(pipe: IO[str] | None) -> bool:
    """Whether there is something to read."""
    return pipe is not None and bool(select.select([pipe], [], [], 0)[0])


def rest_of(program: subprocess.Popen[str]) -> tuple[str, str]:
    """What a program writes until it ends; of one that hangs, where it does."""
    try:
        return program.communicate(timeout=250)
    except subprocess.TimeoutExpired:
        program.send_signal(signal.SIGUSR1)
        eventually(lambda: has_words(program.stderr), "it says where it is")
        program.kill()
        raise AssertionError(f"it hangs: {program.communicate()[1]}") from None


@contextmanager
def training(plan: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A training program in a process group of its own, of which nothing is left afterwards."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("trainer.py")), json.dumps(plan)]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    with program:
        try:
            yield program
            eventually(lambda: not group_members(program.pid), "no process of the training is left")
        finally:
            for pid in group_members(program.pid):
                os.kill(pid, signal.SIGKILL)


def wrong_frames(batches: list[dict[str, Any]], paths: list[str]) -> list[str]:
    """What is not bit for bit what TorchCodec gives, or is not the clip that was asked for."""
    dataset = VideoClips(paths, frames_per_clip=2, step=3, sampling="random", seed=SEED)
    wrong = []
    for batch in batches:
        dataset.set_epoch(batch["epoch"])
        for position, (number, pts_seconds, name) in enumerate(batch["frames"]):
            indices = dataset.clip(number).indices
            assert indices is not None
            index = int(indices[position % 2])
            if (
                round(pts_seconds * FRAMES_PER_SECOND) != index
                or expected_digests(paths[number])[index] != name
            ):
                wrong.append(f"video {number} frame {index} at {pts_seconds} s in epoch {batch['epoch']}")
    return wrong


def assert_outcome(case: Case, lines: list[dict[str, Any]]) -> None:
    """The training saw what it had to see."""
    numbers = [[frame[0] for frame in line["frames"][::2]] for line in lines if line["event"] == "batch"]
    raised = [(line["kind"], line["words"]) for line in lines if line["event"] == "raised"]
    in_order = [[number, number + 1] for number in range(0, len(TWENTY), 2)]
    # The last batch is the one that `after` asks for.
    if case.outcome == "normal":
        assert raised == []
        assert numbers == [*in_order * (2 if case.is_persistent else 1), [0, 1]]
    elif case.outcome == "raising":
        [(kind, words)] = raised
        assert kind == "LookupError"
        assert words.endswith("there is poison in [12, 13]")
        assert numbers == [*in_order[:6], *in_order[7:], [0, 1]]
    elif case.outcome == "killed":
        [(kind, words)] = raised
        assert kind == "RuntimeError"
        assert "DataLoader worker" in words
        assert len(numbers) > case.workers
    else:
        assert raised == [("KeyboardInterrupt", "")]
        assert len(numbers) > case.workers


def test_any_two_values_meet_in_the_cases_that_are_always_run() -> None:
    for first, second in itertools.combinations(range(len(Case._fields)), 2):
        meet = {(case[first], case[second]) for case in CHOSEN if case.workers}
        assert meet == {(case[first], case[second]) for case in EVERY_CASE if case.workers}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_the_matrix(paths: list[str], daemon: Daemon, case: Case) -> None:
    eventually(lambda: daemon.lease_count() == 0, "the leases of earlier tests are given back")
    clients_before, files_before = daemon.status()["client_count"], held_files(daemon)
    plan = {**case._asdict(), "paths": paths, "seed": SEED}
    with training(plan) as program:
        assert program.stdout is not None
        output = []
        if case.outcome == "interrupted":
            for line in program.stdout:
                output.append(line)
                if json.loads(line)["event"] == "ready":
                    break
            os.kill(program.pid, signal.SIGINT)
        rest, errors = rest_of(program)
        assert program.returncode == 0, errors
    eventually(lambda: daemon.status()["client_count"] <= clients_before, "the daemon has forgotten them")
    status = daemon.status()
    left = [
        status[name] for name in ("lease_count", "request_count", "tickets_outstanding", "detached_bytes")
    ]
    assert left == [0, 0, 0, 0]
    eventually(lambda: held_files(daemon) <= files_before, "the daemon has closed what it had of them")
    lines = [json.loads(line) for line in [*output, *rest.splitlines()]]
    assert_outcome(case, lines)
    assert wrong_frames([line for line in lines if line["event"] == "batch"], paths) == []
    end = lines[-1]
    assert end["worker_count"] >= case.workers
    assert (end["left"], end["open_files"]) == ([], [])
    assert (end["leases_held"], end["leases_deferred"]) == (0, 0)


def test_ctrl_c_in_a_terminal_reaches_the_workers_too_and_leaves_nothing(
    paths: list[str], daemon: Daemon
) -> None:
    eventually(lambda: daemon.lease_count() == 0, "the leases of earlier tests are given back")
    clients_before = daemon.status()["client_count"]
    plan = {**Case("interrupted", 4, "fork", False)._asdict(), "paths": paths, "seed": SEED}
    with training(plan) as program:
        assert program.stdout is not None
        while json.loads(program.stdout.readline())["event"] != "ready":
            continue
        # Whether torch reports the interrupt first, or the workers that died of it, is a race of its own.
        os.killpg(program.pid, signal.SIGINT)
        program.communicate(timeout=110)
    eventually(lambda: daemon.status()["client_count"] <= clients_before, "the daemon has forgotten them")
    status = daemon.status()
    assert (status["lease_count"], status["request_count"], status["tickets_outstanding"]) == (0, 0, 0)


# --------------------------------------------------------------- what else trainers do, in this process


class Tensors(Dataset[tuple[torch.Tensor, int]]):
    """Frames of several videos as bare tensors, with the numbers of their videos."""

    def __init__(self, paths: list[str]) -> None:
        self.decoders = [VideoDecoder(path) for path in paths]

    def __len__(self) -> int:
        return len(self.decoders)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        """One frame of each video."""
        return self.decoders[number][number], number


class Preloaded(Dataset[tuple[int, str, torch.Tensor]]):
    """Frames that were decoded before any worker was there, with what the worker finds in them."""

    def __init__(self, paths: list[str]) -> None:
        self.frames = [VideoDecoder(path).get_frame_at(number) for number, path in enumerate(paths)]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: int) -> tuple[int, str, torch.Tensor]:
        """The number, the digest that this process sees, and the pixels."""
        return number, digest(self.frames[number].data), self.frames[number].data


def moved_to_device(batch: Any, device: torch.device) -> Any:
    """What Lightning does with a batch: whatever has a method `to` is moved, collections are gone through."""
    if callable(getattr(batch, "to", None)):
        moved = batch.to(device, **({"non_blocking": True} if isinstance(batch, torch.Tensor) else {}))
        return batch if moved is None else moved
    if isinstance(batch, dict):
        return {key: moved_to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(moved_to_device(value, device) for value in batch)
    return batch


@pytest.mark.parametrize("worker_count", [0, 2])
def test_the_default_collate_gets_right_frames(paths: list[str], worker_count: int) -> None:
    options: dict[str, Any] = {}
    if worker_count:
        options = {"persistent_workers": True, "prefetch_factor": 3, "multiprocessing_context": "fork"}
    loader = DataLoader(Tensors(paths), batch_size=3, shuffle=True, num_workers=worker_count, **options)
    for _epoch in range(2):
        seen = {}
        for frames, numbers in loader:
            seen.update(zip(numbers.tolist(), map(digest, frames), strict=True))
        assert seen == {number: expected_digests(path)[number] for number, path in enumerate(paths)}


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.full)])
def test_frames_that_were_there_before_the_workers_are_right_in_them(paths: list[str], method: str) -> None:
    dataset = Preloaded(paths)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=method)
    for _epoch in range(2):
        for numbers, seen_by_worker, frames in loader:
            expected = [expected_digests(paths[number])[number] for number in numbers.tolist()]
            assert list(seen_by_worker) == expected
            assert [digest(frame) for frame in frames] == expected
    # The frames are this process's still.
    assert [digest(frame.data) for frame in dataset.frames] == [
        expected_digests(path)[number] for number, path in enumerate(paths)
    ]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize("worker_count", [0, 2])
def test_batches_are_pinned_and_moved_as_lightning_does(paths: list[str], worker_count: int) -> None:
    dataset = VideoClips(paths, frames_per_clip=2, targets=range(20))
    options: dict[str, Any] = {"multiprocessing_context": "fork"} if worker_count else {}
    loader = DataLoader(
        dataset, batch_size=5, num_workers=worker_count, collate_fn=collate, pin_memory=True, **options
    )
    for batch in loader:
        clips, numbers = moved_to_device(batch, torch.device("cpu"))
        assert clips.data.is_pinned() == torch.accelerator.is_available()
        for number, clip in zip(numbers.tolist(), clips.data, strict=True):
            assert [digest(frame) for frame in clip] == expected_digests(paths[number])[:2]
        elsewhere, _ = moved_to_device(batch, torch.device("meta"))
        assert elsewhere.data.device.type == "meta"


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.full)])
def test_no_pixel_is_copied_on_its_way_from_the_engine_to_the_trainer(
    paths: list[str], daemon: Daemon, method: str
) -> None:
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the leases of earlier tests are given back")
    before = daemon.status()["totals"]
    dataset = VideoClips(paths, frames_per_clip=3, targets=range(20))
    loader = DataLoader(
        dataset, batch_size=4, num_workers=2, collate_fn=collate, multiprocessing_context=method
    )

    def look_at(clips: reeld.FrameBatch, numbers: torch.Tensor) -> None:
        # The trainer's tensor lies in the memory that the engine wrote for the worker, as one block.
        data = clips.data
        assert data.movedim(-3, -1).is_contiguous()
        assert ARENA in mapping_of(data.data_ptr())
        assert ARENA in mapping_of(data.data_ptr() + data.nbytes - 1)
        for number, clip in zip(numbers.tolist(), data, strict=True):
            assert [digest(frame) for frame in clip] == expected_digests(paths[number])[:3]

    for batch in loader:
        look_at(*batch)
        del batch
    after = daemon.status()["totals"]
    assert after["bytes_copied_out"] == before["bytes_copied_out"]
    assert after["results_copied_out"] == before["results_copied_out"]
    assert after["tickets_redeemed"] == before["tickets_redeemed"] + 5
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the memory is given back when the trainer has done")


def test_a_batch_that_a_worker_made_lives_longer_than_the_worker(paths: list[str], daemon: Daemon) -> None:
    dataset = VideoClips(paths, frames_per_clip=2, targets=range(20))
    loader = DataLoader(
        dataset, batch_size=5, num_workers=2, collate_fn=collate, multiprocessing_context="fork"
    )
    batches = list(loader)
    assert multiprocessing.active_children() == []
    found = {
        number: [digest(frame) for frame in clip]
        for clips, numbers in batches
        for number, clip in zip(numbers.tolist(), clips.data, strict=True)
    }
    assert found == {number: expected_digests(path)[:2] for number, path in enumerate(paths)}
    del batches
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "nothing of the workers is left")
