"""Frames by time equal TorchCodec's: pixels with tolerance 0, times as float64."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from support import CLIPS, Reference, VideoDecoder, assert_same, assert_same_outcome

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


@pytest.mark.parametrize("clip", CLIPS)
class TestExact:
    """With the index of a scan, which is the default."""

    def test_the_frame_played_at_each_telling_time(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip)
        times = telling_times(reference)
        random.Random(clip).shuffle(times)
        for seconds in times[:40]:
            assert_same(ours.get_frame_played_at(seconds), reference.get_frame_played_at(seconds))

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


@pytest.mark.parametrize("clip", APPROXIMATE)
def test_approximate_mode(media: Path, clip: str) -> None:
    ours, reference = both(media / clip, seek_mode="approximate")
    times = telling_times(reference)
    for seconds in times:
        assert_same(ours.get_frame_played_at(seconds), reference.get_frame_played_at(seconds))
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
