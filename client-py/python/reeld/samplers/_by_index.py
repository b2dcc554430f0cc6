"""Clips whose places are frame indices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from reeld.errors import InvalidRequestError
from reeld.samplers import _numbers
from reeld.samplers._clips import POLICIES, as_clips, check_common, check_positive, filled

if TYPE_CHECKING:
    from reeld.decoders import VideoDecoder
    from reeld.frames import FrameBatch
    from reeld.samplers._clips import Policy


def clips_at_random_indices(
    decoder: VideoDecoder,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    num_indices_between_frames: int = 1,
    sampling_range_start: int = 0,
    sampling_range_end: int | None = None,
    policy: Policy = "repeat_last",
) -> FrameBatch:
    """Clips that begin at random frames.

    They are independent of each other: unsorted, may overlap, and may be the same.

    Args:
        decoder: Of the video to sample from.
        num_clips: How many clips.
        num_frames_per_clip: How many frames each has.
        num_indices_between_frames: How far the indices of a clip's neighbouring frames are apart; 1 for
            consecutive frames.
        sampling_range_start: The first frame that a clip may begin at; negative from the end.
        sampling_range_end: Clips begin below this frame; negative from the end. Default: as far back as no
            clip reaches past the video's end.
        policy: What takes the place of frames past the video's end: ``"repeat_last"`` the clip's last frame
            before it, ``"wrap"`` the clip from its beginning again, ``"error"`` nothing.

    Returns:
        ``data`` is (``num_clips``, ``num_frames_per_clip``, C, H, W), or with C last; the times are float64
        (``num_clips``, ``num_frames_per_clip``) in seconds.

    Raises:
        InvalidRequestError: An argument is not allowed, no clip can begin in the range, or a clip reaches
            past the end and ``policy`` is ``"error"``. It is a ``ValueError``.
        NoSlotsError: The result is larger than this process's quota.
        MediaError: The file is damaged there.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> from reeld.samplers import clips_at_random_indices
        >>> clips = clips_at_random_indices(
        ...     VideoDecoder(video_path), num_clips=4, num_frames_per_clip=2, num_indices_between_frames=3
        ... )
        >>> clips.data.shape[:2] == (4, 2), clips.pts_seconds.shape == (4, 2)
        (True, True)
    """
    check_common(decoder, num_frames_per_clip, policy)
    check_positive("num_clips", num_clips, "> 0")
    start, end = _sampling_range(
        len(decoder),
        num_frames_per_clip,
        num_indices_between_frames,
        sampling_range_start,
        sampling_range_end,
    )
    starts = _numbers.random_integers(start, end, num_clips)
    return _clips(decoder, starts, num_frames_per_clip, num_indices_between_frames, policy)


def clips_at_regular_indices(
    decoder: VideoDecoder,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    num_indices_between_frames: int = 1,
    sampling_range_start: int = 0,
    sampling_range_end: int | None = None,
    policy: Policy = "repeat_last",
) -> FrameBatch:
    """Clips that begin at frames spread evenly over the range, the first and the last of the range included.

    Where there are more clips than frames in the range, neighbouring clips are the same.

    Args:
        decoder: Of the video to sample from.
        num_clips: How many clips.
        num_frames_per_clip: How many frames each has.
        num_indices_between_frames: How far the indices of a clip's neighbouring frames are apart; 1 for
            consecutive frames.
        sampling_range_start: The first frame that a clip may begin at; negative from the end.
        sampling_range_end: Clips begin below this frame; negative from the end. Default: as far back as no
            clip reaches past the video's end.
        policy: What takes the place of frames past the video's end: ``"repeat_last"`` the clip's last frame
            before it, ``"wrap"`` the clip from its beginning again, ``"error"`` nothing.

    Returns:
        ``data`` is (``num_clips``, ``num_frames_per_clip``, C, H, W), or with C last; the times are float64
        (``num_clips``, ``num_frames_per_clip``) in seconds.

    Raises:
        InvalidRequestError: An argument is not allowed, no clip can begin in the range, or a clip reaches
            past the end and ``policy`` is ``"error"``. It is a ``ValueError``.
        NoSlotsError: The result is larger than this process's quota.
        MediaError: The file is damaged there.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> from reeld.samplers import clips_at_regular_indices
        >>> decoder = VideoDecoder(video_path)
        >>> clips = clips_at_regular_indices(decoder, num_clips=3, num_frames_per_clip=2)
        >>> bool((clips.data[-1, -1] == decoder[-1]).all())
        True
    """
    check_common(decoder, num_frames_per_clip, policy)
    check_positive("num_clips", num_clips, "> 0")
    start, end = _sampling_range(
        len(decoder),
        num_frames_per_clip,
        num_indices_between_frames,
        sampling_range_start,
        sampling_range_end,
    )
    starts = _numbers.spread_integers(start, end - 1, num_clips)
    return _clips(decoder, starts, num_frames_per_clip, num_indices_between_frames, policy)


def _sampling_range(
    frame_count: int, num_frames_per_clip: int, stride: int, start: int, end: int | None
) -> tuple[int, int]:
    """Clips begin in [start, end) of what this returns; both within the video, and the range not empty."""
    check_positive("num_indices_between_frames", stride, "strictly positive")
    if start < 0:
        start += frame_count
    if start >= frame_count:
        raise InvalidRequestError(
            f"sampling_range_start ({start}) must be smaller than the number of frames, {frame_count}."
        )
    if end is None:
        end = max(frame_count - (num_frames_per_clip - 1) * stride, 1)
        if start >= end:
            raise InvalidRequestError(
                f"sampling_range_start ({start}) leaves no room for a clip. We determined that "
                f"sampling_range_end should be {end}, the first at which a clip would reach past the end."
            )
        return start, end
    end = min(end + frame_count if end < 0 else end, frame_count)
    if start >= end:
        raise InvalidRequestError(
            f"sampling_range_start ({start}) must be smaller than sampling_range_end ({end})."
        )
    return start, end


def clip_indices(
    starts: Iterable[int],
    frame_count: int,
    num_frames_per_clip: int,
    stride: int,
    policy: Callable[..., list],
) -> list[int]:
    """The frames of all clips, one clip after the other."""
    indices: list[int] = []
    for start in starts:
        inside = range(start, min(start + num_frames_per_clip * stride, frame_count), stride)
        indices += filled(list(inside), num_frames_per_clip, policy)
    return indices


def _clips(
    decoder: VideoDecoder, starts: list[int], num_frames_per_clip: int, stride: int, policy: Policy
) -> FrameBatch:
    indices = clip_indices(starts, len(decoder), num_frames_per_clip, stride, POLICIES[policy])
    return as_clips(decoder.get_frames_at(indices), len(starts), num_frames_per_clip)
