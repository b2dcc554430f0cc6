"""Elementary streams, which have no times: each frame is that of a decode in order, whatever came before."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import SUBJECT, Daemon, Reference, VideoDecoder, ffmpeg_frames, outcome, recipes

CLIPS = [clip.name for clip in recipes.timeless()]
pytestmark = pytest.mark.skipif(SUBJECT == "torchcodec", reason="its frames depend on the calls before")


def orders(count: int) -> list[list[int]]:
    """Forward, backward, in leaps and at random, twice each, so that what is warm takes part."""
    shuffled = random.Random(7).sample(range(count), count)
    return [[*range(count)], [*range(count - 1, -1, -1)], [*range(0, count, 7)], shuffled] * 2


@pytest.mark.parametrize("clip", CLIPS)
def test_frames_are_those_of_a_decode_in_order(media: Path, clip: str) -> None:
    truth = in_order(media / clip)
    decoder = VideoDecoder(str(media / clip))
    assert len(decoder) == len(truth) == 50
    for order in orders(len(truth)):
        for index in order:
            assert torch.equal(decoder[index], truth[index]), index
    assert torch.equal(decoder[:], truth)


@pytest.mark.parametrize("clip", CLIPS)
def test_first_request_of_a_daemon_may_be_any(
    media: Path, clip: str, start_daemon: Callable[..., Daemon]
) -> None:
    start_daemon()
    truth = in_order(media / clip)
    frames = VideoDecoder(str(media / clip)).get_frames_at([0, 9, 49, 30])
    assert torch.equal(frames.data, truth[[0, 9, 49, 30]])


@pytest.mark.parametrize("clip", CLIPS)
def test_times_are_in_order_and_lead_to_their_frames(media: Path, clip: str) -> None:
    decoder = VideoDecoder(str(media / clip))
    truth = in_order(media / clip)
    frames = decoder.get_frames_in_range(0, len(decoder))
    times = frames.pts_seconds
    assert times[0] == decoder.metadata.begin_stream_seconds
    assert bool((times.diff() > 0).all())
    for index in (40, 3, 25, 24):
        middle = float(times[index] + times[index + 1]) / 2
        assert decoder.get_frame_at(index).pts_seconds == times[index]
        assert torch.equal(decoder.get_frames_played_at([middle]).data[0], truth[index])


@pytest.mark.parametrize("clip", [clip for clip in CLIPS if not clip.endswith(".h264")])
def test_torchcodec_brings_the_same_frames_in_order(media: Path, clip: str) -> None:
    reference = Reference(str(media / clip))
    decoder = VideoDecoder(str(media / clip))
    assert len(decoder) == len(reference)
    # It has no time for the last picture that its decoder held back, and does not find it.
    for index in range(len(reference) - 1):
        theirs = outcome(lambda index=index: reference[index])
        assert theirs.error is None
        assert torch.equal(decoder[index], theirs.value), index


def test_approximate_mode_brings_the_same_frames(media: Path) -> None:
    truth = in_order(media / "timeless.m4v")
    decoder = VideoDecoder(str(media / "timeless.m4v"), seek_mode="approximate")
    assert len(decoder) == len(truth)
    for order in orders(len(truth)):
        for index in order:
            assert torch.equal(decoder[index], truth[index]), index


def in_order(file: Path) -> torch.Tensor:
    """All frames as the ffmpeg program decodes them."""
    return ffmpeg_frames(file, opener=VideoDecoder)
