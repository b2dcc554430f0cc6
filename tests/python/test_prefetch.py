"""Hints from Python: `VideoDecoder.prefetch`, `reeld.prefetch`, and `PrefetchSampler` with a DataLoader."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import reeld
import torch
from reeld import client
from reeld.decoders import VideoDecoder
from reeld.torch import PrefetchSampler, VideoClips, collate
from support import TWENTY, Daemon, Reference, assert_same, eventually, run_python
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture
def clip(media: Path) -> str:
    """Fifty frames, keyframes at 0 and 25."""
    return str(media / "h264_bframes.mp4")


@pytest.fixture
def paths(media: Path) -> list[str]:
    """Twenty short videos."""
    return [str(media / name) for name in TWENTY]


@contextmanager
def connected_to(daemon: Daemon) -> Iterator[None]:
    """Has this process, and workers that it starts, use this daemon for a while."""
    before = client._client, client._socket
    reeld.connect(daemon.socket)
    try:
        yield
    finally:
        client._client, client._socket = before


@pytest.fixture
def alone(start_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    """A daemon that nobody else uses, and this process's connection to it."""
    daemon = start_daemon("--engine-count-max", "2")
    with connected_to(daemon):
        yield daemon


def totals(daemon: Daemon) -> dict[str, int]:
    """What the daemon has counted, once it has nothing more to decode ahead."""

    def is_at_rest() -> bool:
        status = daemon.status()
        return status["hints_waiting"] == 0 and not any(engine["is_busy"] for engine in status["engines"])

    eventually(is_at_rest, "everything is decoded ahead")
    return daemon.status()["totals"]


def hinted(daemon: Daemon, count: int) -> dict[str, int]:
    """The same, after so many frames were hinted at."""
    eventually(lambda: daemon.status()["totals"]["hints_accepted"] >= count, f"{count} hints are there")
    return totals(daemon)


# -------------------------------------------------------------------------------------- decoders


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([3, -1, 30], [3, 49, 30]),
        (range(10, 0, -3), [10, 7, 4, 1]),
        (slice(-3, None), [47, 48, 49]),
        (slice(0, 20, 5), [0, 5, 10, 15]),
        (torch.tensor([7, 8]), [7, 8]),
    ],
    ids=str,
)
def test_prefetched_frames_are_served_from_the_cache(
    clip: str, alone: Daemon, indices: Any, expected: list[int]
) -> None:
    decoder = VideoDecoder(clip)
    assert decoder.prefetch(indices) is None
    before = hinted(alone, len(expected))
    assert before["pictures_prefetched"] == len(expected)
    assert_same(decoder.get_frames_at(expected), Reference(clip).get_frames_at(expected))
    after = totals(alone)
    assert after["pictures_decoded"] == before["pictures_decoded"]
    assert after["prefetch_hits"] == after["cache_hits"] == len(expected)


def test_no_frames_are_no_hint(clip: str, alone: Daemon) -> None:
    decoder = VideoDecoder(clip)
    decoder.prefetch(torch.tensor([], dtype=torch.int64))
    decoder.prefetch([])
    decoder.prefetch(slice(5, 5))
    reeld.prefetch([])
    reeld.prefetch([reeld.Clip(clip, indices=[])])
    assert totals(alone)["hints_accepted"] == 0


@pytest.mark.parametrize("indices", [[0, 50], [-51], range(45, 51), [2**70], [0.5], [[1]]], ids=str)
def test_wrong_index_is_the_error_that_asking_for_it_is(clip: str, indices: Any) -> None:
    decoder = VideoDecoder(clip)
    with pytest.raises(reeld.ReeldError) as asked:
        decoder.get_frames_at(indices)
    with pytest.raises(type(asked.value)) as told:
        decoder.prefetch(indices)
    assert str(told.value) == str(asked.value)


def test_more_frames_than_fit_into_the_quota_may_be_hinted_at(
    start_daemon: Callable[..., Daemon], clip: str
) -> None:
    daemon = start_daemon("--client-memory-mib", "1")
    with connected_to(daemon):
        decoder = VideoDecoder(clip)
        with pytest.raises(reeld.NoSlotsError):
            decoder.get_frames_at(range(50))
        decoder.prefetch(range(50))
        assert hinted(daemon, 50)["pictures_prefetched"] == 50


def test_clips_of_many_videos_are_prefetched_by_index_and_by_time(paths: list[str], alone: Daemon) -> None:
    clips = [reeld.Clip(paths[0], indices=[3, 5]), reeld.Clip(VideoDecoder(paths[1]), seconds=[0.5, 0.9])]
    reeld.prefetch(clips)
    before = hinted(alone, 4)
    one, other = reeld.submit(clips).result()
    assert totals(alone)["pictures_decoded"] == before["pictures_decoded"]
    assert_same(one, Reference(paths[0]).get_frames_at([3, 5]))
    assert_same(other, Reference(paths[1]).get_frames_played_at([0.5, 0.9]))


# -------------------------------------------------------------------------------------- sampler


def batches_of(dataset: Any, *, shuffle: bool = False, seed: int = 0) -> BatchSampler:
    generator = torch.Generator().manual_seed(seed)
    order = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
    return BatchSampler(order, batch_size=3, drop_last=False)


