"""Video frames from the reeld daemon, which decodes once for all processes of a machine.

`reeld.decoders.VideoDecoder` has TorchCodec's interface; :func:`submit` gets frames of many videos by one
request. Frames are torch tensors where torch is installed, else numpy arrays, and lie in memory that the
daemon wrote: nothing is copied.

Example:
    >>> from reeld.decoders import VideoDecoder
    >>> decoder = VideoDecoder(video_path)
    >>> batch = decoder.get_frames_at([0, 1, -1])
    >>> batch.data.shape[:2] == (3, 3), batch.pts_seconds.shape[0]
    (True, 3)
"""

from reeld import _tickets, decoders, samplers, transforms
from reeld._native import __version__
from reeld.client import connect, statistics, status
from reeld.clips import Clip, PendingFrames, prefetch, submit
from reeld.errors import (
    ArgumentTypeError,
    CancelledError,
    DaemonUnavailableError,
    DeadlineError,
    DecoderCrashedError,
    FrameIndexError,
    FramesLostError,
    InternalError,
    InvalidRequestError,
    LimitReachedError,
    MediaError,
    NoSlotsError,
    RangeError,
    ReeldError,
    SourceChangedError,
    UnsupportedError,
)
from reeld.frames import Frame, FrameBatch

__all__ = [
    "ArgumentTypeError",
    "CancelledError",
    "Clip",
    "DaemonUnavailableError",
    "DeadlineError",
    "DecoderCrashedError",
    "Frame",
    "FrameBatch",
    "FrameIndexError",
    "FramesLostError",
    "InternalError",
    "InvalidRequestError",
    "LimitReachedError",
    "MediaError",
    "NoSlotsError",
    "PendingFrames",
    "RangeError",
    "ReeldError",
    "SourceChangedError",
    "UnsupportedError",
    "__version__",
    "connect",
    "decoders",
    "prefetch",
    "samplers",
    "statistics",
    "status",
    "submit",
    "transforms",
]

_tickets.register()
