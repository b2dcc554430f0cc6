"""`VideoDecoder`: one stream of one video, frame by frame or many frames at once.

Nothing is decoded here. Arguments are checked in `_bounds.py`, frames come through the native module.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
from typing import TYPE_CHECKING, Literal, SupportsIndex, cast

from reeld import _arrays, client
from reeld._bounds import StreamBounds, as_seconds
from reeld._native import Wanted
from reeld.decoders._cpu_fallback import CpuFallbackStatus
from reeld.decoders._sources import checked_source
from reeld.errors import ArgumentTypeError, InvalidRequestError, RangeError, UnsupportedError
from reeld.frames import Frame, FrameBatch
from reeld.metadata import VideoStreamMetadata

if TYPE_CHECKING:
    import numpy as np
    import torch

    from reeld._bounds import Indices, Times
    from reeld._native import Part
    from reeld.decoders._sources import Source

    DType = torch.dtype | np.dtype[np.generic] | type[np.generic] | Literal["uint8", "float32"]

_DIMENSION_ORDERS = ("NCHW", "NHWC")
_SEEK_MODES = ("exact", "approximate")
_VALUE_BYTES = {"uint8": 1, "float32": 4}
# The hint for the daemon has 16 bits; no machine decodes one video with as many threads.
_THREAD_COUNT_MAX = 2**16 - 1
_STREAM_INDEX_MAX = 2**32 - 1


class VideoDecoder:
    """The frames of one video stream, decoded by the daemon.

    A drop-in for TorchCodec's class of the same name. A decoder may be used from several threads, survives
    ``fork``, and can be pickled: the copy opens the same source again.

    Frames are views of memory that the daemon wrote, writable, and shared with children that are forked while
    they are held; the memory is given back when the last view of it dies. Where torch is installed they are
    tensors, else numpy arrays.

    Args:
        source: A path, or the bytes of a whole file.
        stream_index: Position of the stream among all streams of the file. Default: the video stream that
            FFmpeg prefers.
        dimension_order: ``"NCHW"`` or ``"NHWC"``. Frames lie in memory as NHWC; the former is a permuted
            view of it.
        num_ffmpeg_threads: How many threads one decoder should use, 0 for as many as the daemon likes. A
            hint: the daemon shares its threads among all.
        device: ``"cpu"``, or None for torch's default device.
        seek_mode: ``"exact"`` finds frames by an index of the whole file, which the daemon makes once;
            ``"approximate"`` by arithmetic on what the header says.
        output_dtype: ``uint8`` for values in [0, 255] or ``float32`` for values in [0, 1]: torch's dtype,
            numpy's, or its name.

    Attributes:
        metadata (VideoStreamMetadata): What is known of the stream.
        stream_index (int): Position of the stream among all streams of the file.
        cpu_fallback (CpuFallbackStatus): Whether another device than the CPU was asked for in vain.

    Raises:
        MediaError: The file is missing, not a regular file, or cannot be read as media.
        InvalidRequestError: An argument has a value that is not allowed, or the file has no such video
            stream.
        ArgumentTypeError: An argument has a type that cannot be used.
        UnsupportedError: The source is a URL, or the device is not the CPU.
        DaemonUnavailableError: No daemon answers and none could be started.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> decoder = VideoDecoder(video_path)
        >>> first = decoder[0]
        >>> first.shape == (3, decoder.metadata.height, decoder.metadata.width)
        True
        >>> decoder[-1].shape == first.shape
        True
    """

    def __init__(
        self,
        source: Source,
        *,
        stream_index: int | None = None,
        dimension_order: Literal["NCHW", "NHWC"] = "NCHW",
        num_ffmpeg_threads: int = 1,
        device: str | torch.device | None = None,
        seek_mode: Literal["exact", "approximate"] = "exact",
        output_dtype: DType = "uint8",
    ) -> None:
        _check_choice("seek mode", seek_mode, _SEEK_MODES)
        _check_choice("dimension order", dimension_order, _DIMENSION_ORDERS)
        thread_count = _thread_count(num_ffmpeg_threads)
        self._dtype = _dtype_name(output_dtype)
        _check_device(device)
        self._source = checked_source(source)
        self._options = {
            "stream_index": stream_index,
            "dimension_order": dimension_order,
            "num_ffmpeg_threads": num_ffmpeg_threads,
            "seek_mode": seek_mode,
            "output_dtype": self._dtype,
        }
        self._channels_first = dimension_order == "NCHW"
        self._native = client.default_client().open(
            self._source,
            stream=_stream(stream_index),
            seek_mode=seek_mode,
            dtype=self._dtype,
            thread_count=thread_count,
        )
        self.metadata = VideoStreamMetadata.from_description(self._native.description())
        self.stream_index = self.metadata.stream_index
        self._bounds = _stream_bounds(self.metadata, self._dtype, self._native.quota_bytes())
        self._num_frames = self._bounds.frame_count
        self.cpu_fallback = CpuFallbackStatus()

    def __len__(self) -> int:
        return self._num_frames

    def __getitem__(self, key: SupportsIndex | slice) -> torch.Tensor:
        """One frame, or the frames of a slice.

        Args:
            key: An index, negative ones counted from the end; or a slice with a positive step, cut at the
                stream's end as slices of a list are.

        Returns:
            (C, H, W) for an index, (N, C, H, W) for a slice; or with C last.

        Raises:
            FrameIndexError: There is no such frame. Iterating ends by it.
            RangeError: The slice's step is negative, or its start lies behind its stop. It is a
                ``ValueError`` and a ``RuntimeError``, too.
            ArgumentTypeError: The key is neither.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> decoder = VideoDecoder(video_path)
            >>> decoder[0:6:2].shape[0]
            3
        """
        if isinstance(key, numbers.Integral):
            return self.get_frame_at(key).data
        if isinstance(key, slice):
            return self.get_frames_in_range(key.start, key.stop, key.step).data
        raise ArgumentTypeError(f"Unsupported key type {type(key).__name__}: use an integer or a slice.")

    def get_frame_at(self, index: SupportsIndex) -> Frame:
        """The frame with this index.

        Args:
            index: 0 is the first, -1 the last.

        Returns:
            ``data`` is (C, H, W), or (H, W, C).

        Raises:
            FrameIndexError: There is no such frame.
            MediaError: The file is damaged there.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> frame = VideoDecoder(video_path).get_frame_at(-1)
            >>> frame.data.ndim, frame.duration_seconds > 0
            (3, True)
        """
        return self._frame(self._bounds.at(index))

    def get_frames_at(self, indices: Indices) -> FrameBatch:
        """The frames with these indices, in this order and as often as given.

        Args:
            indices: Integers in a list, range, numpy array or tensor; negative ones count from the end.

        Returns:
            ``data`` is (N, C, H, W), or (N, H, W, C); the times are float64 (N,) in seconds.

        Raises:
            FrameIndexError: There is no such frame.
            NoSlotsError: The result is larger than this process's quota.
            MediaError: The file is damaged there.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> batch = VideoDecoder(video_path).get_frames_at([5, 0, 0, -1])
            >>> batch.data.shape[0], bool((batch.data[1] == batch.data[2]).all())
            (4, True)
        """
        return self._batch(self._bounds.at_each(indices))

    def get_frames_in_range(
        self, start: SupportsIndex | None, stop: SupportsIndex | None, step: SupportsIndex | None = 1
    ) -> FrameBatch:
        """The frames ``start``, ``start + step``, … below ``stop``, as ``list[start:stop:step]`` has them.

        Args:
            start: The first; negative from the end.
            stop: Below this; negative from the end.
            step: At least 1.

        Returns:
            ``data`` is (N, C, H, W), or (N, H, W, C); the times are float64 (N,) in seconds.

        Raises:
            RangeError: ``step`` is negative, or ``start`` lies behind ``stop``. It is a ``ValueError`` and a
                ``RuntimeError``, too.
            NoSlotsError: The result is larger than this process's quota.
            MediaError: The file is damaged there.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> len(VideoDecoder(video_path).get_frames_in_range(-3, 10**9))
            3
        """
        return self._batch(self._bounds.in_range(start, stop, step))

    def get_frame_played_at(self, seconds: float) -> Frame:
        """The frame that is shown at this time.

        Args:
            seconds: Within [``metadata.begin_stream_seconds``, ``metadata.end_stream_seconds``).

        Returns:
            The frame with pts <= ``seconds`` < pts + duration; in a gap between frames the next one. ``data``
            is (C, H, W), or (H, W, C).

        Raises:
            RangeError: The time is outside the stream, or NaN. It is an ``IndexError``, too.
            MediaError: The file is damaged there.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> decoder = VideoDecoder(video_path)
            >>> frame = decoder.get_frame_played_at(decoder.metadata.begin_stream_seconds)
            >>> frame.pts_seconds == decoder.metadata.begin_stream_seconds
            True
        """
        return self._frame(self._bounds.played_at(seconds))

    def get_frames_played_at(self, seconds: Times) -> FrameBatch:
        """The frames that are shown at these times, in this order and as often as given.

        Args:
            seconds: Numbers in a list, numpy array or tensor, each within
                [``metadata.begin_stream_seconds``, ``metadata.end_stream_seconds``).

        Returns:
            For each time the last frame that begins at or before it. ``data`` is (N, C, H, W), or
            (N, H, W, C); the times are float64 (N,) in seconds.

        Raises:
            RangeError: A time is outside the stream, or NaN. It is a ``RuntimeError``, too.
            NoSlotsError: The result is larger than this process's quota.
            MediaError: The file is damaged there.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> decoder = VideoDecoder(video_path)
            >>> begin = decoder.metadata.begin_stream_seconds
            >>> decoder.get_frames_played_at([begin + 0.1, begin]).data.shape[0]
            2
        """
        return self._batch(self._bounds.played_at_each(seconds))

    def get_frames_played_in_range(
        self, start_seconds: float, stop_seconds: float, fps: float | None = None
    ) -> FrameBatch:
        """All frames that are shown at some time in [``start_seconds``, ``stop_seconds``).

        The first may begin before ``start_seconds``: it is the one on display then.

        Args:
            start_seconds: Within [``metadata.begin_stream_seconds``, ``metadata.end_stream_seconds``).
            stop_seconds: At most ``metadata.end_stream_seconds``; equal to the start for no frames.
            fps: Give as many frames per second as this, repeating or leaving out frames; their times are
                then those of this rate. Default: each frame once, with its own times.

        Returns:
            ``data`` is (N, C, H, W), or (N, H, W, C); the times are float64 (N,) in seconds.

        Raises:
            InvalidRequestError: The start lies behind the stop.
            RangeError: A time is outside the stream, or ``fps`` is not above 0. It is a ``ValueError``
                and a ``RuntimeError``, too.
            NoSlotsError: The result is larger than this process's quota.
            MediaError: The file is damaged there.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> decoder = VideoDecoder(video_path)
            >>> begin = decoder.metadata.begin_stream_seconds
            >>> len(decoder.get_frames_played_in_range(begin, begin + 0.5, fps=10))
            5
        """
        wanted = self._bounds.played_in_range(start_seconds, stop_seconds)
        if wanted is None or fps is None:
            return self._batch(wanted)
        return self._resampled(as_seconds(start_seconds), as_seconds(stop_seconds), as_seconds(fps))

    def get_all_frames(self, fps: float | None = None) -> FrameBatch:
        """All frames of the stream.

        Args:
            fps: As for :meth:`get_frames_played_in_range`.

        Returns:
            ``data`` is (N, C, H, W), or (N, H, W, C); the times are float64 (N,) in seconds.

        Raises:
            NoSlotsError: The result is larger than this process's quota.
            MediaError: The file is damaged somewhere.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> decoder = VideoDecoder(video_path)
            >>> len(decoder.get_all_frames()) == len(decoder)
            True
        """
        return self.get_frames_played_in_range(self._bounds.begin_seconds, self._bounds.end_seconds, fps)

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self._source, self._options, client.explicit_socket())

    def _batch_of(self, part: Part | None) -> FrameBatch:
        """One part of a reply as a batch; None stands for no frames, which are not worth a request."""
        if part is None:
            height, width = self.metadata.height or 0, self.metadata.width or 0
            pixels = _arrays.empty_frames(height, width, self._dtype, channels_first=self._channels_first)
            return FrameBatch(pixels, _arrays.times_tensor([]), _arrays.times_tensor([]))
        pixels, pts_seconds, duration_seconds = part.batch(self._channels_first)
        batch = FrameBatch(
            _arrays.pixels_tensor(pixels),
            _arrays.times_tensor(pts_seconds),
            _arrays.times_tensor(duration_seconds),
        )
        batch._memory = pixels.memory()
        return batch

    def _frame(self, wanted: Wanted) -> Frame:
        pixels, pts_seconds, duration_seconds = self._native.read(wanted).frame(self._channels_first)
        frame = Frame(_arrays.pixels_tensor(pixels), pts_seconds, duration_seconds)
        frame._memory = pixels.memory()
        return frame

    def _batch(self, wanted: Wanted | None) -> FrameBatch:
        return self._batch_of(None if wanted is None else self._native.read(wanted))

    def _resampled(self, start: float, stop: float, fps: float) -> FrameBatch:
        if not fps > 0:
            raise RangeError(f"fps must be positive, not {fps}.")
        duration = 1.0 / fps
        exact_count = (stop - start) * fps
        self._bounds.check_fits(exact_count)
        # Halves away from zero, which is not how Python rounds.
        count = math.floor(exact_count)
        count += exact_count - count >= 0.5
        times = [start + position * duration for position in range(count)]
        played = self._batch(self._bounds.played_at_each(times))
        batch = FrameBatch(played.data, _arrays.times_tensor(times), _arrays.times_tensor([duration] * count))
        batch._memory = played._memory
        return batch


def _reopen(source: str | bytes, options: dict[str, object], socket: str | None) -> VideoDecoder:
    """A pickled decoder, in the process that it came to."""
    client.use_socket(socket)
    return VideoDecoder(source, **options)  # pyright: ignore[reportArgumentType] # as they were given once


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidRequestError(f"Invalid {name} {value!r}: use one of {', '.join(map(repr, allowed))}.")


def _check_device(device: str | torch.device | None) -> None:
    if device is None:
        torch = sys.modules.get("torch")
        device = "cpu" if torch is None else torch.get_default_device()
    kind = str(device).partition(":")[0]
    if kind == "cuda":
        raise UnsupportedError(
            f"device={str(device)!r}: this version decodes on the CPU. Leave the device out and move the "
            "frames with .to('cuda')."
        )
    if kind != "cpu":
        raise UnsupportedError(f"device={str(device)!r}: unknown device, only 'cpu' can decode.")


def _dtype_name(output_dtype: DType) -> Literal["uint8", "float32"]:
    # str() of torch's dtypes has the module's name before it; numpy's scalar types have theirs in __name__.
    name = getattr(output_dtype, "__name__", None) or str(output_dtype).removeprefix("torch.")
    if output_dtype == "auto":
        raise UnsupportedError("output_dtype='auto' is not supported: choose 'uint8' or 'float32'.")
    if name not in _VALUE_BYTES:
        raise InvalidRequestError(f"Invalid output_dtype {output_dtype}: use uint8 or float32.")
    return cast('Literal["uint8", "float32"]', name)


def _thread_count(num_ffmpeg_threads: int) -> int:
    if num_ffmpeg_threads is None:
        raise InvalidRequestError("num_ffmpeg_threads must be an integer; 0 leaves it to the daemon.")
    if not isinstance(num_ffmpeg_threads, numbers.Integral):
        name = type(num_ffmpeg_threads).__name__
        raise ArgumentTypeError(f"num_ffmpeg_threads must be an integer, not {name}.")
    return min(max(int(num_ffmpeg_threads), 0), _THREAD_COUNT_MAX)


def _stream(stream_index: int | None) -> int | None:
    if stream_index is None:
        return None
    try:
        stream = operator.index(stream_index)
    except TypeError:
        name = type(stream_index).__name__
        raise ArgumentTypeError(f"stream_index must be an integer, not {name}.") from None
    if not 0 <= stream <= _STREAM_INDEX_MAX:
        raise RangeError(f"stream_index={stream} is not a valid stream: they count from 0.")
    return stream


def _stream_bounds(metadata: VideoStreamMetadata, dtype: str, quota_bytes: int) -> StreamBounds:
    begin, end = metadata.begin_stream_seconds, metadata.end_stream_seconds
    count, height, width = metadata.num_frames, metadata.height, metadata.width
    if begin is None or end is None or count is None or height is None or width is None:
        raise InvalidRequestError(
            "The header tells neither the number of frames nor the duration: open it with seek_mode='exact'."
        )
    if metadata.num_frames_from_content is None and metadata.average_fps_from_header is None:
        raise UnsupportedError("The header tells no frame rate: open it with seek_mode='exact'.")
    return StreamBounds(
        frame_count=count,
        begin_seconds=begin,
        end_seconds=end,
        frame_bytes=height * width * 3 * _VALUE_BYTES[dtype],
        quota_bytes=quota_bytes,
    )
