"""Frames go to other processes of torch and multiprocessing without a copy, and outlive the worker."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import signal
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import reeld
import torch
from reeld import client, samplers
from reeld.frames import Frame, FrameBatch
from reeld.torch import collate
from support import (
    Daemon,
    VideoDecoder,
    digest,
    eventually,
    mapping_of,
    reference_digests,
    run_python,
)
from torch.utils.data import DataLoader, Dataset

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

ARENA = "memfd:reeld-arena"
CLIP = "h264_bframes.mp4"
INDICES = [3, 17, 40]
SECONDS_MAX = 100


@pytest.fixture
def video(media: Path) -> str:
    return str(media / CLIP)


@pytest.fixture
def counters(daemon: Daemon) -> Iterator[dict[str, int]]:
    """The daemon's totals before the test; afterwards nothing may be left."""
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the leases of earlier tests are given back")
    yield daemon.status()["totals"]
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "all leases are given back")
    eventually(lambda: daemon.status()["tickets_outstanding"] == 0, "no ticket is left")


def since(daemon: Daemon, before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in daemon.status()["totals"].items()}


def digests_of(video: str, indices: list[int]) -> list[str]:
    expected = reference_digests(Path(video))
    return [expected[index] for index in indices]


def frame_digests(batch: FrameBatch) -> list[str]:
    return [digest(frame) for frame in batch.data]


def is_in_arena(data: torch.Tensor) -> bool:
    return ARENA in mapping_of(data.data_ptr()) and ARENA in mapping_of(data.data_ptr() + data.nbytes - 1)


def handed_over(frames: Any) -> Any:
    """Through the pickle of a queue, within this process."""
    return pickle.loads(ForkingPickler.dumps(frames))


# -------------------------------------------------------------------------------------- to processes


def put_batch(video: str, queue: Any, is_taken: Any) -> None:
    queue.put(VideoDecoder(video).get_frames_at(INDICES))
    is_taken.wait(SECONDS_MAX)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_batch_in_a_queue_is_the_same_memory_in_the_other_process(
    video: str, daemon: Daemon, counters: dict[str, int], method: str
) -> None:
    context: Any = get_context(method)
    queue, is_taken = context.Queue(), context.Event()
    worker = context.Process(target=put_batch, args=(video, queue, is_taken))
    worker.start()
    batch = queue.get(timeout=SECONDS_MAX)
    is_taken.set()
    worker.join()
    assert frame_digests(batch) == digests_of(video, INDICES)
    assert is_in_arena(batch.data)
    expected = VideoDecoder(video).get_frames_at(INDICES)
    assert torch.equal(batch.pts_seconds, expected.pts_seconds)
    assert torch.equal(batch.duration_seconds, expected.duration_seconds)
    counted = since(daemon, counters)
    assert (counted["tickets_issued"], counted["tickets_redeemed"], counted["tickets_expired"]) == (1, 1, 0)
    assert counted["bytes_copied_out"] == 0


def test_a_batch_of_a_killed_worker_can_still_be_taken_and_read(
    video: str, daemon: Daemon, counters: dict[str, int]
) -> None:
    context: Any = get_context("spawn")
    queue, is_taken = context.Queue(), context.Event()
    worker = context.Process(target=put_batch, args=(video, queue, is_taken))
    worker.start()
    # The bytes are in the queue's pipe, and have not been looked at.
    assert queue._poll(SECONDS_MAX)
    assert daemon.status()["tickets_outstanding"] == 1
    before = daemon.status()["client_count"]
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join()
    eventually(lambda: daemon.status()["client_count"] == before - 1, "the worker's death is noticed")
    assert daemon.status()["detached_bytes"] > 0
    batch = queue.get(timeout=SECONDS_MAX)
    assert frame_digests(batch) == digests_of(video, INDICES)
    assert is_in_arena(batch.data)
    del batch
    gc.collect()
    eventually(lambda: daemon.status()["detached_bytes"] == 0, "the worker's memory is given back")


def echo(video: str, requests: Any, replies: Any) -> None:
    """Sends back what it gets, until it gets None."""
    while (frames := requests.get(timeout=SECONDS_MAX)) is not None:
        replies.put(frames)


