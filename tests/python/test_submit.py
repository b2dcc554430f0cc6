"""Frames of many videos by one request: right frames in the order asked for, in one lease, with futures."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import Any

import pytest
import reeld
import torch
from support import (
    TWENTY,
    Daemon,
    Reference,
    VideoDecoder,
    assert_same,
    digest,
    eventually,
    reference_digests,
)


@pytest.fixture(autouse=True)
def no_leases_before(daemon: Daemon) -> None:
    """What earlier tests held is dead by now; its leases may still be on their way."""
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the leases of earlier tests are given back")


def test_clips_of_twenty_videos_come_in_the_order_asked_for(media: Path) -> None:
    choice = random.Random(20)
    wanted = [(str(media / name), choice.choices(range(30), k=5)) for name in choice.sample(TWENTY, 20)]
    batches = reeld.submit([reeld.Clip(path, indices=indices) for path, indices in wanted]).result()
    for (path, indices), batch in zip(wanted, batches, strict=True):
        assert_same(batch, Reference(path).get_frames_at(indices))


def test_clips_by_time_and_by_index_of_one_decoder(media: Path) -> None:
    file = str(media / "variable_rate.mp4")
    ours, reference = VideoDecoder(file), Reference(file)
    times = [1.9, 0.0, 0.5]
    clips = [
        reeld.Clip(ours, seconds=times),
        reeld.Clip(ours, indices=range(0, 30, 7)),
        reeld.Clip(ours, indices=[]),
    ]
    by_time, by_index, empty = reeld.submit(clips).result()
    assert_same(by_time, reference.get_frames_played_at(times))
    assert_same(by_index, reference.get_frames_at(range(0, 30, 7)))
    assert len(empty) == 0


def test_one_submission_is_one_lease(media: Path, daemon: Daemon) -> None:
    batches = reeld.submit([reeld.Clip(media / name, indices=[0, 1]) for name in TWENTY[:5]]).result()
    assert daemon.lease_count() == 1
    del batches[1:]
    gc.collect()
    assert daemon.lease_count() == 1
    assert digest(batches[0].data[1]) == reference_digests(media / TWENTY[0])[1]
    del batches
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the lease is given back when the last batch has died")


def test_many_submissions_on_their_way_at_once(media: Path) -> None:
    expected = [reference_digests(media / name) for name in TWENTY]
    decoders = [VideoDecoder(str(media / name)) for name in TWENTY]
    wanted = [[(number * 7 + step) % 20 for step in range(4)] for number in range(30)]
    pending = [reeld.submit([reeld.Clip(decoders[n], indices=[3, 9]) for n in numbers]) for numbers in wanted]
    for numbers, frames in zip(wanted, pending, strict=True):
        for number, batch in zip(numbers, frames.result(), strict=True):
            assert [digest(frame) for frame in batch.data] == [expected[number][3], expected[number][9]]


def test_a_result_can_be_asked_for_again(media: Path) -> None:
    pending = reeld.submit([reeld.Clip(media / "twenty_00.mp4", indices=[4])])
    first = pending.result()
    assert pending.done()
    assert pending.result() is first


def test_a_frame_that_is_not_there_is_an_index_error(media: Path) -> None:
    with pytest.raises(IndexError):
        reeld.submit(
            [
                reeld.Clip(media / "twenty_00.mp4", indices=[0]),
                reeld.Clip(media / "twenty_01.mp4", indices=[30]),
            ]
        )


def test_garbage_in_one_video_is_a_runtime_error_of_the_request(media: Path) -> None:
    clips = [
        reeld.Clip(media / "twenty_00.mp4", indices=[0]),
        reeld.Clip(media / "broken_all_garbage.mp4", indices=[3]),
    ]
    with pytest.raises(RuntimeError):
        reeld.submit(clips).result()


def test_a_wait_that_is_too_short_is_a_timeout_and_the_frames_come_later(media: Path) -> None:
    decoder = VideoDecoder(str(media / "slow.mp4"))
    pending = reeld.submit([reeld.Clip(decoder, indices=[250])])
    with pytest.raises(TimeoutError):
        pending.result(timeout=0)
    assert_same(pending.result()[0], Reference(str(media / "slow.mp4")).get_frames_at([250]))


def test_a_deadline_that_passes_is_a_deadline_error(media: Path) -> None:
    decoder = VideoDecoder(str(media / "slow.mp4"))
    with pytest.raises(reeld.DeadlineError):
        reeld.submit([reeld.Clip(decoder, indices=[390])], timeout_seconds=0.001).result()


@pytest.mark.parametrize("is_cancelled_in_words", [True, False])
def test_what_nobody_waits_for_any_more_leaves_nothing(
    media: Path, daemon: Daemon, is_cancelled_in_words: bool
) -> None:
    pending = reeld.submit([reeld.Clip(media / "slow.mp4", indices=[380])])
    if is_cancelled_in_words:
        pending.cancel()
    del pending
    gc.collect()
    eventually(lambda: daemon.status()["request_count"] == 0, "the request is over")
    eventually(lambda: daemon.lease_count() == 0, "and holds no lease")


@pytest.mark.parametrize("clips", [None, reeld.Clip("video.mp4", indices=[0])])
def test_what_is_no_list_of_clips_is_a_type_error(clips: Any) -> None:
    with pytest.raises(TypeError, match="a list"):
        reeld.submit(clips)


def test_a_submission_of_nothing_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="clips"):
        reeld.submit([])


def test_a_thousand_clips_are_one_submission_and_more_are_an_error_that_says_how_many(media: Path) -> None:
    decoder = VideoDecoder(str(media / "many_frames.mp4"))
    clips = [reeld.Clip(decoder, indices=[index]) for index in range(1024)]
    batches = reeld.submit(clips).result()
    expected = Reference(str(media / "many_frames.mp4")).get_frames_at(range(1024)).data
    assert torch.equal(torch.cat([batch.data for batch in batches]), expected)
    with pytest.raises(reeld.InvalidRequestError, match="1024"):
        reeld.submit([*clips, clips[0]]).result()
