"""TorchCodec, the yardstick: its outputs are the reference of all others."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from suite.peers.base import Frames, Peer, Setting, Video


class TorchCodecVideo(Video):
    """A decoder of TorchCodec, or of a library with the same interface."""

    def __init__(self, decoder: Any, resize: Any = None) -> None:  # noqa: ANN401 # two unrelated classes
        """`resize` is applied to the frames where the decoder does not do it."""
        self.decoder = decoder
        self._resize = resize

    def frames_at(self, indices: Sequence[int]) -> Frames:
        """One call for all of them."""
        return self._frames(self.decoder.get_frames_at(list(indices)))

    def first(self, count: int) -> Frames:
        """A range, which needs no seek."""
        return self._frames(self.decoder.get_frames_in_range(0, count))

    def _frames(self, batch: Any) -> Frames:  # noqa: ANN401 # of one of the two libraries
        pixels = batch.data if self._resize is None else self._resize(batch.data)
        return Frames(pixels, batch.pts_seconds.tolist())


def torchvision_resize(size: tuple[int, int]) -> Any:  # noqa: ANN401 # torchvision is imported late
    """Torchvision's resize of tensors, as its users call it: bilinear with antialiasing."""
    functional = importlib.import_module("torchvision.transforms.v2.functional")
    return lambda frames: functional.resize(frames, list(size))


class TorchCodec(Peer):
    """Settings: `threads` (0: FFmpeg's choice), `seek` ("exact" or "approximate"), `resize`.

    `resize` is "decoder" for TorchCodec's own transforms, or "torchvision" for resizing the frames
    afterwards.
    """

    name = "TorchCodec"
    module = "torchcodec"

    def __init__(self) -> None:
        """Imports the decoders, too."""
        super().__init__()
        self._decoders: Any = importlib.import_module("torchcodec.decoders")

    def open(self, path: str, setting: Setting, size: tuple[int, int] | None = None) -> Video:
        """Opens a decoder."""
        options: dict[str, Any] = {
            "num_ffmpeg_threads": setting.get("threads", 1),
            "seek_mode": setting.get("seek", "exact"),
        }
        resize = None
        if size is not None and setting.get("resize") == "decoder":
            transforms = importlib.import_module("torchcodec.transforms")
            options["transforms"] = [transforms.Resize(size)]
        elif size is not None:
            resize = torchvision_resize(size)
        return TorchCodecVideo(self._decoders.VideoDecoder(path, **options), resize)