def test_frames_come_back_through_another_process(video: str, counters: dict[str, int]) -> None:
    context = get_context("spawn")
    requests, replies = context.Queue(), context.Queue()
    child = context.Process(target=echo, args=(video, requests, replies))
    child.start()
    decoder = VideoDecoder(video)
    frame = decoder.get_frame_at(9)
    requests.put(frame)
    again = replies.get(timeout=SECONDS_MAX)
    requests.put(None)
    assert digest(again.data) == digests_of(video, [9])[0]
    assert (again.pts_seconds, again.duration_seconds) == (frame.pts_seconds, frame.duration_seconds)
    # It is the very same memory.
    frame.data.fill_(7)
    assert bool((again.data == 7).all())
    child.join()


# ------------------------------------------------------------------------------------ in a DataLoader


class Clips(Dataset[FrameBatch]):
    """Three frames a time of one video."""

    def __init__(self, video: str, count: int) -> None:
        self.video = video
        self.count = count
        self.decoder: Any = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> FrameBatch:
        """Opens the video at the first use in this process."""
        if self.decoder is None:
            self.decoder = VideoDecoder(self.video)
        return self.decoder.get_frames_at([item, item + 1, item + 2])


def as_it_is(clip: FrameBatch) -> FrameBatch:
    return clip


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_data_loader_hands_batches_over_without_a_copy(
    video: str, daemon: Daemon, counters: dict[str, int], method: str
) -> None:
    loader = DataLoader(
        Clips(video, 8),
        batch_size=None,
        num_workers=2,
        collate_fn=as_it_is,  # pyright: ignore[reportArgumentType] # there is no list without a batch size
        multiprocessing_context=method,
    )
    batch = None
    for item, batch in enumerate(loader):
        assert frame_digests(batch) == digests_of(video, [item, item + 1, item + 2])
        assert is_in_arena(batch.data)
    counted = since(daemon, counters)
    assert (counted["tickets_issued"], counted["tickets_redeemed"]) == (8, 8)
    assert (counted["bytes_copied_out"], counted["results_copied_out"]) == (0, 0)
    del batch


def test_a_trainer_that_keeps_everything_and_workers_with_little_memory_come_to_an_end(
    video: str, tmp_path: Path
) -> None:
    code = """
import sys, torch, reeld
from torch.utils.data import DataLoader
from test_tickets import Clips, as_it_is, frame_digests, digests_of
loader = DataLoader(Clips(sys.argv[1], 40), batch_size=None, num_workers=2, collate_fn=as_it_is)
kept = list(loader)
for item, batch in enumerate(kept):
    assert frame_digests(batch) == digests_of(sys.argv[1], [item, item + 1, item + 2]), item
totals = reeld.status()["totals"]
print(len(kept), totals["bytes_copied_out"] > 0, totals["tickets_issued"] > 0)
"""
    # Two clips of half a megabyte are half of it.
    with_little = Daemon(tmp_path, "--client-memory-mib", "2")
    try:
        folders = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        result = run_python(code, video, REELD_SOCKET=str(with_little.socket), PYTHONPATH=folders)
    finally:
        with_little.stop()
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["40", "True", "True"]


# ------------------------------------------------------------------------------------------- by value


def by_pickle(batch: Any) -> Any:
    return pickle.loads(pickle.dumps(batch))


def by_torch(batch: Any) -> Any:
    file = io.BytesIO()
    torch.save(batch, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [by_pickle, copy.deepcopy, by_torch])
def test_other_copies_have_pixels_of_their_own(
    video: str, daemon: Daemon, counters: dict[str, int], copied: Any
) -> None:
    decoder = VideoDecoder(video)
    for original in (decoder.get_frames_at(INDICES), decoder.get_frame_at(3)):
        expected = digest(original.data)
        clone = copied(original)
        assert type(clone) is type(original)
        assert digest(clone.data) == expected
        assert ARENA not in mapping_of(clone.data.data_ptr())
        clone.data.fill_(0)
        assert digest(original.data) == expected
        assert is_in_arena(original.data)
        assert is_in_arena(handed_over(original).data)
    assert since(daemon, counters)["tickets_issued"] == 2