class Keys:
    """A dataset that takes note of what is said of it."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def prefetch(self, keys: Any) -> None:
        self.told.append(list(keys))


@pytest.mark.parametrize("ahead", [1, 2, 100])
def test_items_are_those_of_the_sampler(ahead: int) -> None:
    dataset = Keys()
    sampler = PrefetchSampler(batches_of(range(10), shuffle=True), dataset, ahead=ahead)
    plain = batches_of(range(10), shuffle=True)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs == [list(plain) for _ in range(3)]
    assert len(sampler) == 4
    eventually(lambda: len(dataset.told) > 0, "the dataset is told")
    given = [keys for epoch in epochs for keys in epoch]
    assert all(keys in given for keys in dataset.told)


def test_sampler_is_so_many_items_ahead() -> None:
    taken: list[int] = []

    def keys() -> Iterator[int]:
        for key in range(10):
            taken.append(key)
            yield key

    dataset = Keys()
    items = iter(PrefetchSampler(keys(), dataset, ahead=3))
    assert next(items) == 0
    assert taken == [0, 1, 2, 3]
    eventually(lambda: dataset.told == [[0], [1], [2], [3]], "single keys are told, too")
    assert next(items) == 1
    assert taken == [0, 1, 2, 3, 4]
    assert list(items) == list(range(2, 10))


class Counting:
    """A sampler with a state, as those that training is resumed with."""

    def __init__(self) -> None:
        self.position = 0
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        while self.position < 10:
            self.position += 1
            yield self.position - 1
        self.position = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def test_state_is_that_of_the_items_that_were_given() -> None:
    sampler = PrefetchSampler(Counting(), Keys(), ahead=4)
    items = iter(sampler)
    given = [next(items) for _ in range(3)]
    state = sampler.state_dict()
    resumed = PrefetchSampler(Counting(), Keys(), ahead=2)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert given + list(resumed) == list(range(10))


def test_what_else_the_sampler_has_is_there() -> None:
    sampler = PrefetchSampler(Counting(), Keys())
    sampler.set_epoch(4)
    assert sampler.epoch == 4
    plain = PrefetchSampler(batches_of(range(10)), Keys())
    assert (plain.batch_size, plain.drop_last) == (3, False)
    assert not hasattr(plain, "state_dict")
    with pytest.raises(TypeError):
        len(sampler)
    for copied in (copy.copy(plain), pickle.loads(pickle.dumps(plain))):
        assert list(copied) == list(plain)


def test_wrong_arguments_are_errors() -> None:
    with pytest.raises(reeld.ArgumentTypeError, match="no prefetch"):
        PrefetchSampler([0], [1, 2])  # pyright: ignore[reportArgumentType] # what is tested
    with pytest.raises(reeld.InvalidRequestError, match="at least 1"):
        PrefetchSampler([0], Keys(), ahead=0)


@pytest.mark.parametrize(("workers", "is_persistent"), [(0, False), (2, False), (2, True)])
def test_loader_gives_the_same_batches(
    paths: list[str], alone: Daemon, workers: int, is_persistent: bool
) -> None:
    dataset = VideoClips(paths[:6], frames_per_clip=4, clips_per_video=2, sampling="random", seed=3)

    def loader(batch_sampler: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=is_persistent,
        )

    def epochs(loader: DataLoader[Any]) -> list[torch.Tensor]:
        pixels = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            pixels += [clips.data.clone() for clips in loader]
        return pixels

    hinting = loader(PrefetchSampler(batches_of(dataset, shuffle=True), dataset, ahead=2))
    plain = loader(batches_of(dataset, shuffle=True))
    assert len(hinting) == len(plain) == 4
    ours, reference = epochs(hinting), epochs(plain)
    assert len(ours) == len(reference) == 8
    assert all(torch.equal(one, other) for one, other in zip(ours, reference, strict=True))
    counted = totals(alone)
    assert counted["hints_accepted"] > 0
    assert counted["requests_failed"] == 0


def test_batches_that_are_ahead_are_found_ready(paths: list[str], alone: Daemon) -> None:
    dataset = VideoClips(paths, frames_per_clip=5)
    sampler = PrefetchSampler(batches_of(dataset), dataset, ahead=100)
    items = iter(sampler)
    first = next(items)
    before = hinted(alone, 100)
    keys = [*first, *(key for item in items for key in item)]
    assert keys == list(range(20))
    for key in keys:
        dataset[key]
    after = totals(alone)
    assert after["pictures_decoded"] == before["pictures_decoded"]
    assert after["prefetch_hits"] == 100


def test_video_that_cannot_be_opened_is_the_errors_of_who_asks_for_it(
    paths: list[str], alone: Daemon, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    dataset = VideoClips([str(broken), *paths[:3]], frames_per_clip=2)
    sampler = PrefetchSampler(BatchSampler(SequentialSampler(dataset), 1, False), dataset)
    assert list(sampler) == [[0], [1], [2], [3]]
    hinted(alone, 6)
    with pytest.raises(reeld.MediaError):
        dataset[0]


def test_dataset_whose_prefetch_fails_is_reported_and_training_goes_on() -> None:
    class Wrong(Keys):
        def prefetch(self, keys: Any) -> None:
            super().prefetch(keys)
            raise ZeroDivisionError("of its own")

    dataset = Wrong()
    items: Any = iter(PrefetchSampler(range(10), dataset, ahead=1))
    given = [next(items)]
    eventually(lambda: not items._hints._errors.empty(), "it was asked")
    with pytest.warns(UserWarning, match="Wrong.prefetch raised ZeroDivisionError"):
        given += list(items)
    assert given == list(range(10))
    assert len(dataset.told) == 1


def test_without_a_daemon_items_come_all_the_same(paths: list[str], tmp_path: Path) -> None:
    program = """
import sys
from reeld.torch import PrefetchSampler, VideoClips
dataset = VideoClips(sys.argv[1:], frames_per_clip=2)
sampler = PrefetchSampler([[0], [1], [0, 1]], dataset, ahead=1)
print([list(sampler) for _ in range(2)])
"""
    ended = run_python(
        program, *paths[:2], REELD_SOCKET=str(tmp_path / "nowhere.sock"), REELD_NO_AUTOSTART="1"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.strip() == str([[[0], [1], [0, 1]]] * 2)
