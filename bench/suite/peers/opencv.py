"""OpenCV's VideoCapture: frame after frame, with a seek by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from suite.peers.base import CannotError, Frames, Peer, Setting, Video


class OpenCvVideo(Video):
    """A capture. Each frame on the way is grabbed, which decodes it, and only wanted ones are converted."""

    def __init__(self, library: Any, path: str, setting: Setting, size: tuple[int, int] | None) -> None:  # noqa: ANN401
        """Opens it with the FFmpeg that its wheel brings."""
        self._library = library
        options = [library.CAP_PROP_N_THREADS, setting["threads"]] if setting.get("threads") else []
        self._capture = library.VideoCapture(path, library.CAP_FFMPEG, options)
        if not self._capture.isOpened():
            raise CannotError("VideoCapture does not open it")
        self._seeks = setting.get("seek", "index") == "index"
        self._size = size
        self._next = 0
        self._grab_count = 0

    def frames_at(self, indices: Sequence[int]) -> Frames:
        """In ascending order, then put into the order wanted."""
        found: dict[int, tuple[Any, float]] = {}
        self._grab_count = 0
        for index in sorted(set(indices)):
            found[index] = self._frame(index)
        chosen = [found[index] for index in indices]
        # A seek grabs without telling, so that they can be counted only without one.
        counted = None if self._seeks else self._grab_count
        return Frames([pixels for pixels, _ in chosen], [pts for _, pts in chosen], counted)

    def _frame(self, index: int) -> tuple[Any, float]:
        if index < self._next or (self._seeks and index > self._next):
            self._capture.set(self._library.CAP_PROP_POS_FRAMES, index)
            self._next = index
        while self._next <= index:
            if not self._capture.grab():
                raise CannotError(f"no frame {self._next}")
            self._grab_count += 1
            self._next += 1
        pts = self._capture.get(self._library.CAP_PROP_POS_MSEC) / 1000
        is_there, picture = self._capture.retrieve()
        if not is_there:
            raise CannotError(f"no picture of frame {index}")
        if self._size is not None:
            height, width = self._size
            picture = self._library.resize(picture, (width, height), interpolation=self._library.INTER_AREA)
        return self._library.cvtColor(picture, self._library.COLOR_BGR2RGB), pts

    def close(self) -> None:
        """Closes the file."""
        self._capture.release()


class OpenCv(Peer):
    """Settings: `threads` (0: its own choice), `seek` ("index" or "none": decode all on the way)."""

    name = "OpenCV"
    module = "cv2"

    def open(self, path: str, setting: Setting, size: tuple[int, int] | None = None) -> Video:
        """Opens a capture."""
        return OpenCvVideo(self.library, path, setting, size)