def test_pixels_that_were_put_in_the_place_of_ours_go_by_value(
    video: str, daemon: Daemon, counters: dict[str, int]
) -> None:
    batch = VideoDecoder(video).get_frames_at(INDICES)
    batch.data = batch.data.clone()
    assert torch.equal(handed_over(batch).data, batch.data)
    own = FrameBatch(torch.ones(1, 3, 2, 2), torch.zeros(1).double(), torch.ones(1).double())
    assert torch.equal(handed_over(own).data, own.data)
    frame = Frame(torch.ones(3, 2, 2), 0.5, 0.25)
    assert handed_over(frame).pts_seconds == 0.5
    assert since(daemon, counters)["tickets_issued"] == 0


def test_parts_of_a_batch_go_as_tickets_with_their_shape_and_steps(
    video: str, daemon: Daemon, counters: dict[str, int]
) -> None:
    batch = VideoDecoder(video).get_frames_at(INDICES)
    for part in (batch[1], batch[1:], batch[::2], *batch):
        again = handed_over(part)
        assert torch.equal(again.data, part.data)
        assert again.data.stride() == part.data.stride()
        assert torch.equal(again.pts_seconds, part.pts_seconds)
        assert is_in_arena(again.data)
    assert since(daemon, counters)["tickets_redeemed"] == 6


def test_views_of_another_shape_are_handed_over_too(video: str, counters: dict[str, int]) -> None:
    decoder = VideoDecoder(video, dimension_order="NHWC", output_dtype="float32")
    parts = decoder.get_frames_at([0, 1, 2, 3])
    batch = FrameBatch(
        parts.data.reshape(2, 2, 180, 320, 3),
        parts.pts_seconds.reshape(2, 2),
        parts.duration_seconds.reshape(2, 2),
    )
    batch._memory = parts._memory
    again = handed_over(batch)
    assert torch.equal(again.data, batch.data)
    assert is_in_arena(again.data)
    assert torch.equal(again.pts_seconds, batch.pts_seconds)


SAMPLERS: dict[str, dict[str, Any]] = {
    "clips_at_random_indices": {"num_clips": 3},
    "clips_at_regular_indices": {"num_clips": 3},
    "clips_at_random_timestamps": {"num_clips": 3},
    "clips_at_regular_timestamps": {"seconds_between_clip_starts": 0.5},
}


class Sampled(Dataset[FrameBatch]):
    """One sample for each sampler."""

    def __init__(self, video: str) -> None:
        self.decoder = VideoDecoder(video)

    def __len__(self) -> int:
        return len(SAMPLERS)

    def __getitem__(self, item: int) -> FrameBatch:
        """The same clips each time."""
        torch.manual_seed(item)
        name = list(SAMPLERS)[item]
        return getattr(samplers, name)(self.decoder, num_frames_per_clip=2, **SAMPLERS[name])


def test_clips_of_samplers_are_handed_over_without_a_copy(
    video: str, daemon: Daemon, counters: dict[str, int]
) -> None:
    dataset = Sampled(video)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=1,
        collate_fn=as_it_is,  # pyright: ignore[reportArgumentType] # there is no list without a batch size
    )
    clips = expected = None
    for item, clips in enumerate(loader):
        expected = dataset[item]
        assert clips.data.shape == (len(expected), 2, 3, 180, 320)
        assert torch.equal(clips.data, expected.data)
        assert torch.equal(clips.pts_seconds, expected.pts_seconds)
        assert torch.equal(clips.duration_seconds, expected.duration_seconds)
        assert is_in_arena(clips.data)
    del clips, expected
    counted = since(daemon, counters)
    assert (counted["tickets_redeemed"], counted["bytes_copied_out"]) == (len(SAMPLERS), 0)


def test_a_pickle_is_good_for_one_process(video: str, counters: dict[str, int]) -> None:
    pickled = bytes(ForkingPickler.dumps(VideoDecoder(video).get_frames_at(INDICES)))
    assert frame_digests(pickle.loads(pickled)) == digests_of(video, INDICES)
    lost = pickle.loads(pickled)
    with pytest.raises(reeld.FramesLostError, match="redeemed already"):
        assert lost.data


def put_on(frames: Any) -> Any:
    frames.label = "cat"
    return frames


