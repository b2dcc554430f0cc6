"""Frames by time equal TorchCodec's: pixels with tolerance 0, times as float64."""

from __future__ import annotations

import bisect
import math
import random
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import CLIPS, SUBJECT, Reference, VideoDecoder, assert_same, assert_same_outcome

# Clips for which TorchCodec's approximate mode gives the same answer whatever was asked before.
APPROXIMATE = ["h264_bframes.mp4", "av1.mp4", "vp9.webm", "rotated_90.mp4", "odd_both.webm", "two_videos.mp4"]


def both(clip: Path, **arguments: Any) -> tuple[Any, Any]:
    """The same file opened by us and by TorchCodec."""
    return VideoDecoder(str(clip), **arguments), Reference(str(clip), **arguments)


def telling_times(reference: Any) -> list[float]:
    """Times at, just before, just after and between the borders of frames, all of them inside the stream."""
    begin, end = reference.metadata.begin_stream_seconds, reference.metadata.end_stream_seconds
    frames = reference.get_frames_at(range(len(reference)))
    times = [float(begin), math.nextafter(end, begin)]
    for pts, duration in zip(frames.pts_seconds.tolist(), frames.duration_seconds.tolist(), strict=True):
        for border in (pts, pts + duration):
            times += [math.nextafter(border, -math.inf), border, math.nextafter(border, math.inf)]
        times.append(pts + duration / 3)
    return [seconds for seconds in times if begin <= seconds < end]


def assert_played_at(ours: Any, reference: Any, seconds: float) -> None:
    """TorchCodec's frame; just before the next one begins, the one that still plays.

    There TorchCodec's own answer depends on what was asked before: within half a tick of a keyframe its seek
    leads to that keyframe, unless the frame before it was the last one decoded.
    """
    begins = reference.get_frames_at(range(len(reference))).pts_seconds.tolist()
    following = bisect.bisect_right(begins, seconds)
    is_just_before = following < len(begins) and begins[following] - seconds < 1e-6
    if (
        is_just_before
        and following > 0
        and abs(frame_end(reference, following - 1) - begins[following]) < 1e-6
    ):
        assert_same(ours.get_frame_played_at(seconds), reference.get_frame_at(following - 1))
    else:
        assert_same(ours.get_frame_played_at(seconds), reference.get_frame_played_at(seconds))


def frame_end(reference: Any, index: int) -> float:
    """When a frame stops playing, to within rounding."""
    frame = reference.get_frame_at(index)
    return frame.pts_seconds + frame.duration_seconds


@pytest.mark.parametrize("clip", CLIPS)
class TestExact:
    """With the index of a scan, which is the default."""

    def test_the_frame_played_at_each_telling_time(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip)
        times = telling_times(reference)
        random.Random(clip).shuffle(times)
        for seconds in times[:40]:
            assert_played_at(ours, reference, seconds)

    def test_frames_played_at_many_times_at_once(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip)
        times = telling_times(reference)
        random.Random(clip).shuffle(times)
        for part in (times[:1], times[:40], sorted(times[:40]), times[:5] * 2, []):
            assert_same(ours.get_frames_played_at(part), reference.get_frames_played_at(part))

    def test_frames_played_in_ranges(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip)
        times = sorted(telling_times(reference))
        begin, end = reference.metadata.begin_stream_seconds, reference.metadata.end_stream_seconds
        choice = random.Random(clip)
        ranges = [tuple(sorted(choice.choices(times, k=2))) for _ in range(8)]
        ranges += [(begin, end), (begin, begin), (begin, times[5]), (times[-5], end)]
        for start, stop in ranges:
            assert_same(
                ours.get_frames_played_in_range(start, stop),
                reference.get_frames_played_in_range(start, stop),
            )

    def test_frames_played_in_a_range_at_another_rate(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip)
        begin, end = reference.metadata.begin_stream_seconds, reference.metadata.end_stream_seconds
        middle = (begin + end) / 2
        for fps in (1, 7.5, 24, 60):
            for start, stop in ((begin, end), (begin, middle), (middle, end)):
                assert_same(
                    ours.get_frames_played_in_range(start, stop, fps=fps),
                    reference.get_frames_played_in_range(start, stop, fps=fps),
                )

    def test_times_outside_are_torchcodecs_errors(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip)
        begin, end = reference.metadata.begin_stream_seconds, reference.metadata.end_stream_seconds
        for seconds in (
            begin - 1,
            math.nextafter(begin, -math.inf),
            end,
            end + 1,
            math.nan,
            math.inf,
            -math.inf,
        ):
            for name, argument in (
                ("get_frame_played_at", seconds),
                ("get_frames_played_at", [begin, seconds]),
            ):
                assert_same_outcome(
                    lambda name=name, argument=argument: getattr(ours, name)(argument),
                    lambda name=name, argument=argument: getattr(reference, name)(argument),
                )


