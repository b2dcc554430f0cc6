"""torchvision, where it still decodes: its newer versions have handed that over to TorchCodec."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from suite.peers.base import CannotError, Frames, Peer, Setting, Video


class TorchVisionVideo(Video):
    """A reader with a seek by time."""

    def __init__(self, reader: Any) -> None:  # noqa: ANN401 # torchvision is imported late
        """Takes an open one."""
        self._reader = reader
        self._fps = reader.get_metadata()["video"]["fps"][0]

    def frames_at(self, indices: Sequence[int]) -> Frames:
        """One seek each."""
        found = []
        for index in indices:
            # The middle of the frame's time, so that rounding does not hit its neighbour.
            self._reader.seek((index + 0.5) / self._fps)
            found.append(next(self._reader))
        return Frames(
            [each["data"].permute(1, 2, 0).numpy() for each in found], [each["pts"] for each in found]
        )

    def first(self, count: int) -> Frames:
        """One after the other."""
        found = [next(self._reader) for _ in range(count)]
        return Frames(
            [each["data"].permute(1, 2, 0).numpy() for each in found], [each["pts"] for each in found]
        )


class TorchVision(Peer):
    """Settings: `threads`."""

    name = "torchvision"
    module = "torchvision"

    def __init__(self) -> None:
        """Says so if this version does not decode."""
        super().__init__()
        self._io: Any = importlib.import_module("torchvision.io")
        if not hasattr(self._io, "VideoReader"):
            raise CannotError(f"torchvision {self.version()} does not decode videos")

    def open(self, path: str, setting: Setting, size: tuple[int, int] | None = None) -> Video:
        """Opens a reader."""
        if size is not None:
            raise CannotError("does not resize")
        return TorchVisionVideo(self._io.VideoReader(path, "video", num_threads=setting.get("threads", 0)))