def with_float32_times(batch: FrameBatch) -> FrameBatch:
    batch.pts_seconds = batch.pts_seconds.float()
    return batch


def with_a_gradient(batch: FrameBatch) -> FrameBatch:
    batch.duration_seconds.requires_grad_()
    return batch


def with_times_of_another_shape(batch: FrameBatch) -> FrameBatch:
    batch.pts_seconds = batch.pts_seconds.reshape(-1, 1)
    return batch


def with_a_list_of_times(batch: Any) -> FrameBatch:
    batch.duration_seconds = batch.duration_seconds.tolist()
    return batch


def with_a_tensor_for_its_time(frame: Any) -> Frame:
    frame.pts_seconds = torch.tensor(frame.pts_seconds)
    return frame


BATCH_CHANGES: list[Any] = [
    *(put_on, with_float32_times, with_a_gradient, with_times_of_another_shape, with_a_list_of_times)
]


@pytest.mark.parametrize("changed", BATCH_CHANGES)
def test_what_else_is_on_a_batch_is_kept(
    video: str, daemon: Daemon, counters: dict[str, int], changed: Any
) -> None:
    batch = changed(VideoDecoder(video).get_frames_at(INDICES))
    again = handed_over(batch)
    assert repr(again) == repr(batch)
    assert getattr(again, "label", None) == getattr(batch, "label", None)
    assert torch.equal(again.data, batch.data)
    assert_is_counted_as_a_copy(daemon, counters, batch)


@pytest.mark.parametrize("changed", [put_on, with_a_tensor_for_its_time])
def test_what_else_is_on_a_frame_is_kept(
    video: str, daemon: Daemon, counters: dict[str, int], changed: Any
) -> None:
    frame = changed(VideoDecoder(video).get_frame_at(3))
    again = handed_over(frame)
    assert repr(again) == repr(frame)
    assert getattr(again, "label", None) == getattr(frame, "label", None)
    assert torch.equal(again.data, frame.data)
    assert_is_counted_as_a_copy(daemon, counters, frame)


def assert_is_counted_as_a_copy(daemon: Daemon, before: dict[str, int], frames: Any) -> None:
    assert since(daemon, before)["tickets_issued"] == 0
    assert reeld.status()["totals"]["bytes_copied_out"] - before["bytes_copied_out"] == frames.data.nbytes


@pytest.mark.parametrize(
    "taken", [lambda decoder: decoder.get_frames_at(INDICES), lambda decoder: decoder.get_frame_at(3)]
)
def test_lost_frames_raise_where_they_are_used(video: str, counters: dict[str, int], taken: Any) -> None:
    pickled = bytes(ForkingPickler.dumps(taken(VideoDecoder(video))))
    kept = pickle.loads(pickled)
    lost = pickle.loads(pickled)
    assert isinstance(lost, type(kept))
    uses: list[Any] = [
        *(lambda: lost.data, lambda: lost.pts_seconds, lambda: lost.duration_seconds, lambda: list(lost)),
        *(lambda: lost.pin_memory(), lambda: lost.to("cpu")),
        *(lambda: handed_over(lost).data, lambda: copy.deepcopy(lost).data, lambda: by_pickle(lost).data),
    ]
    if isinstance(kept, FrameBatch):
        uses += [lambda: len(lost), lambda: lost[0], lambda: lost[:1], lambda: collate([lost])]
    for use in uses:
        with pytest.raises(reeld.FramesLostError, match="redeemed already"):
            use()
    assert "redeemed already" in repr(lost)
    assert not hasattr(lost, "label")


def test_a_worker_may_drop_its_frames_before_they_are_taken(video: str, counters: dict[str, int]) -> None:
    decoder = VideoDecoder(video)
    batch = decoder.get_frames_at(INDICES)
    pickled = bytes(ForkingPickler.dumps(batch))
    del batch
    gc.collect()
    # Enough to take any slot that is free.
    for index in range(30):
        decoder.get_frame_at(index)
    assert frame_digests(pickle.loads(pickled)) == digests_of(video, INDICES)