@pytest.mark.skipif(SUBJECT == "torchcodec", reason="TorchCodec gives the frame behind the one that played")
def test_an_index_means_the_same_after_a_time(media: Path) -> None:
    ours, reference = both(media / "twenty_07.mp4")
    expected = reference.get_frames_at(range(30))
    assert_same(ours.get_frame_at(26).data, expected.data[26])
    assert_same(ours.get_frame_played_at(0.32).data, expected.data[8])
    assert_same(ours.get_frame_at(27).data, expected.data[27])


@pytest.mark.parametrize("clip", APPROXIMATE)
def test_approximate_mode(media: Path, clip: str) -> None:
    ours, reference = both(media / clip, seek_mode="approximate")
    times = telling_times(reference)
    for seconds in times:
        assert_played_at(ours, reference, seconds)
    assert_same(ours.get_frames_played_at(times), reference.get_frames_played_at(times))
    ranges = [(times[3], times[40]), (times[10], times[11]), (times[0], times[1])]
    for start, stop in ranges:
        start, stop = sorted((start, stop))
        assert_same(
            ours.get_frames_played_in_range(start, stop), reference.get_frames_played_in_range(start, stop)
        )


def test_nhwc(media: Path) -> None:
    ours, reference = both(media / "width_not_32.mp4", dimension_order="NHWC")
    assert_same(ours.get_frame_played_at(0.5), reference.get_frame_played_at(0.5))
    assert_same(ours.get_frames_played_at([0.9, 0.1]), reference.get_frames_played_at([0.9, 0.1]))
    assert_same(ours.get_frames_played_in_range(0.1, 0.4), reference.get_frames_played_in_range(0.1, 0.4))


class AsFloat:
    """A number by its conversion alone."""

    def __float__(self) -> float:
        return 0.5


class AsIndex:
    """An integer by its conversion alone."""

    def __index__(self) -> int:
        return 1


class AsInt:
    """What can be made an integer, and is none."""

    def __int__(self) -> int:
        return 1


NUMBERS: list[Any] = [
    *(Fraction(1, 3), Fraction(5, 2), Decimal("0.25"), Decimal("1.75"), Decimal("1e400"), Fraction(-1, 2)),
]


@pytest.mark.parametrize("number", [*NUMBERS, AsFloat(), AsIndex(), AsInt(), "0.5", None, 1j])
def test_numbers_of_any_class_are_taken_as_by_torchcodec(media: Path, number: Any) -> None:
    ours, reference = both(media / "h264_bframes.mp4")
    for call in (
        lambda decoder: decoder.get_frame_at(number),
        lambda decoder: decoder[number],
        lambda decoder: decoder.get_frames_at([number]),
        lambda decoder: decoder.get_frames_played_at([number, 0]),
        lambda decoder: decoder.get_frames_played_at((0.5, number)),
        lambda decoder: decoder.get_frames_played_in_range(0, 1, number),
        lambda decoder: decoder.get_frames_played_in_range(0.5, 0.5, number),
    ):
        assert_same_outcome(lambda call=call: call(ours), lambda call=call: call(reference))


@pytest.mark.parametrize(
    "number", [*NUMBERS, np.longdouble(1.1), np.array(1.1, np.longdouble), np.float32(0.3)]
)
def test_times_of_any_class_are_taken_as_by_torchcodec(media: Path, number: Any) -> None:
    ours, reference = both(media / "h264_bframes.mp4")
    for call in (
        lambda decoder: decoder.get_frame_played_at(number),
        lambda decoder: decoder.get_frames_played_in_range(number, 2),
        lambda decoder: decoder.get_frames_played_in_range(0, number),
    ):
        assert_same_outcome(lambda call=call: call(ours), lambda call=call: call(reference))
