"""Frames of many videos by one request, without waiting for each: `submit`, and `prefetch` for later ones.

One video's frames are `VideoDecoder`'s matter.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reeld import _native
from reeld.decoders import VideoDecoder
from reeld.errors import ArgumentTypeError, InvalidRequestError, ReeldError

if TYPE_CHECKING:
    from reeld._bounds import Indices, StreamBounds, Times
    from reeld._native import Pending, Wanted
    from reeld.frames import FrameBatch

_PRIORITIES = range(-128, 128)


@dataclass(frozen=True)
class Clip:
    """The wanted frames of one video: either by index or by time.

    Args:
        video: A decoder, or the path of a video, which is then opened with the usual options.
        indices: As for :meth:`reeld.decoders.VideoDecoder.get_frames_at`; a range stays short on its way.
        seconds: As for :meth:`reeld.decoders.VideoDecoder.get_frames_played_at`.

    Raises:
        InvalidRequestError: Neither indices nor seconds are given, or both.

    Example:
        >>> import reeld
        >>> reeld.Clip(video_path, indices=range(0, 8, 2)).indices
        range(0, 8, 2)
    """

    video: VideoDecoder | str | Path
    _: KW_ONLY
    indices: Indices | None = None
    seconds: Times | None = None

    def __post_init__(self) -> None:
        if (self.indices is None) == (self.seconds is None):
            raise InvalidRequestError("A clip needs either indices or seconds.")


class PendingFrames:
    """The frames of several clips, on their way. Made by :func:`submit`.

    Whoever has no use for it any more may drop it: that cancels the request.

    Example:
        >>> import reeld
        >>> pending = reeld.submit([reeld.Clip(video_path, indices=[3])])
        >>> (batch,) = pending.result()
        >>> pending.done(), len(batch)
        (True, 1)
    """

    def __init__(self, decoders: list[VideoDecoder], places: list[int], pending: Pending | None) -> None:
        self._decoders = decoders
        # Where in the result the parts of the reply belong: clips without frames have none.
        self._places = places
        self._pending = pending
        self._batches: list[FrameBatch] | None = None
        self._error: ReeldError | None = None
        self._lock = threading.Lock()

    def result(self, timeout: float | None = None) -> list[FrameBatch]:
        """Waits for the frames. May be called again, and gives the same frames then.

        Args:
            timeout: Seconds to wait; the request goes on afterwards. Default: as long as it takes.

        Returns:
            One batch per clip, in the order of the clips. All of them lie in one stretch of memory, which
            is given back when the last view of any of them dies.

        Raises:
            TimeoutError: The frames were not ready in time.
            CancelledError: The request was cancelled.
            DeadlineError: The request's own deadline passed.
            NoSlotsError: The result is larger than this process's quota.
            MediaError: One of the files is damaged there.

        Example:
            >>> import reeld
            >>> pending = reeld.submit([reeld.Clip(video_path, seconds=[0.0, 0.5])])
            >>> [batch.data.shape[0] for batch in pending.result(timeout=60)]
            [2]
        """
        if timeout is not None:
            timeout = min(timeout, threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            raise TimeoutError("Another thread waits for these frames, and they are not ready yet.")
        try:
            if self._error is not None:
                raise self._error
            if self._batches is None:
                self._batches = self._received(timeout)
            return self._batches
        finally:
            self._lock.release()

    def _received(self, timeout: float | None) -> list[FrameBatch]:
        try:
            parts = [] if self._pending is None else self._pending.result(timeout)
        except ReeldError as error:
            self._error = error
            raise
        part_at = dict(zip(self._places, parts, strict=True))
        return [decoder._batch_of(part_at.get(place)) for place, decoder in enumerate(self._decoders)]

    def done(self) -> bool:
        """Whether ``result`` would return, or raise, at once.

        Example:
            >>> import reeld
            >>> pending = reeld.submit([reeld.Clip(video_path, indices=[3])])
            >>> _ = pending.result()
            >>> pending.done()
            True
        """
        is_over = self._batches is not None or self._error is not None
        return is_over or self._pending is None or self._pending.done()

    def cancel(self) -> None:
        """Tells the daemon that the frames are not needed any more. They may be ready all the same.

        Example:
            >>> import reeld
            >>> pending = reeld.submit([reeld.Clip(video_path, indices=[3])])
            >>> pending.cancel()
        """
        if self._pending is not None:
            self._pending.cancel()


def submit(
    clips: Sequence[Clip], *, priority: int = 0, timeout_seconds: float | None = None
) -> PendingFrames:
    """Asks for the frames of many videos at once and returns without waiting for them.

    All clips are one request, answered together in one stretch of memory: a training batch costs one round
    trip, however many videos it is made of. Several requests may be on their way at the same time, which
    takes the place of worker processes that prefetch.

    Args:
        clips: What is wanted, at least one.
        priority: Requests with a higher one go first among those of this user: -128 to 127.
        timeout_seconds: How long the frames are of use. Default: for ever.

    Returns:
        The frames to come.

    Raises:
        FrameIndexError: A clip asks for a frame that its video does not have.
        RangeError: A clip asks for a time at which its video shows nothing.
        InvalidRequestError: There are no clips, or the decoders come from connections to different daemons.
        NoSlotsError: The frames together are larger than this process's quota.
        MediaError: The path in a clip cannot be opened as a video.

    Example:
        >>> import reeld
        >>> clips = [reeld.Clip(video_path, indices=[0, -1]), reeld.Clip(video_path, indices=range(3))]
        >>> [len(batch) for batch in reeld.submit(clips).result()]
        [2, 3]
    """
    if clips is None or isinstance(clips, Clip):
        raise ArgumentTypeError(f"This takes a list of reeld.Clip objects, not {type(clips).__name__}.")
    if not clips:
        raise InvalidRequestError("There are no clips to submit.")
    if priority not in _PRIORITIES:
        raise InvalidRequestError(f"priority={priority} is not within -128 to 127.")
    decoders = [_decoder(clip) for clip in clips]
    wanted = [_wanted(clip, decoder._bounds) for clip, decoder in zip(clips, decoders, strict=True)]
    parts = [
        (place, decoder._native, frames)
        for place, (decoder, frames) in enumerate(zip(decoders, wanted, strict=True))
        if frames is not None
    ]
    places = [place for place, _, _ in parts]
    request = [(video, frames) for _, video, frames in parts]
    pending = None
    if request:
        pending = _native.submit(request, priority=priority, timeout_seconds=timeout_seconds)
    return PendingFrames(decoders, places, pending)


def prefetch(clips: Sequence[Clip]) -> None:
    """Tells the daemon which clips will be asked for, by whichever process of this user.

    As :meth:`reeld.decoders.VideoDecoder.prefetch` for each of them. A video that is given by its path is
    opened, which does wait for the daemon; it need not stay open.

    Args:
        clips: What will be wanted.

    Raises:
        FrameIndexError: A clip is for a frame that its video does not have.
        RangeError: A clip is for a time at which its video shows nothing.
        MediaError: The path in a clip cannot be opened as a video.

    Example:
        >>> import reeld
        >>> clips = [reeld.Clip(video_path, indices=[0, -1]), reeld.Clip(video_path, seconds=[0.5])]
        >>> reeld.prefetch(clips)
        >>> [len(batch) for batch in reeld.submit(clips).result()]
        [2, 1]
    """
    # All are checked before anything is said of any.
    decoders = [_decoder(clip) for clip in clips]
    wanted = [_wanted(clip, decoder._hint_bounds()) for clip, decoder in zip(clips, decoders, strict=True)]
    for decoder, frames in zip(decoders, wanted, strict=True):
        if frames is not None:
            decoder._native.prefetch(frames)


def _decoder(clip: Clip) -> VideoDecoder:
    if not isinstance(clip, Clip):
        raise ArgumentTypeError(f"This takes reeld.Clip objects, not {type(clip).__name__}.")
    return clip.video if isinstance(clip.video, VideoDecoder) else VideoDecoder(clip.video)


def _is_empty(indices: Indices) -> bool:
    try:
        return len(indices) == 0
    except (OverflowError, TypeError):
        # A range that is too long to count, or no sequence: what is wrong with them is said elsewhere.
        return False


def _wanted(clip: Clip, bounds: StreamBounds) -> Wanted | None:
    if clip.indices is not None:
        # Of a video in a batch nothing may be wanted; `get_frames_at` refuses that as TorchCodec does.
        return None if _is_empty(clip.indices) else bounds.at_each(clip.indices)
    assert clip.seconds is not None
    return bounds.played_at_each(clip.seconds)