def test_memory_is_given_back_when_the_pixels_are_replaced(
    video: str, daemon: Daemon, counters: dict[str, int]
) -> None:
    batch = VideoDecoder(video).get_frames_at(INDICES)
    batch.data = batch.data.float()
    eventually(lambda: daemon.lease_count() == 0, "the memory is given back")
    assert len(handed_over(batch)) == len(INDICES)


def test_what_may_not_be_handed_on_goes_by_value_and_is_counted(video: str, tmp_path: Path) -> None:
    code = """
import pickle, sys, reeld
from multiprocessing.reduction import ForkingPickler
from test_tickets import frame_digests, digests_of
from reeld.decoders import VideoDecoder
decoder = VideoDecoder(sys.argv[1])
pickles = []
for index in range(0, 40, 4):
    batch = decoder.get_frames_at([index])
    pickles.append((index, bytes(ForkingPickler.dumps(batch))))
    del batch
statistics, status = reeld.statistics(), reeld.status()
for index, pickled in pickles:
    assert frame_digests(pickle.loads(pickled)) == digests_of(sys.argv[1], [index]), index
print(status["tickets_outstanding"], statistics["results_copied_out"])
"""
    daemon = Daemon(tmp_path, "--client-memory-mib", "1")
    try:
        folders = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        result = run_python(code, video, REELD_SOCKET=str(daemon.socket), PYTHONPATH=folders)
    finally:
        daemon.stop()
    assert result.returncode == 0, result.stderr
    issued, copied = map(int, result.stdout.split())
    # Half of a mebibyte holds two frames.
    assert (issued, issued + copied) == (2, 10)


def test_numpy_alone_hands_frames_over_as_well(video: str, daemon: Daemon, counters: dict[str, int]) -> None:
    code = """
import sys
sys.modules["torch"] = None
import pickle
import numpy as np
from multiprocessing.reduction import ForkingPickler
from reeld.decoders import VideoDecoder
batch = VideoDecoder(sys.argv[1]).get_frames_at([3, 17])
again = pickle.loads(ForkingPickler.dumps(batch))
assert np.array_equal(again.data, batch.data) and again.data.strides == batch.data.strides
assert np.array_equal(again.pts_seconds, batch.pts_seconds)
batch.data[:] = 5
assert (again.data == 5).all()
copy = pickle.loads(pickle.dumps(batch))
batch.data[:] = 6
assert (copy.data == 5).all()
"""
    result = run_python(code, video)
    assert result.returncode == 0, result.stderr
    assert since(daemon, counters)["tickets_redeemed"] == 1


def test_a_pickle_that_points_elsewhere_is_refused(video: str, counters: dict[str, int]) -> None:
    batch = VideoDecoder(video).get_frames_at([0])
    assert batch._memory is not None
    connection = client.default_client()
    for offset, shape, strides in [
        (2**40, [1], [1]),
        (0, [2**40], [1]),
        (0, [2], [2**62]),
        (0, [1] * 9, [1] * 9),
    ]:
        with pytest.raises(ValueError, match="do not lie within"):
            connection.redeem(
                batch._memory.ticket(), dtype="uint8", offset=offset, shape=shape, strides=strides
            )
    with pytest.raises(reeld.InvalidRequestError, match="no ticket"):
        connection.redeem(b"nonsense", dtype="uint8", offset=0, shape=[1], strides=[1])


# ------------------------------------------------------------------------------------------- moved


def test_a_batch_moves_as_its_pixels_do(video: str, counters: dict[str, int]) -> None:
    batch = VideoDecoder(video).get_frames_at(INDICES)
    same = batch.to("cpu")
    assert same.data is batch.data
    assert is_in_arena(handed_over(same).data)
    half = batch.to(torch.float16)
    assert half.data.dtype == torch.float16
    assert half.pts_seconds.dtype == torch.float64
    assert frame_digests(handed_over(half).to(torch.uint8)) == frame_digests(batch)


def test_copies_that_python_makes_are_counted(video: str, daemon: Daemon, counters: dict[str, int]) -> None:
    VideoDecoder(video).get_frame_at(0)
    client._count_copy(1234)
    eventually(lambda: since(daemon, counters)["bytes_copied_out"] == 1234, "the daemon is told")
    assert since(daemon, counters)["results_copied_out"] == 1
