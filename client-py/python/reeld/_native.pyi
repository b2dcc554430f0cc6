"""The native module: the Rust client as Python sees it. Not for callers of this package.

Blocking methods release the GIL and look for Ctrl-C every 50 ms, also while the daemon is away. They raise
the classes of ``reeld.errors``.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, CapsuleType

__version__: str

class StreamDescription(TypedDict):
    """An open stream: the fields of ``reeld.metadata.VideoStreamMetadata``, not yet in their final types."""

    duration_seconds_from_header: float | None
    begin_stream_seconds_from_header: float | None
    bit_rate: int
    codec: str
    stream_index: int
    media_type: str
    width: int
    height: int
    num_frames_from_header: int | None
    average_fps_from_header: float | None
    pixel_aspect_ratio: tuple[int, int]
    rotation: float | None
    color_primaries: str | None
    color_space: str | None
    color_transfer_characteristic: str | None
    pixel_format: str | None
    begin_stream_seconds_from_content: float | None
    end_stream_seconds_from_content: float | None
    num_frames_from_content: int | None
    duration_seconds: float | None
    begin_stream_seconds: float | None
    end_stream_seconds: float | None
    num_frames: int | None
    average_fps: float | None

@final
class Client:
    """A connection to a daemon. Threads may share it; a forked child connects anew by itself."""

    def __new__(
        cls,
        *,
        socket: str | None = None,
        binary: str | None = None,
        binary_dirs: Sequence[str] = (),
        autostart: bool = True,
        reconnect_seconds: float | None = None,
    ) -> Client: ...
    def open(
        self,
        source: str | Spool | tuple[int, str],
        *,
        stream: int | None,
        seek_mode: Literal["exact", "approximate"],
        dtype: Literal["uint8", "float32", "auto"],
        thread_count: int,
        mapping: FrameMapping | None = None,
    ) -> Video:
        """Opens a path; the content of a spool, once; or a descriptor, which stays its owner's."""

    def redeem(
        self,
        ticket: bytes,
        *,
        dtype: str,
        offset: int,
        shape: Sequence[int],
        strides: Sequence[int],
    ) -> Pixels:
        """A block of values in the slot that a ticket stands for. Counts and steps are in values."""

    def count_copy(self, byte_count: int) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def statistics(self) -> dict[str, int]: ...

@final
class Spool:
    """Content that no file holds: in memory, or from 64 MiB on in a file without a name."""

    def __new__(cls, *, in_memory: bool = False) -> Spool: ...
    def expect_bytes(self, count: int) -> None: ...
    def write(self, content: Buffer) -> int: ...

@final
class FrameMapping:
    """Frames of one stream as a caller lists them, in ticks of the stream's time base."""

    def __new__(
        cls, pts: NDArray[np.int64], durations: NDArray[np.int64], are_keys: NDArray[np.uint8]
    ) -> FrameMapping: ...

@final
class Video:
    """An open stream of a source."""

    def description(self) -> StreamDescription: ...
    def transformed(self, transforms: list[Transform]) -> Video:
        """The same stream with frames that are transformed. Sizes that do not fit are a `RangeError`."""

    def frame_size(self) -> tuple[int, int]:
        """Height and width of the frames that are returned, after all transforms."""

    def dtype(self) -> Literal["uint8", "float32"]: ...
    def mapped_bounds(self) -> tuple[int, float, float] | None:
        """Number of frames, begin and end as the mapping says, where there is one."""

    def content(self, bytes_max: int) -> bytes | None:
        """The bytes of the source; None where there are more than that."""

    def quota_bytes(self) -> int:
        """The most bytes that this process's results may have together, as was said when it was opened."""

    def key_frames(self) -> list[int]: ...
    def prefetch(self, wanted: Wanted) -> None:
        """Says which frames will be asked for. Never waits."""

    def read(self, wanted: Wanted) -> Part: ...

@final
class Transform:
    """What the daemon does to frames before it delivers them."""

    @staticmethod
    def resize(height: int, width: int) -> Transform: ...
    @staticmethod
    def crop(top: int, left: int, height: int, width: int) -> Transform: ...
    @staticmethod
    def center_crop(height: int, width: int) -> Transform: ...

@final
class Wanted:
    """Which frames of one video."""

    @staticmethod
    def index(index: int) -> Wanted: ...
    @staticmethod
    def index_list(indices: list[int]) -> Wanted: ...
    @staticmethod
    def indices(indices: NDArray[np.int64]) -> Wanted: ...
    @staticmethod
    def index_range(start: int, stop: int, step: int) -> Wanted: ...
    @staticmethod
    def played_at(seconds: float) -> Wanted: ...
    @staticmethod
    def played_at_each(seconds: NDArray[np.float64]) -> Wanted: ...
    @staticmethod
    def played_in_range(start: float, stop: float) -> Wanted: ...

@final
class Pending:
    """A request on its way; dropping it cancels it."""

    def result(self, timeout_seconds: float | None = None) -> list[Part]: ...
    def done(self) -> bool: ...
    def cancel(self) -> None: ...

def submit(
    parts: Sequence[tuple[Video, Wanted]], *, priority: int = 0, timeout_seconds: float | None = None
) -> Pending:
    """Asks for frames of several videos of one connection by one request, without waiting for them.

    It waits only where a great many requests wait to be sent, and then Ctrl-C ends that.
    """

@final
class Part:
    """The frames of one video in a reply. Times are float64 seconds."""

    def frame(self, channels_first: bool) -> tuple[Pixels, float, float]: ...
    def batch(self, channels_first: bool) -> tuple[Pixels, bytearray, bytearray]: ...

@final
class Pixels:
    """Frames as a block of numbers in the daemon's memory, for torch and numpy to view."""

    def dlpack_capsule(self) -> CapsuleType: ...
    def __dlpack__(
        self,
        *,
        stream: object | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> CapsuleType: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    @property
    def __array_interface__(self) -> dict[str, object]: ...
    def arena_addresses(self) -> tuple[int, int] | None: ...
    def memory(self) -> Memory | None: ...

@final
class Memory:
    """The slot that frames lie in. It is not kept by this, but by the tensors."""

    def addresses(self) -> tuple[int, int] | None: ...
    def ticket(self) -> bytes: ...

def name_session(process: int) -> None:
    """Tickets of this process hold at least as long as that one lives."""
