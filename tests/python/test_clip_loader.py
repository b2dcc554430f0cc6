"""`reeld.torch.ClipLoader`: the batches of a DataLoader without its workers, and nothing left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import pytest
import reeld
import torch
from reeld.torch import ClipLoader, PendingSamples, VideoClips, collate
from support import TWENTY, Daemon, digest, eventually, mapping_of
from torch.utils.data import DataLoader, RandomSampler, Subset, WeightedRandomSampler, random_split

ARENA = "memfd:reeld-arena"


@pytest.fixture(autouse=True)
def no_leases_before(daemon: Daemon) -> None:
    """What earlier tests held is dead by now; its leases may still be on their way."""
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the leases of earlier tests are given back")


@pytest.fixture
def dataset(media: Path) -> VideoClips:
    """Sixty clips of twenty videos, each with the number of its video."""
    paths = [str(media / name) for name in TWENTY]
    return VideoClips(paths, frames_per_clip=3, clips_per_video=3, sampling="random", targets=range(20))


def content(loader: Iterable[Any]) -> list[tuple[list[str], list[int]]]:
    """What a loader gives: the digests of the clips and the targets, batch by batch."""
    return [([digest(clip) for clip in clips.data], targets.tolist()) for clips, targets in loader]


def loader_threads() -> list[str]:
    """The threads of loaders that are at work."""
    return [thread.name for thread in threading.enumerate() if thread.name == "reeld-clips"]


# ---------------------------------------------------------------------------- as a DataLoader would


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


ORDERS: dict[str, Callable[[VideoClips], dict[str, Any]]] = {
    "in order": lambda _: {"batch_size": 7},
    "whole batches only": lambda _: {"batch_size": 7, "drop_last": True},
    "one by one": lambda _: {},
    "shuffled": lambda _: {"batch_size": 8, "shuffle": True, "generator": seeded(3)},
    "sampler": lambda dataset: {
        "batch_size": 5,
        "sampler": RandomSampler(dataset, replacement=True, num_samples=40, generator=seeded(4)),
    },
    "sampler and generator": lambda _: {
        "batch_size": 6,
        "sampler": WeightedRandomSampler([1.0] * 60, 30, generator=seeded(5)),
        "generator": seeded(6),
    },
    "list as a sampler": lambda _: {"batch_size": 4, "sampler": [59, 0, 0, 7, 12]},
    "batches": lambda _: {"batch_sampler": [[1, 2], [3], [40, 41, 42, 43]]},
}


@pytest.mark.parametrize("order", ORDERS)
def test_batches_are_those_of_a_data_loader_in_every_epoch(dataset: VideoClips, order: str) -> None:
    ours = ClipLoader(dataset, **ORDERS[order](dataset))
    theirs = DataLoader(dataset, collate_fn=collate, **ORDERS[order](dataset))
    assert len(ours) == len(theirs)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        batches = content(ours)
        assert len(batches) == len(ours)
        assert batches == content(theirs)


def test_the_order_follows_torchs_own_seed_as_a_data_loader_does(dataset: VideoClips) -> None:
    torch.manual_seed(11)
    ours = content(ClipLoader(dataset, batch_size=20, shuffle=True))
    after = torch.rand(1)
    torch.manual_seed(11)
    assert content(DataLoader(dataset, batch_size=20, shuffle=True, collate_fn=collate)) == ours
    assert torch.equal(torch.rand(1), after)


def test_subsets_of_a_dataset_give_their_part_of_it(dataset: VideoClips) -> None:
    part = Subset(dataset, [5, 5, 41, 0, 59, 33])
    inner = Subset(part, [4, 0, 2])
    train, rest = random_split(dataset, [50, 10], generator=seeded(8))
    for subset in (part, inner, train, rest, Subset(dataset, [])):
        assert len(ClipLoader(subset, batch_size=4)) == len(DataLoader(subset, batch_size=4))
        assert content(ClipLoader(subset, batch_size=4)) == content(DataLoader(subset, batch_size=4))
    assert content(ClipLoader(train, batch_size=9, shuffle=True, generator=seeded(2))) == content(
        DataLoader(train, batch_size=9, shuffle=True, generator=seeded(2))
    )
    with pytest.raises(TypeError, match="list has no submit"):
        ClipLoader(Subset([1, 2], [0]))  # pyright: ignore[reportArgumentType] # not a dataset


@pytest.mark.parametrize("window", [1, 2, 9])
def test_any_window_gives_the_same(dataset: VideoClips, window: int) -> None:
    assert content(ClipLoader(dataset, batch_size=9, window=window)) == content(
        DataLoader(dataset, batch_size=9, collate_fn=collate)
    )


def test_two_passes_at_the_same_time_do_not_disturb_each_other(dataset: VideoClips) -> None:
    loader = ClipLoader(dataset, batch_size=12)
    pairs = list(zip(loader, loader, strict=True))
    first, second = content([pair[0] for pair in pairs]), content([pair[1] for pair in pairs])
    assert first == second == content(loader)


def test_a_function_of_ones_own_makes_the_batches(dataset: VideoClips) -> None:
    loader = ClipLoader(dataset, batch_size=25, collate_fn=len)
    assert list(loader) == [25, 25, 10]


# ----------------------------------------------------------------------------------------- no copy


def test_every_batch_lies_where_the_engine_wrote_it(dataset: VideoClips) -> None:
    copied = reeld.statistics()["bytes_copied_out"]
    for clips, _ in ClipLoader(dataset, batch_size=10):
        data = clips.data
        assert ARENA in mapping_of(data.data_ptr())
        assert ARENA in mapping_of(data[-1, -1].data_ptr())
        assert data[1].data_ptr() - data[0].data_ptr() == data[0].nbytes
    assert reeld.statistics()["bytes_copied_out"] == copied


def copied_with(files: list[str], window: int, kept_count: int) -> tuple[int, int, int]:
    """Trains on batches of 2 MiB while the last few are kept; (batches, copied results, most leases)."""
    dataset = VideoClips(files, frames_per_clip=3, clips_per_video=10)
    copied_before = reeld.statistics()["results_copied_out"]
    kept: list[Any] = []
    lease_counts = []
    for clips in ClipLoader(dataset, batch_size=1, window=window):
        kept = [*kept, clips][-kept_count:]
        lease_counts.append(reeld.statistics()["leases_held"])
    return len(lease_counts), reeld.statistics()["results_copied_out"] - copied_before, max(lease_counts)


def copied_with_each(files: list[str], cases: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """The above, for pairs of a window and a number of batches to keep."""
    return [copied_with(files, *case) for case in cases]


def test_the_window_shrinks_before_anything_is_copied(
    media: Path, start_daemon: Callable[..., Daemon]
) -> None:
    # Batches of 3 x 640 x 360 x 3 bytes, 2 MiB: seven of them fit into the half of the quota that is free.
    start_daemon("--client-memory-mib", "32")
    files, cases = [str(media / "ten_quotas.mp4")] * 4, [(1, 1), (16, 1), (16, 3), (4, 40)]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        *within, beyond = pool.submit(copied_with_each, files, cases).result(timeout=100)
    for batch_count, copied_count, lease_count_max in within:
        assert (batch_count, copied_count) == (40, 0)
        assert lease_count_max <= 7
    # Who keeps every batch gets copies, and all of them.
    batch_count, copied_count, lease_count_max = beyond
    assert batch_count == 40
    assert copied_count > 20
    assert lease_count_max <= 8


def test_a_window_of_requests_is_on_its_way_while_the_model_trains(media: Path, daemon: Daemon) -> None:
    # Frames that take long to come: late ones of a video that has one keyframe.
    slow = VideoClips([str(media / "slow.mp4")], frames_per_clip=1, clips_per_video=400)
    loader = ClipLoader(slow, batch_size=1, window=3, sampler=[0, 1, 399, 398, 397, 396])
    batches = iter(loader)
    next(batches)
    eventually(lambda: daemon.status()["request_count"] >= 2, "requests of later batches are made meanwhile")
    assert daemon.status()["request_count"] <= 3
    del batches
    eventually(lambda: daemon.status()["request_count"] == 0, "they are cancelled")


# -------------------------------------------------------------------------------------------- ends


def test_leaving_early_cancels_what_is_on_its_way(dataset: VideoClips, daemon: Daemon) -> None:
    for _batch in ClipLoader(dataset, batch_size=4, window=8):
        del _batch
        break
    gc.collect()
    eventually(lambda: daemon.status()["request_count"] == 0, "no request is left")
    eventually(lambda: daemon.lease_count() == 0, "no lease is left")
    eventually(lambda: not loader_threads(), "the thread has ended")


def test_an_epoch_that_is_over_leaves_no_thread_and_no_lease(dataset: VideoClips, daemon: Daemon) -> None:
    batches = iter(ClipLoader(dataset, batch_size=30))
    for _ in range(2):
        next(batches)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(batches)
    eventually(lambda: not loader_threads(), "the thread has ended")
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "no lease is left")


def test_what_is_wrong_with_a_video_is_raised_at_its_batch(media: Path, daemon: Daemon) -> None:
    names = ["twenty_00.mp4", "broken_text.mp4", "twenty_01.mp4", "broken_all_garbage.mp4", "twenty_02.mp4"]
    videos = VideoClips([str(media / name) for name in names], frames_per_clip=2)
    batches = iter(ClipLoader(videos, window=8))
    assert next(batches).data.shape[:2] == (1, 2)
    with pytest.raises(reeld.MediaError):
        next(batches)
    assert next(batches).data.shape[:2] == (1, 2)
    with pytest.raises(reeld.MediaError):
        next(batches)
    assert digest(next(batches).data[0]) == digest(videos[4].data)
    with pytest.raises(StopIteration):
        next(batches)
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "no lease is left")


def test_what_a_sampler_raises_comes_after_the_batches_before(dataset: VideoClips) -> None:
    def indices() -> Iterable[list[int]]:
        yield from ([0], [1])
        raise LookupError("no more")

    class Broken:
        def __iter__(self) -> Any:
            return iter(indices())

    batches = iter(ClipLoader(dataset, batch_sampler=Broken(), window=8))
    assert [next(batches)[1].tolist(), next(batches)[1].tolist()] == [[0], [0]]
    with pytest.raises(LookupError, match="no more"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_a_dataset_of_ones_own_raises_its_own_exceptions(media: Path) -> None:
    class Picky:
        def __len__(self) -> int:
            return 3

        def submit(self, indices: list[int]) -> PendingSamples:
            if indices == [1]:
                raise KeyError("one")
            clips = [reeld.Clip(media / TWENTY[index], indices=[index]) for index in indices]
            return PendingSamples(reeld.submit(clips))

    batches = iter(ClipLoader(Picky()))
    assert len(next(batches)) == 1
    with pytest.raises(KeyError, match="one"):
        next(batches)
    assert len(next(batches)) == 1


INTERRUPTED = """
import sys, threading
import reeld
from reeld.torch import ClipLoader, VideoClips
dataset = VideoClips([sys.argv[1]], frames_per_clip=1, clips_per_video=400)
loader = ClipLoader(dataset, sampler=[0, *range(399, 0, -1)], window=8)
try:
    for number, clips in enumerate(loader):
        print("batch", number, flush=True)
        if number == 0 and sys.argv[2] == "training":
            threading.Event().wait()
