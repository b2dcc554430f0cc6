"""Clips whose places are times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from reeld.errors import InvalidRequestError
from reeld.samplers import _numbers
from reeld.samplers._clips import POLICIES, as_clips, check_common, check_positive, filled

if TYPE_CHECKING:
    from reeld.decoders import VideoDecoder
    from reeld.frames import FrameBatch
    from reeld.metadata import VideoStreamMetadata
    from reeld.samplers._clips import Policy


def clips_at_random_timestamps(
    decoder: VideoDecoder,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    seconds_between_frames: float | None = None,
    sampling_range_start: float | None = None,
    sampling_range_end: float | None = None,
    policy: Policy = "repeat_last",
) -> FrameBatch:
    """Clips that begin at random times.

    They are independent of each other: unsorted, may overlap, and may be the same.

    Args:
        decoder: Of the video to sample from.
        num_clips: How many clips.
        num_frames_per_clip: How many frames each has.
        seconds_between_frames: How far the times are apart at which a clip's neighbouring frames are played.
            Default: ``1 / metadata.average_fps``.
        sampling_range_start: The first time that a clip may begin at, in seconds. Default: the video's begin.
        sampling_range_end: Clips begin before this time. Default: as far back as no clip reaches past the
            video's end.
        policy: What takes the place of times past the video's end: ``"repeat_last"`` the clip's last time
            before it, ``"wrap"`` the clip from its beginning again, ``"error"`` nothing.

    Returns:
        ``data`` is (``num_clips``, ``num_frames_per_clip``, C, H, W), or with C last; the times are float64
        (``num_clips``, ``num_frames_per_clip``) in seconds, those of the frames and not those drawn.

    Raises:
        InvalidRequestError: An argument is not allowed, no clip can begin in the range, a clip reaches past
            the end and ``policy`` is ``"error"``, or the metadata lack the frame rate or the end. It is a
            ``ValueError``.
        NoSlotsError: The result is larger than this process's quota.
        MediaError: The file is damaged there.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> from reeld.samplers import clips_at_random_timestamps
        >>> clips = clips_at_random_timestamps(VideoDecoder(video_path), num_clips=2, num_frames_per_clip=3)
        >>> clips.pts_seconds.shape == (2, 3)
        True
    """
    check_common(decoder, num_frames_per_clip, policy)
    check_positive("num_clips", num_clips, "> 0")
    spacing = _spacing(decoder.metadata, seconds_between_frames)
    start, end = _sampling_range(
        decoder.metadata, (num_frames_per_clip - 1) * spacing, sampling_range_start, sampling_range_end
    )
    span = float(end - start)
    starts = [fraction * span + float(start) for fraction in _numbers.random_fractions(num_clips)]
    return _clips(decoder, starts, num_frames_per_clip, spacing, policy)


def clips_at_regular_timestamps(
    decoder: VideoDecoder,
    *,
    seconds_between_clip_starts: float,
    num_frames_per_clip: int = 1,
    seconds_between_frames: float | None = None,
    sampling_range_start: float | None = None,
    sampling_range_end: float | None = None,
    policy: Policy = "repeat_last",
) -> FrameBatch:
    """Clips that begin at times at equal distances, as many as there is room for.

    Args:
        decoder: Of the video to sample from.
        seconds_between_clip_starts: How far the beginnings of neighbouring clips are apart.
        num_frames_per_clip: How many frames each has.
        seconds_between_frames: How far the times are apart at which a clip's neighbouring frames are played.
            Default: ``1 / metadata.average_fps``.
        sampling_range_start: When the first clip begins, in seconds. Default: the video's begin.
        sampling_range_end: Clips begin before this time. Default: as far back as no clip reaches past the
            video's end.
        policy: What takes the place of times past the video's end: ``"repeat_last"`` the clip's last time
            before it, ``"wrap"`` the clip from its beginning again, ``"error"`` nothing.

    Returns:
        ``data`` is (clips, ``num_frames_per_clip``, C, H, W), or with C last; the times are float64 (clips,
        ``num_frames_per_clip``) in seconds, those of the frames.

    Raises:
        InvalidRequestError: An argument is not allowed, no clip can begin in the range, a clip reaches past
            the end and ``policy`` is ``"error"``, or the metadata lack the frame rate or the end. It is a
            ``ValueError``.
        NoSlotsError: The result is larger than this process's quota.
        MediaError: The file is damaged there.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> from reeld.samplers import clips_at_regular_timestamps
        >>> decoder = VideoDecoder(video_path)
        >>> begin = decoder.metadata.begin_stream_seconds
        >>> clips = clips_at_regular_timestamps(
        ...     decoder, seconds_between_clip_starts=0.25, sampling_range_end=begin + 0.5
        ... )
        >>> len(clips)
        2
    """
    check_common(decoder, num_frames_per_clip, policy)
    check_positive("seconds_between_clip_starts", seconds_between_clip_starts, "> 0")
    spacing = _spacing(decoder.metadata, seconds_between_frames)
    start, end = _sampling_range(
        decoder.metadata, (num_frames_per_clip - 1) * spacing, sampling_range_start, sampling_range_end
    )
    starts = _numbers.spaced_floats(start, end, seconds_between_clip_starts)
    return _clips(decoder, starts, num_frames_per_clip, spacing, policy)


def _spacing(metadata: VideoStreamMetadata, seconds_between_frames: float | None) -> float:
    """The seconds between a clip's frames, once it is known that the metadata suffice."""
    for words, value in (("average fps", metadata.average_fps), ("stream end", metadata.end_stream_seconds)):
        if value is None:
            raise InvalidRequestError(
                f"Could not infer {words} from video metadata: sample by indices, or open the video with "
                "seek_mode='exact'."
            )
    if seconds_between_frames is None:
        assert metadata.average_fps is not None
        return 1 / metadata.average_fps
    check_positive("seconds_between_frames", seconds_between_frames, "> 0")
    return seconds_between_frames


