"""Frames by index equal TorchCodec's: pixels with tolerance 0, times as float64, in both seek modes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    CLIPS,
    SUBJECT,
    UNSEEKABLE,
    Reference,
    VideoDecoder,
    assert_same,
    assert_same_outcome,
    chunks,
    ffmpeg_frames,
    outcome,
)


def both(file: Path, **arguments: Any) -> tuple[Any, Any]:
    """The same file opened by us and by TorchCodec."""
    return VideoDecoder(str(file), **arguments), Reference(str(file), **arguments)


def indices_where_torchcodec_is_stable(file: Path) -> list[int]:
    """In approximate mode TorchCodec's answer can depend on what the decoder did before.

    For frames in front of an open GOP, for example, a new decoder gives another picture than one that comes
    from the frame before. Such indices have no right answer to compare with. These are the others.
    """
    used = Reference(str(file), seek_mode="approximate")

    def is_stable(index: int) -> bool:
        new = Reference(str(file), seek_mode="approximate")
        first, second = outcome(lambda: new.get_frame_at(index)), outcome(lambda: used.get_frame_at(index))
        if first.error or second.error:
            return bool(first.error and second.error)
        return (
            torch.equal(first.value.data, second.value.data)
            and first.value.pts_seconds == second.value.pts_seconds
        )

    return [index for index in range(len(used)) if is_stable(index)]


@pytest.mark.parametrize("clip", CLIPS)
class TestExact:
    """With the index of a scan, which is the default."""

    def test_every_frame_in_order(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip)
        assert len(ours) == len(reference) > 0
        for part in chunks(reference, range(len(reference))):
            assert_same(ours.get_frames_at(part), reference.get_frames_at(part))

    def test_every_frame_alone_and_shuffled(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip)
        indices = list(range(len(reference)))
        random.Random(clip).shuffle(indices)
        for index in indices:
            assert_same(ours.get_frame_at(index), reference.get_frame_at(index))

    def test_batch_unsorted_with_duplicates_and_negatives(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip)
        choice = random.Random(clip)
        for length in (1, 2, 20):
            indices = choice.choices(range(-len(reference), len(reference)), k=length) * 2
            assert_same(ours.get_frames_at(indices), reference.get_frames_at(indices))

    def test_subscripts_and_slices(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip)
        for key in (
            0,
            3,
            -1,
            slice(None, None, 9),
            slice(4, 9),
            slice(-3, None),
            slice(2, 900, 7),
            slice(99, 3),
        ):
            assert_same_outcome(lambda key=key: ours[key], lambda key=key: reference[key])

    def test_ranges(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip)
        for arguments in ((0, 5), (3, 20, 4), (-3, 1000), (7, 7), (900, 1000)):
            assert_same(ours.get_frames_in_range(*arguments), reference.get_frames_in_range(*arguments))

    def test_nhwc(self, media: Path, clip: str) -> None:
        ours, reference = both(media / clip, dimension_order="NHWC")
        assert_same(ours.get_frame_at(4), reference.get_frame_at(4))
        assert_same(ours.get_frames_at([8, 0, 8]), reference.get_frames_at([8, 0, 8]))
        assert_same(ours[2:6], reference[2:6])


@pytest.mark.parametrize("clip", CLIPS)
def test_approximate_equals_wherever_torchcodec_agrees_with_itself(media: Path, clip: str) -> None:
    file = media / clip
    ours, reference = both(file, seek_mode="approximate")
    indices = indices_where_torchcodec_is_stable(file)
    assert len(ours) == len(reference)
    assert indices, "a comparison of nothing proves nothing"
    for index in indices:
        new = Reference(str(file), seek_mode="approximate")
        assert_same_outcome(
            lambda index=index: ours.get_frame_at(index), lambda i=index, d=new: d.get_frame_at(i)
        )


@pytest.mark.parametrize("clip", ["h264_bframes.mp4", "vp9.webm", "av1.mp4", "rotated_90.mp4", "mpeg4.mp4"])
@pytest.mark.parametrize("thread_count", [0, 1, 3])
def test_thread_count_changes_nothing_but_speed(media: Path, clip: str, thread_count: int) -> None:
    ours = VideoDecoder(str(media / clip), num_ffmpeg_threads=thread_count)
    assert torch.equal(ours[0:10], ffmpeg_frames(media / clip)[0:10])


@pytest.mark.skipif(SUBJECT == "torchcodec", reason="TorchCodec gives errors and other frames here")
@pytest.mark.parametrize("clip", UNSEEKABLE)
def test_every_frame_of_a_transport_stream_equals_ffmpegs(media: Path, clip: str) -> None:
    ours, expected = VideoDecoder(str(media / clip)), ffmpeg_frames(media / clip)
    assert len(ours) == len(expected)
    indices = list(range(len(expected)))
    random.Random(clip).shuffle(indices)
    assert torch.equal(ours.get_frames_at(indices).data, expected[indices])
    for index in indices:
        assert torch.equal(ours[index], expected[index])


@pytest.mark.parametrize("clip", ["two_videos.mkv", "two_videos.mp4"])
@pytest.mark.parametrize("stream_index", [0, 1])
def test_each_of_two_streams(media: Path, clip: str, stream_index: int) -> None:
    ours, reference = both(media / clip, stream_index=stream_index)
    assert ours.stream_index == reference.stream_index
    assert_same(ours[:], reference[:])


def test_sources_of_other_types(media: Path) -> None:
    file = media / "h264_bframes.mp4"
    expected = Reference(str(file))[:]
    for source in (str(file), file, file.read_bytes()):
        assert_same(VideoDecoder(source)[:], expected)


def test_iteration_goes_through_all_frames_and_ends(media: Path) -> None:
    ours, reference = both(media / "width_32.mp4")
    frames = list(ours)
    assert len(frames) == len(reference)
    assert_same(torch.stack(frames), torch.stack(list(reference)))


def test_batches_of_frames_behave_as_torchcodecs(media: Path) -> None:
    ours, reference = (decoder.get_frames_at([3, 1, 2]) for decoder in both(media / "h264_bframes.mp4"))
    assert len(ours) == len(reference)
    assert repr(ours) == repr(reference)
    assert_same(ours[0], reference[0])
    assert_same(ours[1:], reference[1:])
    for one, other in zip(ours, reference, strict=True):
        assert_same(one, other)


def test_a_frame_unpacks_and_prints_as_torchcodecs(media: Path) -> None:
    ours, reference = (decoder.get_frame_at(3) for decoder in both(media / "h264_bframes.mp4"))
    assert repr(ours) == repr(reference)
    data, pts_seconds, duration_seconds = ours
    assert torch.equal(data, reference.data)
    assert (pts_seconds, duration_seconds) == (reference.pts_seconds, reference.duration_seconds)
