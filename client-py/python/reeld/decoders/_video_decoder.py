"""`VideoDecoder`: one stream of one video, frame by frame or many frames at once.

Nothing is decoded here. Arguments are checked in `_bounds.py`, frames come through the native module.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, SupportsIndex, cast

import numpy as np

from reeld import _arrays, client
from reeld import transforms as decoder_transforms
from reeld._bounds import MappedBounds, StreamBounds, as_seconds
from reeld._native import Wanted
from reeld.decoders._cpu_fallback import CpuFallbackStatus
from reeld.decoders._mappings import FrameMappings, read_mappings
from reeld.decoders._sources import opened_source
from reeld.errors import (
    ArgumentTypeError,
    InvalidRequestError,
    LimitReachedError,
    RangeError,
    UnsupportedError,
)
from reeld.frames import Frame, FrameBatch
from reeld.metadata import VideoStreamMetadata

if TYPE_CHECKING:
    import torch
    from torch import nn

    from reeld._bounds import Indices, Times
    from reeld._native import Part, Video
    from reeld.decoders._mappings import SupportsRead
    from reeld.decoders._sources import Source
    from reeld.transforms import DecoderTransform

    DType = torch.dtype | np.dtype[np.generic] | type[np.generic] | Literal["uint8", "float32", "auto"]

_DIMENSION_ORDERS = ("NCHW", "NHWC")
_SEEK_MODES = ("exact", "approximate")
_VALUE_BYTES = {"uint8": 1, "float32": 4}
# The hint for the daemon has 16 bits; no machine decodes one video with as many threads.
_THREAD_COUNT_MAX = 2**16 - 1
_STREAM_INDEX_MAX = 2**32 - 1
# What was read from a file-like object is copied twice on the way to another process, and held there.
_PICKLED_BYTES_MAX = 256 << 20
_BYTES_MAX = 2**63 - 1


class VideoDecoder:
    """The frames of one video stream, decoded by the daemon.

    A drop-in for TorchCodec's class of the same name. A decoder may be used from several threads, survives
    ``fork``, and can be pickled: the copy opens the same path again. Bytes, arrays and tensors go with the
    pickle; so do the contents of files and file-like objects up to 256 MiB, and what is larger cannot be
    pickled.

    Frames are views of memory that the daemon wrote, writable, and shared with children that are forked while
    they are held; the memory is given back when the last view of it dies. Where torch is installed they are
    tensors, else numpy arrays.

    Args:
        source: Where the video is:

            - A path: str, ``pathlib.Path`` or any ``os.PathLike``. A str such as ``"s3://…"`` is taken for a
              URL, which the daemon cannot open, also where a local file has that name: pass ``pathlib.Path``
              for that.
            - The bytes of a whole file: bytes, bytearray, a memoryview, a numpy array or a tensor of uint8,
              contiguous. They are copied once, into memory that the daemon reads.
            - A file opened with ``open(path, "rb")``: as its path, whatever has become of that.
            - Any other binary file-like object with ``read(size)`` and ``seek(offset, whence)``, such as
              fsspec's. It is read from its begin to its end when the decoder is made, and not used
              afterwards: up to 64 MiB into memory, more into a file without a name in ``$TMPDIR``; see
              :func:`set_spool_limit` and :func:`on_spool_progress`.
        stream_index: Position of the stream among all streams of the file. Default: the video stream that
            FFmpeg prefers.
        dimension_order: ``"NCHW"`` or ``"NHWC"``. Frames lie in memory as NHWC; the former is a permuted
            view of it.
        num_ffmpeg_threads: More than 1: the most threads that decode for this decoder. A hint: the daemon
            shares the processors among all, and uses those that are idle.
        device: ``"cpu"``, or None for torch's default device.
        seek_mode: ``"exact"`` finds frames by an index of the whole file, which the daemon makes once;
            ``"approximate"`` by arithmetic on what the header says.
        transforms: What is done to the frames, in this order: objects of :mod:`reeld.transforms`,
            TorchCodec's, or torchvision's ``v2.Resize``, ``v2.CenterCrop`` and ``v2.RandomCrop``.
            ``metadata`` still tells the size before them.
        output_dtype: ``uint8`` for values in [0, 255] or ``float32`` for values in [0, 1]: torch's dtype,
            numpy's, or its name; or ``"auto"``, which is ``float32`` for videos of more than 8 bits.
        custom_frame_mappings: All frames of the stream, if they are known already: JSON as ``ffprobe
            -show_entries frame=pts,pkt_pts,duration,pkt_duration,key_frame -of json`` writes it, in ticks of
            the stream's time base, as str, bytes or in a file-like object. It spares the scan that
            ``"exact"`` makes, and counts for this decoder alone. ``metadata`` shows the header's values then.
            One that is wrong gives other frames, or errors. Not with ``"approximate"``.

    Attributes:
        metadata (VideoStreamMetadata): What is known of the stream.
        stream_index (int): Position of the stream among all streams of the file.
        cpu_fallback (CpuFallbackStatus): Whether another device than the CPU was asked for in vain.

    Raises:
        MediaError: The file is missing, not a regular file, or cannot be read as media.
        LimitReachedError: A file-like object is larger than allowed, or a mapping has too many frames.
        InvalidRequestError: An argument has a value that is not allowed, or the file has no such video
            stream.
        RangeError: A transform's size is not positive, or is larger than the frame that it is cut from.
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
        transforms: Sequence[DecoderTransform | nn.Module] | None = None,
        output_dtype: DType = "uint8",
        custom_frame_mappings: str | bytes | SupportsRead | None = None,
    ) -> None:
        _check_choice("seek mode", seek_mode, _SEEK_MODES)
        mappings = _mappings(custom_frame_mappings, seek_mode)
        _check_choice("dimension order", dimension_order, _DIMENSION_ORDERS)
        thread_count = _thread_count(num_ffmpeg_threads)
        dtype = _dtype_name(output_dtype)
        opened = opened_source(source)
        self._path, self._is_in_memory = opened.path, opened.is_in_memory
        self._options = {
            "stream_index": stream_index,
            "dimension_order": dimension_order,
            "num_ffmpeg_threads": num_ffmpeg_threads,
            "seek_mode": seek_mode,
            "output_dtype": dtype,
            "custom_frame_mappings": mappings,
        }
        self._channels_first = dimension_order == "NCHW"
        self._native = client.default_client().open(
            opened.native,
            stream=_stream(stream_index),
            seek_mode=seek_mode,
            dtype=dtype,
            thread_count=thread_count,
            mapping=None if mappings is None else mappings.native(),
        )
        # Only now, as TorchCodec does it: a file without video is wrong whatever the device.
        _check_device(device)
        self.metadata = VideoStreamMetadata.from_description(self._native.description())
        self.stream_index = self.metadata.stream_index
        if transforms is not None:
            settled = decoder_transforms.settled(transforms, (self.metadata.height, self.metadata.width))
            self._native = self._native.transformed(decoder_transforms.native(settled))
            self._options["transforms"] = settled
        self._dtype = self._native.dtype()
        self._frame_size = self._native.frame_size()
        self._bounds = _stream_bounds(self.metadata, self._frame_bytes(), self._native)
        self._num_frames = self._bounds.length
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
            RangeError: The slice's step is negative, or its start lies behind its stop by a step or
                more. It is a
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

    @property
    def key_frame_indices(self) -> torch.Tensor:
        """The indices of the frames that decoding can begin at, ascending: int64 (N,).

        A frame costs the less, the fewer frames lie between the last of these before it and itself. Each
        access asks the daemon.

        Raises:
            UnsupportedError: The decoder was made with ``seek_mode="approximate"``, which does not know them.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> VideoDecoder(video_path).key_frame_indices.tolist()
            [0, 25]
        """
        return _arrays.array_tensor(np.array(self._native.key_frames(), dtype=np.int64))

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

    def prefetch(self, indices: Indices | slice) -> None:
        """Tells the daemon which frames will be asked for, here or in another process of this user.

        Where no process waits for other frames, they are decoded ahead and kept; asking for them then takes
        no decoding, whatever ``transforms`` and ``output_dtype`` are. It does not wait, and returns nothing.
        It is a hint: the daemon leaves out what is too much for its picture caches (at most 4096 frames of
        one process) and forgets it when this process goes.

        Args:
            indices: As for :meth:`get_frames_at`, or a slice, as for ``decoder[…]``.

        Raises:
            FrameIndexError: There is no such frame. Then nothing is prefetched.
            RangeError: The slice's step is negative, or its start lies behind its stop by a step or more.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> decoder = VideoDecoder(video_path)
            >>> decoder.prefetch([30, 31, -1])
            >>> decoder.prefetch(slice(0, 20, 2))
            >>> len(decoder.get_frames_at([30, 31, -1]))
            3
        """
        bounds = self._hint_bounds()
        if isinstance(indices, slice):
            wanted = bounds.in_range(indices.start, indices.stop, indices.step)
        else:
            # Of nothing nothing will be asked for; `get_frames_at` refuses an empty list, as TorchCodec does.
            wanted = None if isinstance(indices, list | tuple) and not indices else bounds.at_each(indices)
        if wanted is not None:
            self._native.prefetch(wanted)

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
        # A rate that is no number is wrong also where there are no frames to be had at it.
        rate = None if fps is None else as_seconds(fps)
        if wanted is None or rate is None:
            return self._batch(wanted)
        return self._resampled(as_seconds(start_seconds), as_seconds(stop_seconds), rate)

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

    def _get_key_frame_indices(self) -> torch.Tensor:
        """TorchCodec's private name of `key_frame_indices`; see `reeld.compat`."""
        return self.key_frame_indices

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self._path or self._content(), self._options, client.explicit_socket())

    def _content(self) -> bytes:
        """What the decoder was made from, where that was no path."""
        content = self._native.content(_BYTES_MAX if self._is_in_memory else _PICKLED_BYTES_MAX)
        if content is None:
            raise LimitReachedError(
                f"A decoder that was made from a file or file-like object of more than {_PICKLED_BYTES_MAX} "
                "bytes cannot be pickled or copied: make it from a path, or in the process that uses it."
            )
        return content

    def _hint_bounds(self) -> StreamBounds:
        """The bounds of what may be prefetched, which needs no memory of this process."""
        return dataclasses.replace(self._bounds, quota_bytes=sys.maxsize)

    def _frame_bytes(self) -> int:
        height, width = self._frame_size
        return height * width * 3 * _VALUE_BYTES[self._dtype]

    def _batch_of(self, part: Part | None) -> FrameBatch:
        """One part of a reply as a batch; None stands for no frames, which are not worth a request."""
        if part is None:
            height, width = self._frame_size
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


