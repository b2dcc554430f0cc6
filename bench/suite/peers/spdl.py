"""SPDL's media functions. Its pipeline, with threads in a subprocess, is in `scenarios/datasets`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from suite.peers.base import Frames, Peer, Setting, Video

# A wider span than this many times its frames is sampled rather than decoded whole.
_DENSE_SPAN = 3


class SpdlVideo(Video):
    """A file; SPDL demuxes it anew for each call, as it has no decoder that stays open for random access."""

    def __init__(self, library: Any, path: str, setting: Setting, size: tuple[int, int] | None) -> None:  # noqa: ANN401
        """Opens it for its frame rate."""
        self._library = library
        self._path = path
        self._method = setting.get("method", "select")
        options = {"threads": str(setting.get("threads", 1))}
        self._config = library.decode_config(decoder_options=options)
        self._scale = (
            {}
            if size is None
            else {
                "scale_height": size[0],
                "scale_width": size[1],
                "scale_algo": "bilinear",
                "scale_mode": None,
            }
        )
        rate = library.Demuxer(path).video_codec.frame_rate
        self._fps = rate[0] / rate[1] if isinstance(rate, tuple) else float(rate)

    def _filter(self, chosen: list[int] | None = None) -> str:
        plain = self._library.get_video_filter_desc(**self._scale)
        if chosen is None:
            return plain
        # Only what is wanted is converted.
        terms = "+".join(f"eq(n\\,{number})" for number in chosen)
        return f"select={terms},{plain}"

    def frames_at(self, indices: Sequence[int]) -> Frames:
        """In ascending order, then put into the order wanted."""
        wanted = sorted(set(indices))
        first, last = wanted[0], wanted[-1]
        if last - first < _DENSE_SPAN * len(wanted):
            frames = self._dense(first, wanted)
        elif self._method == "sample":
            packets = self._library.demux_video(self._path)
            frames = self._library.sample_decode_video(
                packets, wanted, decode_config=self._config, filter_desc=self._filter()
            )
        else:
            frames = self._selected(wanted)
        # First the times: what is converted is gone.
        pts = [each.pts for each in frames] if isinstance(frames, list) else frames.get_timestamps()
        pixels = self._library.to_numpy(self._library.convert_frames(frames))
        places = [wanted.index(index) for index in indices]
        if places == list(range(len(wanted))):
            return Frames(pixels, pts)
        return Frames(pixels[places], [pts[place] for place in places])

    def _window(self, first: int, last: int) -> tuple[float, float]:
        # Half a picture's time on both sides covers the rounding of the container's time base.
        return max(0.0, (first - 0.5) / self._fps), (last + 0.5) / self._fps

    def _dense(self, first: int, wanted: list[int]) -> Any:  # noqa: ANN401 # SPDL is imported late
        """Decodes the stretch that holds them; what lies before it is dropped before it is converted."""
        window = self._window(first, wanted[-1])
        packets = self._library.demux_video(self._path, timestamp=window)
        cut = f"trim=start={window[0]}:end={window[1]},"
        offsets = [index - first for index in wanted]
        is_whole = offsets == list(range(len(offsets)))
        description = cut + self._filter(None if is_whole else offsets)
        return self._library.decode_packets(
            packets, filter_desc=description, decode_config=self._config, num_frames=len(wanted)
        )

    def _selected(self, wanted: list[int]) -> Any:  # noqa: ANN401 # SPDL is imported late
        packets = self._library.demux_video(self._path, timestamp=self._window(0, wanted[-1]))
        return self._library.decode_packets(
            packets, filter_desc=self._filter(wanted), decode_config=self._config, num_frames=len(wanted)
        )


class Spdl(Peer):
    """Settings: `threads`; `method`, for frames far apart.

    "sample" is its own function for that, which converts all frames on the way; with "select" FFmpeg's filter
    of that name drops them before.
    """

    name = "SPDL"
    module = "spdl.io"

    def version(self) -> str:
        """The package's, not the module's."""
        return importlib.import_module("importlib.metadata").version("spdl-io")

    def open(self, path: str, setting: Setting, size: tuple[int, int] | None = None) -> Video:
        """Opens a file."""
        return SpdlVideo(self.library, path, setting, size)