except KeyboardInterrupt:
    print("interrupted", flush=True)
del clips
print(reeld.status()["totals"]["requests"] > 0, len(dataset[0]), flush=True)
"""


@pytest.mark.parametrize("moment", [pytest.param("training", marks=pytest.mark.full), "waiting"])
def test_ctrl_c_ends_the_loop_and_leaves_nothing(media: Path, daemon: Daemon, moment: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(media / "slow.mp4"), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "batch 0\n"
        # The first late frame takes seconds, so that the interrupt comes while it is waited for.
        os.kill(child.pid, signal.SIGINT)
        output, errors = child.communicate(timeout=100)
    assert output.splitlines() == ["interrupted", "True 1"], errors
    assert child.returncode == 0, errors
    eventually(lambda: daemon.status()["request_count"] == 0, "the requests are over")
    eventually(lambda: daemon.lease_count() == 0, "their results are given back")


def test_a_program_may_end_in_the_middle_of_an_epoch(media: Path) -> None:
    code = INTERRUPTED.split("try:")[0] + "batches = iter(loader)\nprint(len(next(batches)))\n"
    command = [sys.executable, "-W", "error", "-c", code, str(media / "slow.mp4"), ""]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_makes_an_iterator_of_its_own(dataset: VideoClips) -> None:
    loader = ClipLoader(dataset, batch_size=10)
    batches = iter(loader)
    expected = content([next(batches)])
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        status = 1
        try:
            with pytest.raises(reeld.InvalidRequestError, match="child"):
                next(batches)
            status = 0 if content([next(iter(loader))]) == expected else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(content(batches)) == 5


# ------------------------------------------------------------------------------------------- errors


def test_arguments_that_exclude_each_other_are_value_errors(dataset: VideoClips) -> None:
    with pytest.raises(ValueError, match="batch_sampler"):
        ClipLoader(dataset, batch_size=2, batch_sampler=[[0]])
    with pytest.raises(ValueError, match="shuffle"):
        ClipLoader(dataset, shuffle=True, sampler=[0])
    with pytest.raises(ValueError, match="window"):
        ClipLoader(dataset, window=0)
    for window in (float("nan"), 1.5, "2", None):
        with pytest.raises(TypeError, match="window"):
            ClipLoader(dataset, window=cast("int", window))
    nothing: Any = None
    with pytest.raises(ValueError, match="batch_size"):
        ClipLoader(dataset, batch_size=nothing)


def test_no_collate_function_is_the_default(dataset: VideoClips) -> None:
    assert content(ClipLoader(dataset, batch_size=9, collate_fn=None)) == content(
        ClipLoader(dataset, batch_size=9)
    )


def test_a_dataset_that_cannot_submit_is_a_type_error() -> None:
    pairs: Any = [(1, 2)]
    with pytest.raises(TypeError, match="submit"):
        ClipLoader(pairs)