def _mappings(
    given: str | bytes | SupportsRead | FrameMappings | None, seek_mode: str
) -> FrameMappings | None:
    if given is None or isinstance(given, FrameMappings):
        return given
    if seek_mode == "approximate":
        raise InvalidRequestError(
            "custom_frame_mappings is incompatible with seek_mode='approximate': leave seek_mode out."
        )
    return read_mappings(given)


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


def _dtype_name(output_dtype: DType) -> Literal["uint8", "float32", "auto"]:
    # str() of torch's dtypes has the module's name before it; numpy's scalar types have theirs in __name__.
    name = getattr(output_dtype, "__name__", None) or str(output_dtype).removeprefix("torch.")
    if name != "auto" and name not in _VALUE_BYTES:
        raise InvalidRequestError(f"Invalid output_dtype {output_dtype}: use uint8, float32 or 'auto'.")
    return cast('Literal["uint8", "float32", "auto"]', name)


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


def _stream_bounds(metadata: VideoStreamMetadata, frame_bytes: int, native: Video) -> StreamBounds:
    begin, end = metadata.begin_stream_seconds, metadata.end_stream_seconds
    count, height, width = metadata.num_frames, metadata.height, metadata.width
    if begin is None or end is None or count is None or height is None or width is None:
        raise InvalidRequestError(
            "The header tells neither the number of frames nor the duration: open it with seek_mode='exact'."
        )
    mapped = native.mapped_bounds()
    is_by_header = metadata.num_frames_from_content is None and mapped is None
    if is_by_header and metadata.average_fps_from_header is None:
        raise UnsupportedError("The header tells no frame rate: open it with seek_mode='exact'.")
    return StreamBounds(
        length=count,
        begin_seconds=begin,
        end_seconds=end,
        frame_bytes=frame_bytes,
        quota_bytes=native.quota_bytes(),
        mapped=mapped and MappedBounds(frame_count=mapped[0], begin_seconds=mapped[1], end_seconds=mapped[2]),
    )
