"""The comparisons with TorchCodec once more, on the real files of the folder that REELD_EXTRA_MEDIA names."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support import (
    EXTRA_MEDIA,
    Reference,
    VideoDecoder,
    assert_error_fits,
    assert_same,
    assert_same_outcome,
    chunks,
    extra_files,
    outcome,
)

pytestmark = pytest.mark.skipif(
    EXTRA_MEDIA is None, reason="REELD_EXTRA_MEDIA names no folder of further files"
)
# Without the folder there is still one test of each kind to be skipped, and its reason to be read.
FILES = extra_files() or [Path("none")]
VIDEOS = [file for file in FILES if outcome(lambda file=file: Reference(str(file))).error is None] or FILES
STREAM_INDICES = (None, 0, 1, 2, 3, 4, 5)


def both(file: Path, **arguments: Any) -> tuple[Any, Any]:
    """The same file opened by us and by TorchCodec."""
    return VideoDecoder(str(file), **arguments), Reference(str(file), **arguments)


@pytest.mark.parametrize("seek_mode", ["exact", "approximate"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_metadata_or_error_of_each_stream(file: Path, seek_mode: str) -> None:
    for stream_index in STREAM_INDICES:
        arguments: dict[str, Any] = {"stream_index": stream_index, "seek_mode": seek_mode}
        expected = outcome(lambda arguments=arguments: Reference(str(file), **arguments).metadata)
        actual = outcome(lambda arguments=arguments: VideoDecoder(str(file), **arguments).metadata)
        assert type(actual.value).__name__ == type(expected.value).__name__
        if expected.error is None:
            assert asdict(actual.value) == asdict(expected.value)
            assert repr(actual.value) == repr(expected.value)
        else:
            assert actual.error is not None
            assert_error_fits(actual.error, type(expected.error))


@pytest.mark.parametrize("file", VIDEOS, ids=lambda file: file.name)
class TestVideos:
    """Each file that has video."""

    def test_every_frame_of_every_video_stream(self, file: Path) -> None:
        for stream_index in STREAM_INDICES:
            expected = outcome(lambda index=stream_index: Reference(str(file), stream_index=index))
            if expected.error is not None:
                continue
            ours, reference = VideoDecoder(str(file), stream_index=stream_index), expected.value
            for part in chunks(reference, range(len(reference))):
                assert_same(ours.get_frames_at(part), reference.get_frames_at(part))

    def test_random_indices(self, file: Path) -> None:
        ours, reference = both(file)
        choice = random.Random(file.name)
        for index in choice.choices(range(-len(reference), len(reference)), k=25):
            assert_same(ours.get_frame_at(index), reference.get_frame_at(index))
        indices = choice.choices(range(-len(reference), len(reference)), k=10)
        assert_same(ours.get_frames_at(indices), reference.get_frames_at(indices))

    def test_random_times(self, file: Path) -> None:
        ours, reference = both(file)
        begin, end = reference.metadata.begin_stream_seconds, reference.metadata.end_stream_seconds
        choice = random.Random(file.name)
        times = [choice.uniform(begin, end) for _ in range(25)]
        for seconds in times:
            assert_same(ours.get_frame_played_at(seconds), reference.get_frame_played_at(seconds))
        assert_same(ours.get_frames_played_at(times[:10]), reference.get_frames_played_at(times[:10]))
        start = choice.uniform(begin, end - 0.2)
        for fps in (None, 12):
            assert_same(
                ours.get_frames_played_in_range(start, start + 0.2, fps),
                reference.get_frames_played_in_range(start, start + 0.2, fps),
            )

    def test_slices_in_both_orders_of_dimensions(self, file: Path) -> None:
        for order in ("NCHW", "NHWC"):
            ours, reference = both(file, dimension_order=order)
            for key in (slice(0, 6), slice(-4, None), slice(2, 30, 7), 3, -1):
                assert_same_outcome(lambda d=ours, key=key: d[key], lambda d=reference, key=key: d[key])
