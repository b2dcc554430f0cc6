"""decord: frames by index, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from suite.peers.base import CannotError, Frames, Peer, Setting, Video


class DecordVideo(Video):
    """A reader."""

    def __init__(self, reader: Any) -> None:  # noqa: ANN401 # decord is imported late
        """Takes an open one."""
        self._reader = reader

    def frames_at(self, indices: Sequence[int]) -> Frames:
        """One call for all of them."""
        wanted = list(indices)
        pixels = self._reader.get_batch(wanted).asnumpy()
        times = self._reader.get_frame_timestamp(wanted)
        return Frames(pixels, [float(each) for each in times[:, 0]])


def _in_words(error: Exception) -> str:
    """The last line, without the time and the place in its source."""
    return str(error).strip().splitlines()[-1].rpartition(" Check failed: ")[2][:100]


class Decord(Peer):
    """Settings: `threads` (0: its own choice). Resizing is done by its decoder."""

    name = "decord"
    module = "decord"

    def __init__(self) -> None:
        """Silences what FFmpeg would print."""
        super().__init__()
        self.library.logging.set_level(self.library.logging.QUIET)

    def open(self, path: str, setting: Setting, size: tuple[int, int] | None = None) -> Video:
        """Opens a reader; it makes an index of all packets."""
        options: dict[str, Any] = {"num_threads": setting.get("threads", 0)}
        if size is not None:
            options |= {"height": size[0], "width": size[1]}
        try:
            return DecordVideo(self.library.VideoReader(path, ctx=self.library.cpu(0), **options))
        except self.library.DECORDError as error:
            raise CannotError(_in_words(error)) from error
