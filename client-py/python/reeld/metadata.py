"""What is known of a video stream: TorchCodec's names, values and number types.

Nothing is computed here: the daemon decides what applies, these classes only show it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reeld._native import StreamDescription

# Above this a double is shown with an exponent, and such a number is a float in TorchCodec's metadata too.
_WHOLE_NUMBER_MAX = 1e16


@dataclass(repr=False)
class StreamMetadata:
    """What the container's header says about a stream of any kind.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> from reeld.metadata import StreamMetadata
        >>> metadata = VideoDecoder(video_path).metadata
        >>> isinstance(metadata, StreamMetadata), metadata.codec
        (True, 'h264')
    """

    duration_seconds_from_header: float | None
    """Duration in seconds; often inexact."""
    begin_stream_seconds_from_header: float | None
    """First timestamp in seconds."""
    bit_rate: float | None
    """Bits per second; 0 where the header does not say."""
    codec: str | None
    """FFmpeg's name of the codec."""
    stream_index: int
    """Position among all streams of the container, of whatever kind."""
    media_type: str
    """``"video"``, ``"audio"``, ``"subtitle"``, ``"data"``, ``"attachment"`` or ``"unknown"``."""

    def __repr__(self) -> str:
        lines = [f"  {field.name}: {getattr(self, field.name)}\n" for field in fields(self)]
        return f"{type(self).__name__}:\n" + "".join(lines)


@dataclass(repr=False)
class VideoStreamHeaderMetadata(StreamMetadata):
    """What the container's header says about a video stream.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> metadata = VideoDecoder(video_path).metadata
        >>> metadata.width, metadata.height, metadata.pixel_format
        (320, 180, 'yuv420p')
    """

    width: int | None
    """Width in pixels of the frames that are returned: after rotation."""
    height: int | None
    """Height in pixels of the frames that are returned: after rotation."""
    num_frames_from_header: int | None
    """Number of frames; often inexact, prefer ``num_frames``."""
    average_fps_from_header: float | None
    """Frames per second; prefer ``average_fps``."""
    pixel_aspect_ratio: Fraction | None
    """Width to height of one pixel; 0 where unknown."""
    rotation: float | None
    """Degrees counter-clockwise from the display matrix; returned frames are rotated already."""
    color_primaries: str | None
    """FFmpeg's name, such as ``"bt709"``."""
    color_space: str | None
    """FFmpeg's name, such as ``"bt2020nc"``."""
    color_transfer_characteristic: str | None
    """FFmpeg's name, such as ``"smpte2084"``."""
    pixel_format: str | None
    """FFmpeg's name of the coded pixel format, such as ``"yuv420p"``."""


@dataclass(repr=False)
class VideoStreamMetadata(VideoStreamHeaderMetadata):
    """All that is known of a video stream.

    The fields ``…_from_content`` come from the scan of all packets that exact mode makes, and are None in
    approximate mode. The last five fields are those to use: they choose between content and header.
    Numbers without a fraction are ``int``, also where the field is a time.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> metadata = VideoDecoder(video_path).metadata
        >>> metadata.media_type, metadata.num_frames == metadata.num_frames_from_content
        ('video', True)
    """

    begin_stream_seconds_from_content: float | None
    """The smallest pts of all frames, in seconds."""
    end_stream_seconds_from_content: float | None
    """The largest pts + duration of all frames, in seconds."""
    num_frames_from_content: int | None
    """Number of frames that the scan found."""
    duration_seconds: float | None
    """Duration in seconds."""
    begin_stream_seconds: float | None
    """When the first frame begins, in seconds."""
    end_stream_seconds: float | None
    """When the last frame ends, in seconds: no frame is played at this time."""
    num_frames: int | None
    """Number of frames, which is the decoder's length."""
    average_fps: float | None
    """Frames per second."""

    @classmethod
    def from_description(cls, description: StreamDescription) -> VideoStreamMetadata:
        """What the native module tells of an open video, as metadata.

        Args:
            description: Keys are this class's fields; ``pixel_aspect_ratio`` is a pair of ints.
        """
        values = {name: _as_shown(value) for name, value in description.items()}
        numerator, denominator = description["pixel_aspect_ratio"]
        values["pixel_aspect_ratio"] = Fraction(numerator, denominator) if denominator else None
        # The one number that TorchCodec never shows as an int.
        values["rotation"] = description["rotation"]
        return cls(**values)  # pyright: ignore[reportArgumentType] # the keys are checked by a test


def _as_shown(value: object) -> object:
    """A whole number as an int, as TorchCodec's metadata have it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE_NUMBER_MAX:
        return int(value)
    return value