def _sampling_range(
    metadata: VideoStreamMetadata, span: float, start: float | None, end: float | None
) -> tuple[float, float]:
    """Clips begin in [start, end) of what this returns; the range is not empty.

    `span` is the time from a clip's first frame to its last.
    """
    stream_begin, stream_end = metadata.begin_stream_seconds, metadata.end_stream_seconds
    assert stream_begin is not None
    assert stream_end is not None
    if start is None:
        start = stream_begin
    elif start < stream_begin:
        raise InvalidRequestError(f"sampling_range_start ({start}) must be at least {stream_begin} seconds.")
    elif start >= stream_end:
        raise InvalidRequestError(
            f"sampling_range_start ({start}) must be smaller than {stream_end} seconds, where the video ends."
        )
    if end is None:
        end = stream_end - span
    elif end <= stream_begin:
        raise InvalidRequestError(
            f"sampling_range_end ({end}) must be at least {stream_begin} seconds, and more than that."
        )
    if start >= end:
        raise InvalidRequestError(
            f"sampling_range_start ({start}) must be smaller than sampling_range_end ({end})."
        )
    return start, min(end, stream_end)


def clip_times(
    starts: Iterable[float],
    end_stream_seconds: float,
    num_frames_per_clip: int,
    spacing: float,
    policy: Callable[..., list],
) -> list[float]:
    """The times of all clips, one clip after the other."""
    times: list[float] = []
    for start in starts:
        # As TorchCodec rounds: what the type of the spacing makes of its multiples, then in double precision.
        clip = [start + float(position * spacing) for position in range(num_frames_per_clip)]
        inside = [time for time in clip if time < end_stream_seconds]
        times += filled(inside, num_frames_per_clip, policy)
    return times


def _clips(
    decoder: VideoDecoder, starts: list[float], num_frames_per_clip: int, spacing: float, policy: Policy
) -> FrameBatch:
    end = decoder.metadata.end_stream_seconds
    assert end is not None
    times = clip_times(starts, end, num_frames_per_clip, spacing, POLICIES[policy])
    return as_clips(decoder.get_frames_played_at(times), len(starts), num_frames_per_clip)
