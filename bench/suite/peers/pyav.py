"""PyAV: FFmpeg's own interface in Python. Seeking is the caller's matter, so it is done well here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from suite.peers.base import Frames, Peer, Setting, Video


class PyAvVideo(Video):
    """An open container. Frames are found by their times, which are those of a constant rate."""

    def __init__(self, library: Any, path: str, setting: Setting, size: tuple[int, int] | None) -> None:  # noqa: ANN401
        """Opens it; reads the keyframes from the container's own index, not from the file."""
        self._container = library.open(path)
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = setting.get("thread_type", "AUTO")
        self._stream.codec_context.thread_count = setting.get("threads", 0)
        self._rate = self._stream.average_rate
        self._start = self._stream.start_time or 0
        self._size = size
        self._last = -1
        self._picture_count = 0
        self._decoded = self._container.decode(self._stream)
        entries = self._stream.index_entries
        self._keyframes = [entry.timestamp for entry in entries if entry.is_keyframe]

    def _pts(self, index: int) -> int:
        return self._start + round(index / self._rate / self._stream.time_base)

    def _goes_on(self, index: int) -> bool:
        """Whether decoding on is cheaper than a seek: there is no keyframe on the way."""
        if index <= self._last:
            return False
        # Keyframes are known by dts, which is at most their pts.
        begin, end = self._pts(max(self._last, 0)), self._pts(index)
        return not any(begin < keyframe <= end for keyframe in self._keyframes)

    def frames_at(self, indices: Sequence[int]) -> Frames:
        """In ascending order, each sought unless it lies on the way; then put into the order wanted."""
        found: dict[int, tuple[Any, float]] = {}
        self._picture_count = 0
        for index in sorted(set(indices)):
            found[index] = self._frame(index)
        chosen = [found[index] for index in indices]
        return Frames([pixels for pixels, _ in chosen], [pts for _, pts in chosen], self._picture_count)

    def _frame(self, index: int) -> tuple[Any, float]:
        wanted = self._pts(index)
        if not self._goes_on(index):
            self._seek(wanted)
        for frame in self._decoded:
            self._picture_count += 1
            # Half a picture's time covers the rounding of the container's time base.
            if frame.pts is not None and frame.pts >= wanted - self._half_step():
                self._last = index
                return self._pixels(frame), float(frame.pts * self._stream.time_base)
        raise IndexError(index)

    def _half_step(self) -> int:
        return int(1 / self._rate / self._stream.time_base) // 2

    def _seek(self, pts: int) -> None:
        self._container.seek(pts, backward=True, stream=self._stream)
        self._decoded = self._container.decode(self._stream)

    def _pixels(self, frame: Any) -> Any:  # noqa: ANN401 # PyAV is imported late
        if self._size is None:
            return frame.to_ndarray(format="rgb24")
        height, width = self._size
        return frame.reformat(
            width=width, height=height, format="rgb24", interpolation="BILINEAR"
        ).to_ndarray()

    def close(self) -> None:
        """Closes the file."""
        self._container.close()


class PyAv(Peer):
    """Settings: `threads` (0: FFmpeg's choice), `thread_type` ("AUTO", "FRAME" or "SLICE")."""

    name = "PyAV"
    module = "av"

    def open(self, path: str, setting: Setting, size: tuple[int, int] | None = None) -> Video:
        """Opens a container."""
        return PyAvVideo(self.library, path, setting, size)
